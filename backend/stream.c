/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream.c - the life of a stream: open, map, fail, close; see stream.h.
 *
 * Entered by any thread.  Work that blocks (opening, each step of the map)
 * runs on a small pool of workers shared by all streams; it counts as "busy",
 * as do callbacks under way, and close() waits until nothing is.
 */
#include "backend/stream-priv.h"

#include <errno.h>
#include <string.h>

#include "backend/error.h"

/* Openers block for seconds at a dead server; so more than a few. */
#define WORKERS 16

typedef struct {
    void (*run)(BeStream *stream);
    BeStream *stream;
} BeTask;

/* ---- Workers ---- */

static void task_run(gpointer data, gpointer user G_GNUC_UNUSED)
{
    g_autofree BeTask *task = data;

    task->run(task->stream);
}

static void task_push(BeStream *stream, void (*run)(BeStream *stream))
{
    static gsize once;
    static GThreadPool *pool;
    BeTask *task = g_new(BeTask, 1);

    if (g_once_init_enter(&once)) {
        pool = g_thread_pool_new(task_run, NULL, WORKERS, FALSE, NULL);
        g_once_init_leave(&once, 1);
    }
    *task = (BeTask){.run = run, .stream = stream};
    g_thread_pool_push(pool, task, NULL);
}

/* A task has a reference and counts as busy until be_stream_task_end_and_unlock(). */
void be_stream_task_start_locked(BeStream *stream, void (*run)(BeStream *stream))
{
    stream->busy++;
    task_push(be_stream_ref(stream), run);
}

/* ---- All of them ---- */

static GMutex all_lock;
static GCond all_gone;
static guint all_attached;     /* guarded by all_lock; streams that were opened, and not closed */

static void count_attached(int change)
{
    g_mutex_lock(&all_lock);
    all_attached += (guint)change;
    if (all_attached == 0) {
        g_cond_broadcast(&all_gone);
    }
    g_mutex_unlock(&all_lock);
}

gboolean be_streams_wait(gint64 timeout_us)
{
    gint64 deadline_us = g_get_monotonic_time() + timeout_us;
    gboolean gone;

    g_mutex_lock(&all_lock);
    while (all_attached > 0 && g_cond_wait_until(&all_gone, &all_lock, deadline_us)) {
    }
    gone = all_attached == 0;
    g_mutex_unlock(&all_lock);
    return gone;
}

/* ---- Object ---- */

BeStream *be_stream_new(guint64 size, guint64 allocated_estimate, const BeSourceOps *ops,
                        gpointer source)
{
    BeStream *stream = g_new0(BeStream, 1);

    g_atomic_ref_count_init(&stream->refs);
    g_mutex_init(&stream->lock);
    g_cond_init(&stream->quiet);
    stream->size = size;
    stream->allocated = MIN(allocated_estimate, size);
    stream->ops = ops;
    stream->source = source;
    stream->timeout_us = BE_STREAM_TIMEOUT_US;
    stream->spare = g_ptr_array_new();
    stream->delivered = be_covered_new();
    stream->whole_end = size;
    return stream;
}

BeStream *be_stream_ref(BeStream *stream)
{
    g_atomic_ref_count_inc(&stream->refs);
    return stream;
}

static void stream_free(BeStream *stream)
{
    if (stream->source) {
        stream->ops->cancel(stream->source);
        stream->ops->close(stream->source);
    }
    be_chunk_spare_free_locked(stream);
    g_ptr_array_unref(stream->spare);
    be_extents_free(stream->map);
    be_extents_free(stream->dirty);
    be_covered_free(stream->delivered);
    be_rate_unref(stream->rate);
    g_free(stream->reason);
    g_cond_clear(&stream->quiet);
    g_mutex_clear(&stream->lock);
    g_free(stream);
}

static void close_and_free(BeStream *stream)
{
    be_stream_close(stream);
    stream_free(stream);
}

void be_stream_unref(BeStream *stream)
{
    gboolean attached;

    if (!stream || !g_atomic_ref_count_dec(&stream->refs)) {
        return;
    }
    g_mutex_lock(&stream->lock);
    attached = stream->attached;
    g_mutex_unlock(&stream->lock);
    /* The last reference may go inside a callback; threads cannot be joined there. */
    if (attached) {
        task_push(stream, close_and_free);
    } else {
        stream_free(stream);
    }
}

guint64 be_stream_size(BeStream *stream)
{
    return stream->size;
}

guint64 be_stream_allocated(BeStream *stream)
{
    guint64 allocated;

    g_mutex_lock(&stream->lock);
    allocated = stream->allocated;
    g_mutex_unlock(&stream->lock);
    return allocated;
}

guint64 be_stream_bytes_read(BeStream *stream)
{
    guint64 bytes;

    g_mutex_lock(&stream->lock);
    bytes = stream->bytes_read;
    g_mutex_unlock(&stream->lock);
    return bytes;
}

guint64 be_stream_bytes_fetched(BeStream *stream)
{
    guint64 bytes;

    g_mutex_lock(&stream->lock);
    bytes = stream->bytes_fetched;
    g_mutex_unlock(&stream->lock);
    return bytes;
}

/*
 * Who skips holes leaves gaps; with the hole behind it each piece touches the next
 * one, so that a disk of many pieces is still one range.
 */
void be_stream_delivered_locked(const BeReader *reader, guint64 offset, guint64 length)
{
    BeStream *stream = reader->stream;
    guint64 end = offset + length;
    guint64 data;

    stream->bytes_read += length;
    be_meter_add(&stream->meter, g_get_monotonic_time(), length);
    if (reader->quiet) {
        return;
    }
    if (stream->map && be_extents_next(stream->map, end, TRUE, &data) == BE_NEXT_FOUND) {
        end = data;
    }
    be_covered_add(stream->delivered, offset, end);
}

void be_stream_set_essence(BeStream *stream, guint64 start, guint64 end)
{
    stream->whole_start = start;
    stream->whole_end = end;
}

static gboolean is_whole_locked(const BeStream *stream)
{
    return stream->was_opened
           && be_covered_all(stream->delivered, stream->whole_start, stream->whole_end,
                             stream->map);
}

gboolean be_stream_was_read_whole(BeStream *stream)
{
    gboolean whole;

    g_mutex_lock(&stream->lock);
    whole = is_whole_locked(stream);
    g_mutex_unlock(&stream->lock);
    return whole;
}

double be_stream_progress(BeStream *stream)
{
    guint64 length = stream->whole_end - stream->whole_start;
    double progress = 1;

    g_mutex_lock(&stream->lock);
    if (!is_whole_locked(stream)) {
        guint64 bytes =
            be_covered_bytes(stream->delivered, stream->whole_start, stream->whole_end);

        progress = length ? MIN((double)bytes / (double)length, 0.999) : 0;
    }
    g_mutex_unlock(&stream->lock);
    return progress;
}

guint64 be_stream_read_rate(BeStream *stream)
{
    guint64 rate;

    g_mutex_lock(&stream->lock);
    rate = be_meter_rate(&stream->meter, g_get_monotonic_time());
    g_mutex_unlock(&stream->lock);
    return rate;
}

guint be_stream_readers(BeStream *stream)
{
    guint readers;

    g_mutex_lock(&stream->lock);
    readers = stream->readers.length;
    g_mutex_unlock(&stream->lock);
    return readers;
}

guint be_stream_takers(BeStream *stream)
{
    guint takers;

    g_mutex_lock(&stream->lock);
    takers = stream->readers.length - stream->readers_quiet;
    g_mutex_unlock(&stream->lock);
    return takers;
}

char *be_stream_reason(BeStream *stream)
{
    char *reason;

    g_mutex_lock(&stream->lock);
    reason = g_strdup(stream->reason);
    g_mutex_unlock(&stream->lock);
    return reason;
}

void be_stream_set_timeout(BeStream *stream, gint64 timeout_us)
{
    g_mutex_lock(&stream->lock);
    stream->timeout_us = timeout_us;
    g_mutex_unlock(&stream->lock);
}

void be_stream_set_rate(BeStream *stream, BeRate *rate)
{
    BeRate *old;

    g_mutex_lock(&stream->lock);
    old = stream->rate;
    stream->rate = rate ? be_rate_ref(rate) : NULL;
    be_chunk_throttle_again_locked(stream);
    g_mutex_unlock(&stream->lock);
    be_rate_unref(old);
}

void be_stream_share_rate(BeStream *stream, BeStream *other)
{
    BeRate *rate;

    g_mutex_lock(&other->lock);
    rate = other->rate ? be_rate_ref(other->rate) : NULL;
    g_mutex_unlock(&other->lock);
    be_stream_set_rate(stream, rate);
    be_rate_unref(rate);
}

void be_stream_unread_locked(BeStream *stream)
{
    if (stream->readers.length == stream->readers_quiet && stream->state == BE_STREAM_OPEN
        && stream->ops->unread) {
        stream->ops->unread(stream->source);
    }
}

void be_stream_rest(BeStream *stream)
{
    g_mutex_lock(&stream->lock);
    be_stream_unread_locked(stream);
    g_mutex_unlock(&stream->lock);
}

/* ---- Callbacks ---- */

void be_stream_busy_end_locked(BeStream *stream)
{
    stream->busy--;
    /* GLib makes a system call of it even when nobody waits. */
    if (stream->busy == 0 && stream->closing) {
        g_cond_broadcast(&stream->quiet);
    }
}

void be_stream_deliver_and_unlock(BeStream *stream, GQueue *ended)
{
    GQueue delivered = G_QUEUE_INIT;
    GList *link;

    if (ended->length == 0) {
        g_mutex_unlock(&stream->lock);
        return;
    }
    stream->busy++;
    while ((link = g_queue_pop_head_link(ended))) {
        BeRead *read = link->data;

        g_mutex_unlock(&stream->lock);
        read->done(read->errnum ? NULL : read->iov, read->errnum ? 0 : (int)read->count,
                   read->errnum, read->user);
        g_mutex_lock(&stream->lock);
        be_read_release_locked(read);
        be_stream_progress_locked(stream, ended);
        g_queue_push_tail_link(&delivered, link);
    }
    be_stream_busy_end_locked(stream);
    g_mutex_unlock(&stream->lock);
    /* May free the reader, and the stream with it. */
    while ((link = g_queue_pop_head_link(&delivered))) {
        be_read_unref(link->data);
    }
}

/* For threads that may call back; the stream is busy while they do. */
void be_stream_deliver_all_and_unlock(BeStream *stream, GQueue *reads, GQueue *seeks)
{
    GQueue ended_seeks = *seeks;

    g_queue_init(seeks);
    if (ended_seeks.length > 0) {
        stream->busy++;
        g_mutex_unlock(&stream->lock);
        be_seeks_deliver(&ended_seeks);
        g_mutex_lock(&stream->lock);
        be_stream_busy_end_locked(stream);
    }
    be_stream_deliver_and_unlock(stream, reads);
}

void be_stream_task_end_and_unlock(BeStream *stream, GQueue *reads, GQueue *seeks)
{
    be_stream_deliver_all_and_unlock(stream, reads, seeks);
    g_mutex_lock(&stream->lock);
    be_stream_busy_end_locked(stream);
    g_mutex_unlock(&stream->lock);
    be_stream_unref(stream);
}

static void end_all_locked(BeStream *stream, int errnum, GQueue *reads, GQueue *seeks)
{
    BeRead *read;

    while ((read = g_queue_peek_head(&stream->reads))) {
        be_read_end_locked(read, errnum, reads);
    }
    be_seeks_end_locked(stream, errnum, seeks);
}

/* ---- Open ---- */

int be_stream_errno(const GError *error)
{
    return g_error_matches(error, BE_ERROR, ETIMEDOUT) ? ETIMEDOUT : EIO;
}

/* The largest power of 2 that the source takes in one request. */
static guint32 cell_size(const BeSourceLimits *limits)
{
    guint32 cell = BE_CHUNK_SIZE;

    while (cell > limits->request_max) {
        cell /= 2;
    }
    return cell;
}

static void open_task(BeStream *stream)
{
    g_autoptr(GError) error = NULL;
    BeSourceLimits limits = {0};
    GQueue reads = G_QUEUE_INIT;
    GQueue seeks = G_QUEUE_INIT;
    gint64 timeout_us;
    gboolean ok;

    g_mutex_lock(&stream->lock);
    timeout_us = stream->timeout_us;
    g_mutex_unlock(&stream->lock);
    ok = stream->ops->open(stream->source, timeout_us, &limits, &error);
    g_mutex_lock(&stream->lock);
    if (ok) {
        stream->limits = limits;
        stream->cell = cell_size(&limits);
    }
    if (stream->state == BE_STREAM_OPENING) {
        stream->state = ok ? BE_STREAM_OPEN : BE_STREAM_IDLE;
        if (!ok) {
            g_debug("stream: %s", error->message);
            end_all_locked(stream, be_stream_errno(error), &reads, &seeks);
        } else if (stream->map_wanted) {
            be_stream_map_start_locked(stream);
        }
        be_stream_progress_locked(stream, &reads);
        be_stream_unread_locked(stream);
    }
    be_stream_task_end_and_unlock(stream, &reads, &seeks);
}

/* The clock must run before anything can wait. */
static gboolean attach_locked(BeStream *stream)
{
    if (!stream->attached) {
        stream->attached = be_clock_attach(stream);
        if (stream->attached) {
            count_attached(1);
        }
    }
    return stream->attached;
}

gboolean be_stream_want_locked(BeStream *stream, gboolean map)
{
    if (stream->state == BE_STREAM_OPEN && map && stream->map_state == BE_MAP_NONE) {
        be_stream_map_start_locked(stream);
    }
    if (stream->state == BE_STREAM_OPENING || stream->state == BE_STREAM_IDLE) {
        stream->map_wanted |= map;
    }
    if (stream->state != BE_STREAM_IDLE) {
        return TRUE;
    }
    if (!attach_locked(stream)) {
        return FALSE;
    }
    stream->state = BE_STREAM_OPENING;
    be_stream_task_start_locked(stream, open_task);
    return TRUE;
}

/* ---- Clock ---- */

static void expire_locked(BeStream *stream, gint64 now_us, GQueue *ended)
{
    BeRead *read;

    while ((read = g_queue_peek_head(&stream->reads)) && read->deadline_us <= now_us) {
        /* It is we who make it wait, not the server: by the limit, or for a buffer that
         * waits for the limit. */
        if (be_read_is_throttled_locked(read)
            || (read->state == BE_READ_WAITING && stream->throttled.length > 0)) {
            read->deadline_us = now_us + stream->timeout_us;
            g_queue_unlink(&stream->reads, &read->link);
            g_queue_push_tail_link(&stream->reads, &read->link);
            continue;
        }
        be_read_end_locked(read, ETIMEDOUT, ended);
    }
}

gint64 be_stream_tick(BeStream *stream, gint64 now_us)
{
    GQueue seeks = G_QUEUE_INIT;
    gint64 next_us = G_MAXINT64;
    const BeRead *read;
    const BeChunk *chunk;
    GQueue reads;

    g_mutex_lock(&stream->lock);
    reads = stream->reads_ended;
    g_queue_init(&stream->reads_ended);
    seeks = stream->seeks_ended;
    g_queue_init(&stream->seeks_ended);
    if (stream->state != BE_STREAM_DOWN) {
        expire_locked(stream, now_us, &reads);
        be_chunk_due_locked(stream, now_us);
    }
    read = g_queue_peek_head(&stream->reads);
    if (read) {
        next_us = read->deadline_us;
    }
    chunk = g_queue_peek_head(&stream->throttled);
    if (chunk) {
        next_us = MIN(next_us, chunk->due_us);
    }
    be_stream_deliver_all_and_unlock(stream, &reads, &seeks);
    return next_us;
}

/* ---- End ---- */

void be_stream_fail(BeStream *stream, const char *reason)
{
    g_mutex_lock(&stream->lock);
    if (stream->state != BE_STREAM_DOWN) {
        stream->state = BE_STREAM_DOWN;
        stream->reason = g_strdup(reason);
        end_all_locked(stream, EIO, &stream->reads_ended, &stream->seeks_ended);
        be_chunk_unthrottle_locked(stream);
        if (stream->source) {
            stream->ops->cancel(stream->source);
        }
        be_clock_kick(0);
    }
    g_mutex_unlock(&stream->lock);
}

static void wait_quiet_locked(BeStream *stream)
{
    while (stream->busy > 0) {
        g_cond_wait(&stream->quiet, &stream->lock);
    }
}

void be_stream_close(BeStream *stream)
{
    gboolean attached;
    gpointer source;

    be_stream_fail(stream, "closed");
    g_mutex_lock(&stream->lock);
    if (stream->closing) {
        while (!stream->closed) {
            g_cond_wait(&stream->quiet, &stream->lock);
        }
        g_mutex_unlock(&stream->lock);
        return;
    }
    stream->closing = TRUE;
    be_stream_deliver_all_and_unlock(stream, &stream->reads_ended, &stream->seeks_ended);
    g_mutex_lock(&stream->lock);
    wait_quiet_locked(stream);
    source = g_steal_pointer(&stream->source);
    g_mutex_unlock(&stream->lock);
    stream->ops->close(source);
    g_mutex_lock(&stream->lock);
    wait_quiet_locked(stream);
    attached = stream->attached;
    g_mutex_unlock(&stream->lock);
    if (attached) {
        be_clock_detach(stream);
    }
    g_mutex_lock(&stream->lock);
    stream->attached = FALSE;
    stream->closed = TRUE;
    g_cond_broadcast(&stream->quiet);
    /* A seek may have come in when the clock was just leaving. */
    be_stream_deliver_all_and_unlock(stream, &stream->reads_ended, &stream->seeks_ended);
    if (attached) {
        count_attached(-1);
    }
}
