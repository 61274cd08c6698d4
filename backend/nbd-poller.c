/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbd-poller.c - the thread that drives the connections of a stream.
 *
 * Everything here runs on the poller, and without a lock except where it takes
 * what others submitted.  libnbd's callbacks run inside our calls to libnbd and
 * only move a transfer from "flying" to "landed"; done() is called afterwards,
 * when libnbd has been left, so it may submit the next transfer.
 *
 * A transfer that was under way on a connection that got lost is sent once more, on
 * the connections that are left and then on new ones: those of a server that died
 * are found dead one by one.  When no connection is left, new ones are tried; if none
 * can be had everything fails, until a transfer comes a second later.  No other
 * connection is made here: QEMU 7.2 can hang when its server is stopped while somebody
 * connects.
 */
#include "backend/nbd-priv.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "backend/error.h"

static gboolean is_cancelled(NbdSource *source)
{
    return g_atomic_int_get(&source->cancelled) != 0;
}

/* ---- Transfers ---- */

static void transfer_end(BeTransfer *transfer, int errnum)
{
    transfer->done(transfer, errnum);
}

static void transfer_lost(NbdSource *source, BeTransfer *transfer)
{
    gboolean again = transfer->lost_in == 0 || transfer->lost_in == source->generation;

    if (!again || is_cancelled(source)) {
        transfer_end(transfer, EIO);
    } else {
        transfer->lost_in = source->generation;
        g_queue_push_head_link(&source->waiting, &transfer->link);
    }
}

static void waiting_fail(NbdSource *source)
{
    GList *link;

    while ((link = g_queue_pop_head_link(&source->waiting))) {
        transfer_end(link->data, EIO);
    }
}

static int on_landed(void *user, int *error G_GNUC_UNUSED)
{
    BeTransfer *transfer = user;
    NbdConn *conn = transfer->owner;

    g_queue_unlink(&conn->flying, &transfer->link);
    g_queue_push_tail_link(&conn->landed, &transfer->link);
    /* Not retired: only nbd_aio_command_completed() knows of short replies. */
    return 0;
}

static int on_extents(void *user, const char *context, uint64_t offset G_GNUC_UNUSED,
                      uint32_t *entries, size_t count, int *error G_GNUC_UNUSED)
{
    NbdStatus *status = user;

    if (strcmp(context, status->context) == 0 && status->pairs->len == 0) {
        g_array_append_vals(status->pairs, entries, (guint)count);
    }
    return 0;
}

static gint64 transfer_issue(NbdConn *conn, BeTransfer *transfer)
{
    nbd_completion_callback landed = {.callback = on_landed, .user_data = transfer};

    if (transfer->buffer) {
        return nbd_aio_pread(conn->handle, transfer->buffer, transfer->length, transfer->offset,
                             landed, 0);
    }
    g_array_set_size(((NbdStatus *)transfer)->pairs, 0);
    return nbd_aio_block_status(conn->handle, transfer->length, transfer->offset,
                                (nbd_extent_callback){.callback = on_extents,
                                                      .user_data = transfer},
                                landed, 0);
}

/* ---- Connections ---- */

static gboolean conn_start(NbdSource *source, NbdConn *conn)
{
    g_autoptr(GError) error = NULL;

    conn->handle = be_nbd_handle_new(source, FALSE, &error);
    if (!conn->handle) {
        g_debug("nbd: %s", error->message);
        return FALSE;
    }
    conn->state = NBD_CONN_CONNECTING;
    conn->deadline_us = g_get_monotonic_time() + source->timeout_us;
    return TRUE;
}

static void conn_send(NbdConn *conn, BeTransfer *transfer)
{
    /* In this order: libnbd may call back before it returns. */
    transfer->owner = conn;
    g_queue_push_tail_link(&conn->flying, &transfer->link);
    transfer->cookie = transfer_issue(conn, transfer);
    if (transfer->cookie < 0) {
        g_queue_unlink(&conn->flying, &transfer->link);
        transfer_end(transfer, EIO);
    }
}

static void conn_land(NbdSource *source, NbdConn *conn)
{
    GList *link;

    while ((link = g_queue_pop_head_link(&conn->landed))) {
        BeTransfer *transfer = link->data;

        if (nbd_aio_command_completed(conn->handle, (uint64_t)transfer->cookie) == 1) {
            transfer_end(transfer, 0);
        } else if (be_nbd_handle_is_dead(conn->handle)) {
            transfer_lost(source, transfer);
        } else {
            transfer_end(transfer, EIO);
        }
    }
}

static void conn_lose(NbdSource *source, NbdConn *conn)
{
    GList *link;

    conn_land(source, conn);
    nbd_close(g_steal_pointer(&conn->handle));
    conn->state = NBD_CONN_NONE;
    while ((link = g_queue_pop_head_link(&conn->flying))) {
        transfer_lost(source, link->data);
    }
}

/* The server may allow fewer connections than we would like. */
static void conn_lost(NbdSource *source, NbdConn *conn)
{
    gboolean was_connecting = conn->state == NBD_CONN_CONNECTING;
    guint ready = 0;

    conn_lose(source, conn);
    for (guint i = 0; i < NBD_CONNECTIONS; i++) {
        ready += source->conns[i].state == NBD_CONN_READY;
    }
    if (was_connecting && ready > 0) {
        source->conns_max = ready;
    }
}

static void conn_connected(NbdSource *source, NbdConn *conn)
{
    g_autoptr(GError) error = NULL;

    if (!be_nbd_handle_check(source, conn->handle, &error)) {
        g_debug("nbd: %s", error->message);
        conn_lost(source, conn);
        return;
    }
    conn->state = NBD_CONN_READY;
    source->retry_us = 0;
}

static void conn_event(NbdSource *source, NbdConn *conn, short revents)
{
    if (revents && !be_nbd_handle_notify(conn->handle, revents)) {
        conn_lost(source, conn);
        return;
    }
    if (conn->state == NBD_CONN_CONNECTING) {
        if (nbd_aio_is_ready(conn->handle)) {
            conn_connected(source, conn);
        } else if (g_get_monotonic_time() >= conn->deadline_us) {
            conn_lost(source, conn);
        }
        return;
    }
    conn_land(source, conn);
    if (be_nbd_handle_is_dead(conn->handle)) {
        conn_lost(source, conn);
    }
}

/* ---- Assignment ---- */

static NbdConn *conn_find(NbdSource *source, NbdConnState state)
{
    NbdConn *best = NULL;

    for (guint i = 0; i < NBD_CONNECTIONS; i++) {
        NbdConn *conn = &source->conns[i];

        if (conn->state == state && (!best || conn->flying.length < best->flying.length)) {
            best = conn;
        }
    }
    return best;
}

static guint conns_count(const NbdSource *source)
{
    guint count = 0;

    for (guint i = 0; i < NBD_CONNECTIONS; i++) {
        count += source->conns[i].state != NBD_CONN_NONE;
    }
    return count;
}

/* Nothing is connected: one attempt; after one in vain, not within a second. */
static void revive(NbdSource *source)
{
    g_autoptr(GError) error = NULL;
    gint64 now_us = g_get_monotonic_time();
    guint started = 0;

    if (now_us >= source->retry_us) {
        source->retry_us = now_us + NBD_RETRY_US;
        source->generation++;
        if (be_nbd_prepare(source, &error)) {
            while (started < source->conns_max && conn_start(source, &source->conns[started])) {
                started++;
            }
        }
    }
    if (started == 0) {
        waiting_fail(source);
    }
}

static void assign(NbdSource *source)
{
    NbdConn *best;

    while (source->waiting.length > 0) {
        best = conn_find(source, NBD_CONN_READY);
        if (!best || best->flying.length >= NBD_FLIGHT) {
            break;
        }
        conn_send(best, g_queue_pop_head_link(&source->waiting)->data);
        /* It may have died of it, and all that was on it has landed. */
        if (be_nbd_handle_is_dead(best->handle)) {
            conn_lost(source, best);
        }
    }
    if (source->waiting.length > 0 && conns_count(source) == 0) {
        revive(source);
    }
}

/* ---- Loop ---- */

/* Returns: FALSE when it is time to go. */
static gboolean take_submitted(NbdSource *source)
{
    gboolean stopping;
    GList *link;

    g_mutex_lock(&source->lock);
    source->sleeping = FALSE;
    while ((link = g_queue_pop_head_link(&source->submitted))) {
        g_queue_push_tail_link(&source->waiting, link);
    }
    stopping = source->stopping;
    g_mutex_unlock(&source->lock);
    if (is_cancelled(source)) {
        for (guint i = 0; i < NBD_CONNECTIONS; i++) {
            if (source->conns[i].handle) {
                conn_lose(source, &source->conns[i]);
            }
        }
        waiting_fail(source);
    }
    return !stopping;
}

/* Returns: whether poll(2) may sleep; from now on a submission kicks us. */
static gboolean may_sleep(NbdSource *source)
{
    gboolean nothing;

    g_mutex_lock(&source->lock);
    nothing = source->submitted.length == 0;
    source->sleeping = nothing;
    g_mutex_unlock(&source->lock);
    return nothing;
}

static int poll_timeout(NbdConn *const *conns, guint count)
{
    gint64 next_us = G_MAXINT64;
    gint64 left_us;

    for (guint i = 0; i < count; i++) {
        if (conns[i]->state == NBD_CONN_CONNECTING) {
            next_us = MIN(next_us, conns[i]->deadline_us);
        }
    }
    if (next_us == G_MAXINT64) {
        return -1;
    }
    left_us = MAX(next_us - g_get_monotonic_time(), 0);
    return (int)MIN(left_us / 1000 + 1, G_MAXINT);
}

static void wait_and_notify(NbdSource *source)
{
    struct pollfd fds[NBD_CONNECTIONS + 1] = {{.fd = source->kick_fd, .events = POLLIN}};
    NbdConn *conns[NBD_CONNECTIONS];
    guint count = 0;

    for (guint i = 0; i < NBD_CONNECTIONS; i++) {
        NbdConn *conn = &source->conns[i];

        if (conn->handle) {
            conns[count++] = conn;
            fds[count].fd = nbd_aio_get_fd(conn->handle);
            fds[count].events = be_nbd_handle_events(conn->handle);
        }
    }
    if (poll(fds, count + 1, may_sleep(source) ? poll_timeout(conns, count) : 0) < 0) {
        return;
    }
    if (fds[0].revents) {
        uint64_t kicks;

        (void)!read(source->kick_fd, &kicks, sizeof(kicks));
    }
    for (guint i = 0; i < count; i++) {
        if (fds[i + 1].revents || conns[i]->state == NBD_CONN_CONNECTING) {
            conn_event(source, conns[i], fds[i + 1].revents);
        }
    }
}

gpointer be_nbd_poller_run(gpointer data)
{
    NbdSource *source = data;

    while (take_submitted(source)) {
        assign(source);
        wait_and_notify(source);
    }
    return NULL;
}
