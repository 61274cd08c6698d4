/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbd.c - streams over libnbd: the source; see nbd.h and BeSourceOps.
 *
 * Entered by workers (open, extents, close) and by whoever holds the stream's
 * lock (pread, cancel).  The connections are driven by nbd-poller.c.
 */
#include "backend/nbd-priv.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backend/error.h"

/* Large enough for few round trips, small enough to leave QEMU time for reads. */
#define STATUS_BYTES (G_GUINT64_CONSTANT(1) << 31)

static void kick_fd(int fd)
{
    uint64_t one = 1;

    /* Full means that it was kicked often enough. */
    (void)!write(fd, &one, sizeof(one));
}

void be_nbd_kick(NbdSource *source)
{
    kick_fd(source->kick_fd);
}

/* ---- Descriptors ---- */

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

static void close_fds(NbdSource *source)
{
    g_mutex_lock(&source->lock);
    close_fd(&source->kick_fd);
    close_fd(&source->cancel_fd);
    g_mutex_unlock(&source->lock);
}

/*
 * Not before there is something to open: a walk over the tree makes streams by the
 * thousand that nobody reads.  cancel() may come before, or meanwhile.
 */
static gboolean open_fds(NbdSource *source, GError **error)
{
    gboolean good;

    g_mutex_lock(&source->lock);
    source->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    source->cancel_fd = eventfd(g_atomic_int_get(&source->cancelled) ? 1 : 0,
                                EFD_CLOEXEC | EFD_NONBLOCK);
    good = source->kick_fd >= 0 && source->cancel_fd >= 0;
    g_mutex_unlock(&source->lock);
    if (!good) {
        g_set_error(error, BE_ERROR, EMFILE, "no file descriptor for a stream");
    }
    return good;
}

static void source_cancel(gpointer data)
{
    NbdSource *source = data;

    g_mutex_lock(&source->lock);
    g_atomic_int_set(&source->cancelled, 1);
    if (source->cancel_fd >= 0) {
        kick_fd(source->cancel_fd);
    }
    if (source->kick_fd >= 0) {
        kick_fd(source->kick_fd);
    }
    g_mutex_unlock(&source->lock);
}

static void disconnect_direct(NbdSource *source)
{
    NbdDirect *direct;

    while ((direct = g_queue_pop_head(&source->idle))) {
        be_nbd_direct_free(direct);
    }
}

static void source_close(gpointer data)
{
    NbdSource *source = data;

    if (source->poller) {
        g_mutex_lock(&source->lock);
        source->stopping = TRUE;
        g_mutex_unlock(&source->lock);
        be_nbd_kick(source);
        g_thread_join(source->poller);
    }
    disconnect_direct(source);
    if (source->prepare_destroy) {
        source->prepare_destroy(source->prepare_user);
    }
    close_fds(source);
    g_mutex_clear(&source->lock);
    g_free(source->export_name);
    g_free(source->dirty_context);
    g_free(source->socket);
    g_free(source);
}

/* ---- Open ---- */

static struct nbd_handle *connect_first(NbdSource *source, GError **error)
{
    gint64 deadline_us = g_get_monotonic_time() + source->timeout_us;
    struct nbd_handle *handle = be_nbd_handle_new(source, FALSE, error);
    BePolling polling = {0};
    int errnum;

    if (!handle) {
        return NULL;
    }
    errnum = be_nbd_handle_wait(source, handle, 0, deadline_us, &polling);
    if (errnum == 0) {
        if (be_nbd_handle_check(source, handle, error)) {
            return handle;
        }
    } else if (errnum == EPIPE) {
        be_error_from_nbd(error, "cannot connect to the NBD server");
    } else {
        be_error_set_errno(error, errnum, "cannot connect to the NBD server");
    }
    nbd_close(handle);
    return NULL;
}

/* There is no poller. */
static void disconnect(NbdSource *source)
{
    for (guint i = 0; i < NBD_CONNECTIONS; i++) {
        nbd_close(g_steal_pointer(&source->conns[i].handle));
        source->conns[i].state = NBD_CONN_NONE;
    }
    disconnect_direct(source);
}

/*
 * All the connections there will ever be, at once: those of the poller, then those
 * for small reads.  The first that cannot be had ends it.
 */
static void connect_more(NbdSource *source)
{
    struct nbd_handle *handles[NBD_CONNECTIONS - 1 + NBD_DIRECT];
    gint64 deadline_us = g_get_monotonic_time() + MIN(source->timeout_us, NBD_MORE_US);
    BePolling polling = {0};
    guint started = 0;
    guint i;

    while (started < G_N_ELEMENTS(handles)) {
        handles[started] = be_nbd_handle_new(source, started >= NBD_CONNECTIONS - 1, NULL);
        if (!handles[started]) {
            break;
        }
        started++;
    }
    for (i = 0; i < started; i++) {
        if (be_nbd_handle_wait(source, handles[i], 0, deadline_us, &polling) != 0
            || !be_nbd_handle_check(source, handles[i], NULL)) {
            break;
        }
        if (i < NBD_CONNECTIONS - 1) {
            source->conns[i + 1].handle = handles[i];
            source->conns[i + 1].state = NBD_CONN_READY;
            source->conns_max++;
        } else {
            be_nbd_direct_add(source, handles[i]);
        }
    }
    for (; i < started; i++) {
        nbd_close(handles[i]);
    }
}

static gboolean connect_all(NbdSource *source, GError **error)
{
    struct nbd_handle *handle = be_nbd_prepare(source, error) ? connect_first(source, error) : NULL;

    if (!handle) {
        return FALSE;
    }
    be_nbd_handle_learn(source, handle);
    source->conns[0].handle = handle;
    source->conns[0].state = NBD_CONN_READY;
    if (source->multi_conn) {
        connect_more(source);
    }
    source->poller = g_thread_try_new("nbd-poller", be_nbd_poller_run, source, error);
    if (!source->poller) {
        disconnect(source);
        return FALSE;
    }
    return TRUE;
}

static gboolean source_open(gpointer data, gint64 timeout_us, BeSourceLimits *ret_limits,
                            GError **error)
{
    NbdSource *source = data;

    source->timeout_us = timeout_us;
    if (!open_fds(source, error) || !connect_all(source, error)) {
        close_fds(source);
        return FALSE;
    }
    *ret_limits = source->limits;
    return TRUE;
}

static void source_pread(gpointer data, BeTransfer *transfer)
{
    NbdSource *source = data;
    gboolean sleeping;

    transfer->link = (GList){.data = transfer};
    transfer->lost_in = 0;
    g_mutex_lock(&source->lock);
    g_queue_push_tail_link(&source->submitted, &transfer->link);
    sleeping = source->sleeping;
    source->sleeping = FALSE;
    g_mutex_unlock(&source->lock);
    if (sleeping) {
        be_nbd_kick(source);
    }
}

/* ---- Map ---- */

static void status_unref(NbdStatus *status)
{
    if (!g_atomic_ref_count_dec(&status->refs)) {
        return;
    }
    g_array_unref(status->pairs);
    g_cond_clear(&status->changed);
    g_mutex_clear(&status->lock);
    g_free(status);
}

static void status_done(BeTransfer *transfer, int errnum)
{
    NbdStatus *status = (NbdStatus *)transfer;

    g_mutex_lock(&status->lock);
    status->ended = TRUE;
    status->errnum = errnum;
    g_cond_signal(&status->changed);
    g_mutex_unlock(&status->lock);
    status_unref(status);
}

static NbdStatus *status_new(const char *context, guint64 offset, guint64 length)
{
    NbdStatus *status = g_new0(NbdStatus, 1);

    g_atomic_ref_count_init(&status->refs);
    status->context = context;
    status->transfer.offset = offset;
    status->transfer.length = (guint32)length;
    status->transfer.done = status_done;
    status->pairs = g_array_new(FALSE, FALSE, sizeof(guint32));
    g_mutex_init(&status->lock);
    g_cond_init(&status->changed);
    return status;
}

/* Returns: 0, EIO or ETIMEDOUT; then the poller may still be using it. */
static int status_wait(NbdStatus *status, gint64 deadline_us)
{
    int errnum;

    g_mutex_lock(&status->lock);
    while (!status->ended
           && g_cond_wait_until(&status->changed, &status->lock, deadline_us)) {
    }
    errnum = status->ended ? status->errnum : ETIMEDOUT;
    g_mutex_unlock(&status->lock);
    return errnum;
}

/* A server may tell more than it was asked for, but only of the last extent. */
static void status_collect(const NbdStatus *status, GArray *out)
{
    guint64 sum = 0;

    for (guint i = 0; i + 1 < status->pairs->len && sum < status->transfer.length; i += 2) {
        BeExtent extent = {
            .start = status->transfer.offset + sum,
            .length = g_array_index(status->pairs, guint32, i),
            .flags = g_array_index(status->pairs, guint32, i + 1),
        };

        g_array_append_val(out, extent);
        sum += extent.length;
    }
}

static gboolean source_extents(gpointer data, BeExtentKind kind, guint64 offset, gint64 timeout_us,
                               GArray *out, GError **error)
{
    NbdSource *source = data;
    BeExtent all = {.start = offset, .length = source->size - offset, .flags = 0};
    gint64 deadline_us = g_get_monotonic_time() + timeout_us;
    gboolean dirty = kind == BE_EXTENTS_DIRTY;
    NbdStatus *status;
    int errnum;

    if (dirty && !source->can_dirty) {
        g_set_error(error, BE_ERROR, EUCLEAN, "the export does not say what has changed");
        return FALSE;
    }
    if (!dirty && !source->can_allocation) {
        g_array_append_val(out, all);
        return TRUE;
    }
    status = status_new(dirty ? source->dirty_context : LIBNBD_CONTEXT_BASE_ALLOCATION, offset,
                        MIN(source->size - offset, STATUS_BYTES));
    /* The poller has a reference until status_done(). */
    g_atomic_ref_count_inc(&status->refs);
    source_pread(source, &status->transfer);
    errnum = status_wait(status, deadline_us);
    if (errnum) {
        be_error_set_errno(error, errnum, "cannot get the map of the disk");
    } else {
        status_collect(status, out);
    }
    status_unref(status);
    return errnum == 0;
}

/* ---- Making ---- */

static const BeSourceOps nbd_ops = {
    .name = "nbd",
    .open = source_open,
    .pread = source_pread,
    .read_now = be_nbd_read_now,
    .extents = source_extents,
    .cancel = source_cancel,
    .close = source_close,
};

gpointer be_nbd_source_new(const BeNbdExport *nbd, const BeSourceOps **ret_ops)
{
    NbdSource *source = g_new0(NbdSource, 1);

    source->export_name = g_strdup(nbd->name);
    source->socket = g_strdup(nbd->socket);
    source->size = nbd->size;
    source->generation = 1;
    source->larger = nbd->larger;
    source->dirty_context =
        nbd->dirty_bitmap ? g_strconcat("qemu:dirty-bitmap:", nbd->dirty_bitmap, NULL) : NULL;
    source->prepare = nbd->prepare;
    source->prepare_user = nbd->prepare_user;
    source->prepare_destroy = nbd->prepare_destroy;
    source->kick_fd = -1;
    source->cancel_fd = -1;
    g_mutex_init(&source->lock);
    *ret_ops = &nbd_ops;
    return source;
}

BeStream *be_stream_new_nbd_export(const BeNbdExport *nbd)
{
    const BeSourceOps *ops;
    gpointer source = be_nbd_source_new(nbd, &ops);

    return be_stream_new(nbd->size, nbd->allocated, ops, source);
}

BeStream *be_stream_new_nbd(const char *unix_socket, const char *export_name, guint64 size,
                            guint64 allocated)
{
    BeNbdExport nbd = {.socket = unix_socket, .name = export_name, .size = size,
                       .allocated = allocated};

    return be_stream_new_nbd_export(&nbd);
}
