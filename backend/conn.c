/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * conn.c - connections to libvirt that come back by themselves.
 *
 * Entered by workers (get) and libvirt's event thread (the close callback).
 * `lock` guards the fields; it is not held while libvirt connects: one worker
 * does, others wait on `changed`.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/private.h"

#define BACKOFF_FIRST_US (G_USEC_PER_SEC / 4)
#define BACKOFF_MAX_US (8 * G_USEC_PER_SEC)

/* A host that does not answer for this long is gone. */
#define KEEPALIVE_SECONDS 5
#define KEEPALIVE_COUNT 3

struct BeConn {
    Be *be;
    gboolean events;
    GMutex lock;
    GCond changed;
    virConnectPtr conn;        /* guarded by lock; NULL: not connected */
    gboolean connecting;       /* guarded by lock */
    gboolean closed;           /* guarded by lock: for good */
    gint64 next_try_us;        /* guarded by lock; monotonic */
    gint64 backoff_us;         /* guarded by lock */
    guint connects;            /* guarded by lock */
    GError *last_error;        /* guarded by lock */
};

BeConn *be_conn_new(Be *be, gboolean events)
{
    BeConn *conn = g_new0(BeConn, 1);

    conn->be = be;
    conn->events = events;
    g_mutex_init(&conn->lock);
    g_cond_init(&conn->changed);
    conn->backoff_us = BACKOFF_FIRST_US;
    return conn;
}

static void tell(BeConn *conn, BeEventKind kind, const char *text)
{
    BeEvent event = {.kind = kind, .time_us = g_get_real_time(), .text = text};

    if (conn->events) {
        be_notify(conn->be, &event);
        be_inventory_touch(conn->be);
    }
}

/* libvirt says why in @reason; on the event thread, inside libvirt. */
static void on_close(virConnectPtr virt, int reason, void *opaque)
{
    BeConn *conn = opaque;
    virConnectPtr lost = NULL;

    g_mutex_lock(&conn->lock);
    if (conn->conn == virt) {
        lost = g_steal_pointer(&conn->conn);
    }
    g_mutex_unlock(&conn->lock);
    if (lost) {
        tell(conn, BE_EVENT_DISCONNECTED,
             reason == VIR_CONNECT_CLOSE_REASON_KEEPALIVE ? "libvirtd does not answer"
                                                          : "the connection to libvirtd is gone");
        virConnectClose(lost);
    }
}

static virConnectPtr open_connection(BeConn *conn, GError **error)
{
    Be *be = conn->be;
    virConnectPtr virt = be->read_only ? virConnectOpenReadOnly(be->uri) : virConnectOpen(be->uri);

    if (!virt) {
        be_error_from_libvirt(error, "cannot connect to libvirt");
        if (error && *error && (*error)->code != EACCES && (*error)->code != EINVAL) {
            (*error)->code = EHOSTUNREACH; /* no socket, refused...: all the same to users */
        }
        return NULL;
    }
    /* Drivers inside this process have neither keepalive nor a close callback. */
    (void)virConnectSetKeepAlive(virt, KEEPALIVE_SECONDS, KEEPALIVE_COUNT);
    (void)virConnectRegisterCloseCallback(virt, on_close, conn, NULL);
    if (conn->events && !be_event_register(be, virt)) {
        g_info("'%s' has no events: the inventory is polled", be->uri);
    }
    return virt;
}

/* With the lock held on entry and exit, dropped while libvirt connects. */
static void connect_locked(BeConn *conn)
{
    g_autoptr(GError) error = NULL;
    virConnectPtr virt;

    conn->connecting = TRUE;
    g_mutex_unlock(&conn->lock);
    virt = open_connection(conn, &error);
    g_mutex_lock(&conn->lock);
    conn->connecting = FALSE;
    g_cond_broadcast(&conn->changed);
    g_clear_error(&conn->last_error);
    if (!virt) {
        conn->last_error = g_steal_pointer(&error);
        conn->next_try_us = g_get_monotonic_time() + conn->backoff_us;
        conn->backoff_us = MIN(conn->backoff_us * 2, BACKOFF_MAX_US);
        return;
    }
    conn->conn = virt;
    conn->backoff_us = BACKOFF_FIRST_US;
    conn->connects++;
    g_mutex_unlock(&conn->lock);
    tell(conn, BE_EVENT_CONNECTED, NULL);
    if (conn->events && !g_atomic_int_get(&conn->be->starting)) {
        be_backups_check(conn->be, NULL);
    }
    g_mutex_lock(&conn->lock);
}

virConnectPtr be_conn_get(BeConn *conn, GError **error)
{
    virConnectPtr virt = NULL;

    g_mutex_lock(&conn->lock);
    while (conn->connecting) {
        g_cond_wait(&conn->changed, &conn->lock);
    }
    if (!conn->conn && !conn->closed && g_get_monotonic_time() >= conn->next_try_us) {
        connect_locked(conn);
    }
    if (conn->conn && !conn->closed) {
        virt = conn->conn;
        virConnectRef(virt);
    } else if (conn->last_error) {
        g_propagate_error(error, g_error_copy(conn->last_error));
    } else {
        g_set_error(error, BE_ERROR, EHOSTUNREACH, "not connected to libvirt");
    }
    g_mutex_unlock(&conn->lock);
    return virt;
}

gboolean be_conn_is_up(BeConn *conn)
{
    gboolean up;

    g_mutex_lock(&conn->lock);
    up = conn->conn != NULL;
    g_mutex_unlock(&conn->lock);
    return up;
}

gboolean be_conn_waits(BeConn *conn)
{
    gboolean waits;

    g_mutex_lock(&conn->lock);
    waits = !conn->conn && !conn->connecting && g_get_monotonic_time() < conn->next_try_us;
    g_mutex_unlock(&conn->lock);
    return waits;
}

guint be_conn_reconnects(BeConn *conn)
{
    guint connects;

    g_mutex_lock(&conn->lock);
    connects = conn->connects;
    g_mutex_unlock(&conn->lock);
    return connects ? connects - 1 : 0;
}

virDomainPtr be_conn_domain(BeConn *conn, const char *uuid, GError **error)
{
    g_autoptr(BeVirConnect) virt = be_conn_get(conn, error);
    virDomainPtr domain;

    if (!virt) {
        return NULL;
    }
    domain = virDomainLookupByUUIDString(virt, uuid);
    if (!domain) {
        be_error_from_libvirt(error, "cannot find the domain");
    }
    return domain;
}

void be_conn_close(BeConn *conn)
{
    virConnectPtr virt;

    g_mutex_lock(&conn->lock);
    conn->closed = TRUE;
    virt = g_steal_pointer(&conn->conn);
    g_mutex_unlock(&conn->lock);
    if (virt) {
        virConnectUnregisterCloseCallback(virt, on_close);
        virConnectClose(virt);
    }
}

void be_conn_free(BeConn *conn)
{
    if (!conn) {
        return;
    }
    be_conn_close(conn);
    g_clear_error(&conn->last_error);
    g_cond_clear(&conn->changed);
    g_mutex_clear(&conn->lock);
    g_free(conn);
}
