/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbd-conn.c - one connection: making it, waiting on it, small reads on it.
 *
 * Entered by workers in open(), by the poller, and by threads of readers in
 * be_nbd_read_now(); see nbd-priv.h for who owns a handle.
 */
#include "backend/nbd-priv.h"

#include <errno.h>
#include <poll.h>
#include <sys/mman.h>

#include "backend/error.h"
#include "backend/wait.h"

#define BLOCK_MAX (64u * 1024)
#define REQUEST_MAX (32u * 1024 * 1024)

gboolean be_nbd_prepare(NbdSource *source, GError **error)
{
    char *path;

    if (!source->prepare) {
        return TRUE;
    }
    path = source->prepare(source->prepare_user, error);
    if (!path) {
        return FALSE;
    }
    g_free(source->socket);
    source->socket = path;
    return TRUE;
}

struct nbd_handle *be_nbd_handle_new(NbdSource *source, gboolean plain, GError **error)
{
    struct nbd_handle *handle = nbd_create();

    if (handle && nbd_set_export_name(handle, source->export_name) == 0
        && nbd_set_request_structured_replies(handle, !plain) == 0
        && (plain || nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0)
        && (plain || !source->dirty_context
            || nbd_add_meta_context(handle, source->dirty_context) == 0)
        && nbd_set_pread_initialize(handle, false) == 0
        && nbd_aio_connect_unix(handle, source->socket) == 0) {
        return handle;
    }
    be_error_from_nbd(error, "cannot connect to the NBD server");
    nbd_close(handle);
    return NULL;
}

/* What the server says of block sizes is checked here and believed later. */
static gboolean read_limits(struct nbd_handle *handle, BeSourceLimits *ret_limits)
{
    gint64 minimum = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);
    gint64 maximum = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);

    minimum = MAX(minimum, 1);
    maximum = maximum > 0 ? MIN(maximum, REQUEST_MAX) : REQUEST_MAX;
    if (minimum > BLOCK_MAX || (minimum & (minimum - 1)) != 0 || maximum < minimum) {
        return FALSE;
    }
    *ret_limits = (BeSourceLimits){.block_min = (guint32)minimum,
                                   .request_max = (guint32)maximum};
    return TRUE;
}

gboolean be_nbd_handle_check(NbdSource *source, struct nbd_handle *handle, GError **error)
{
    gint64 size = nbd_get_size(handle);
    BeSourceLimits limits;

    if (size < 0 || source->size >= BE_EXTENTS_SIZE_MAX
        || (source->larger ? (guint64)size < source->size : (guint64)size != source->size)) {
        g_set_error(error, BE_ERROR, EIO,
                    "the NBD server says the disk has %" G_GINT64_FORMAT
                    " bytes instead of %" G_GUINT64_FORMAT,
                    size, source->size);
        return FALSE;
    }
    if (!read_limits(handle, &limits)) {
        g_set_error(error, BE_ERROR, EIO, "the NBD server wants block sizes that are not valid");
        return FALSE;
    }
    /* All requests are made for what the first connection wanted. */
    if (source->limits.block_min != 0
        && (limits.block_min > source->limits.block_min
            || limits.request_max < source->limits.request_max)) {
        g_set_error(error, BE_ERROR, EIO, "the NBD server changed its block sizes");
        return FALSE;
    }
    return TRUE;
}

void be_nbd_handle_learn(NbdSource *source, struct nbd_handle *handle)
{
    read_limits(handle, &source->limits);
    source->multi_conn = nbd_can_multi_conn(handle) == 1;
    source->can_allocation =
        nbd_can_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
    source->can_dirty = source->dirty_context
                        && nbd_can_meta_context(handle, source->dirty_context) == 1;
    source->conns_max = 1;
}

gboolean be_nbd_handle_is_dead(struct nbd_handle *handle)
{
    return nbd_aio_is_dead(handle) || nbd_aio_is_closed(handle);
}

short be_nbd_handle_events(struct nbd_handle *handle)
{
    unsigned direction = nbd_aio_get_direction(handle);

    return (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0)
                   | (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

gboolean be_nbd_handle_notify(struct nbd_handle *handle, short revents)
{
    unsigned direction = nbd_aio_get_direction(handle);
    int result = 0;

    /* Never read on a mere guess: libnbd then waits for an answer, and sends
     * nothing more, whether or not something was asked. */
    if ((direction & LIBNBD_AIO_DIRECTION_READ) && (revents & (POLLIN | POLLHUP | POLLERR))) {
        result = nbd_aio_notify_read(handle);
    } else if ((direction & LIBNBD_AIO_DIRECTION_WRITE)
               && (revents & (POLLOUT | POLLHUP | POLLERR))) {
        result = nbd_aio_notify_write(handle);
    } else if (revents & (POLLHUP | POLLERR | POLLNVAL)) {
        return FALSE;
    }
    return result == 0 && !be_nbd_handle_is_dead(handle);
}

static int answer_of(struct nbd_handle *handle, gint64 cookie, gboolean *ret_done)
{
    int result;

    if (cookie == 0) {
        *ret_done = nbd_aio_is_ready(handle) == 1;
        return 0;
    }
    result = nbd_aio_command_completed(handle, (uint64_t)cookie);
    *ret_done = result != 0;
    return result < 0 ? EIO : 0;
}

int be_nbd_handle_wait(NbdSource *source, struct nbd_handle *handle, gint64 cookie,
                       gint64 deadline_us, BePolling *polling)
{
    int other_fd = be_wait_fd();

    for (;;) {
        struct pollfd fds[] = {
            {.fd = source->cancel_fd, .events = POLLIN},
            {.fd = -1},
            {.fd = other_fd, .events = POLLIN},
        };
        gint64 left_us = deadline_us - g_get_monotonic_time();
        gboolean done;
        int errnum;

        if (be_nbd_handle_is_dead(handle)) {
            return EPIPE;
        }
        errnum = answer_of(handle, cookie, &done);
        if (done) {
            return errnum;
        }
        fds[1].fd = nbd_aio_get_fd(handle);
        fds[1].events = be_nbd_handle_events(handle);
        if (left_us <= 0) {
            return ETIMEDOUT;
        }
        if (be_poll(polling, fds, G_N_ELEMENTS(fds),
                    (int)MIN(left_us / 1000 + 1, G_MAXINT)) < 0 && errno != EINTR) {
            return EPIPE;
        }
        if (fds[0].revents) {
            return ECANCELED;
        }
        if (fds[1].revents && !be_nbd_handle_notify(handle, fds[1].revents)) {
            return EPIPE;
        }
        /* Told once, somebody else looks after it. */
        if (fds[2].revents) {
            be_wait_told();
            other_fd = -1;
        }
    }
}

/* ---- Small reads on the caller's thread ---- */

/*
 * The caller may be one of the few threads that serve the whole mount: it waits
 * no longer than a disk takes, and then leaves these reads alone for a while.
 */
#define DIRECT_WAIT_US (20 * 1000)
#define DIRECT_PAUSE_US (5 * G_USEC_PER_SEC)

void be_nbd_direct_free(NbdDirect *direct)
{
    nbd_close(direct->handle);
    munmap(direct->buffer, NBD_DIRECT_BUFFER);
    g_free(direct);
}

void be_nbd_direct_add(NbdSource *source, struct nbd_handle *handle)
{
    void *buffer = mmap(NULL, NBD_DIRECT_BUFFER, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NbdDirect *direct;

    if (buffer == MAP_FAILED) {
        nbd_close(handle);
        return;
    }
    direct = g_new(NbdDirect, 1);
    *direct = (NbdDirect){.handle = handle, .buffer = buffer};
    g_mutex_lock(&source->lock);
    g_queue_push_head(&source->idle, direct);
    g_mutex_unlock(&source->lock);
}

/* The last used comes first: its memory is warm.  NULL: all are busy, or gone. */
static NbdDirect *direct_take(NbdSource *source)
{
    NbdDirect *direct = NULL;

    g_mutex_lock(&source->lock);
    if (g_get_monotonic_time() >= source->direct_after_us) {
        direct = g_queue_pop_head(&source->idle);
    }
    g_mutex_unlock(&source->lock);
    return direct;
}

/* A slow server is no case for this: the poller's reads can be cancelled. */
static void direct_pause(NbdSource *source)
{
    g_mutex_lock(&source->lock);
    source->direct_after_us = g_get_monotonic_time() + DIRECT_PAUSE_US;
    g_mutex_unlock(&source->lock);
}

static void direct_give_back(NbdSource *source, NbdDirect *direct, gboolean usable)
{
    if (!usable) {
        be_nbd_direct_free(direct);
        return;
    }
    g_mutex_lock(&source->lock);
    g_queue_push_head(&source->idle, direct);
    g_mutex_unlock(&source->lock);
}

gboolean be_nbd_read_now(gpointer data, guint64 offset, guint32 length, gint64 timeout_us,
                         BeSourceNow sink, gpointer user)
{
    NbdSource *source = data;
    guint64 block = source->limits.block_min;
    guint64 start = offset & ~(block - 1);
    guint64 end = MIN((offset + length + block - 1) & ~(block - 1), source->size);
    gint64 deadline_us = g_get_monotonic_time() + MIN(timeout_us, DIRECT_WAIT_US);
    NbdDirect *direct = NULL;
    gint64 cookie;
    int errnum;

    if (end - start <= MIN(source->limits.request_max, NBD_DIRECT_BUFFER)) {
        direct = direct_take(source);
    }
    if (!direct) {
        return FALSE;
    }
    cookie = nbd_aio_pread(direct->handle, direct->buffer, end - start, start, NBD_NULL_COMPLETION,
                           0);
    errnum = cookie < 0 ? EPIPE
                        : be_nbd_handle_wait(source, direct->handle, cookie, deadline_us,
                                             &direct->polling);
    if (errnum == EPIPE || errnum == ETIMEDOUT) {
        direct_give_back(source, direct, FALSE);
        direct_pause(source);
        return FALSE;
    }
    if (errnum == 0) {
        sink((char *)direct->buffer + (offset - start), 0, user);
    } else {
        sink(NULL, errnum == ETIMEDOUT ? ETIMEDOUT : EIO, user);
    }
    /* A buffer that the server may still write to is no buffer for the next read. */
    direct_give_back(source, direct,
                     errnum == 0 || (errnum == EIO && nbd_aio_in_flight(direct->handle) == 0));
    return TRUE;
}
