/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * reader.c - reads: from the request to the bytes.
 *
 * Entered by the threads of readers (FUSE), by threads of the source when a
 * chunk came, and by the clock.  Everything is guarded by stream->lock.
 *
 * A read is planned as a list of pieces: parts of chunks, and zeroes.  When all
 * of them are there at once, done() is called from inside be_reader_read(); so
 * it is with a small random read, which the calling thread does itself, and with
 * a read that cannot succeed.  Any other read waits in stream->reads.
 */
#include "backend/stream-priv.h"

#include <errno.h>
#include <string.h>

/* Who has read so often at random goes on, and holes need no server with the map; for a
 * few looks at a disk it would be fetched in vain. */
#define STRAYS_FOR_MAP 64

/* Nobody writes here, so these are pages of the kernel's zero page. */
static char zeroes[1024 * 1024];

/* ---- Reader ---- */

static BeReader *reader_new(BeStream *stream, gboolean quiet)
{
    BeReader *reader = g_new0(BeReader, 1);

    g_atomic_ref_count_init(&reader->refs);
    reader->stream = be_stream_ref(stream);
    reader->quiet = quiet;
    reader->chunks = g_ptr_array_new();
    reader->link.data = reader;
    g_mutex_lock(&stream->lock);
    g_queue_push_tail_link(&stream->readers, &reader->link);
    stream->readers_quiet += quiet;
    stream->was_opened |= !quiet;
    g_mutex_unlock(&stream->lock);
    return reader;
}

BeReader *be_reader_new(BeStream *stream)
{
    return reader_new(stream, FALSE);
}

BeReader *be_reader_new_quiet(BeStream *stream)
{
    return reader_new(stream, TRUE);
}

static void reader_unref(BeReader *reader)
{
    if (!g_atomic_ref_count_dec(&reader->refs)) {
        return;
    }
    g_ptr_array_unref(reader->chunks);
    be_stream_unref(reader->stream);
    g_free(reader);
}

/**
 * be_reader_free: see backend.h.  Reads still due end with ECANCELED, on
 * another thread.  Does not block; allowed inside a done().
 */
void be_reader_free(BeReader *reader)
{
    BeStream *stream;

    if (!reader) {
        return;
    }
    stream = reader->stream;
    g_mutex_lock(&stream->lock);
    for (GList *link = stream->reads.head, *next; link; link = next) {
        BeRead *read = link->data;

        next = link->next;
        if (read->reader == reader) {
            be_read_end_locked(read, ECANCELED, &stream->reads_ended);
        }
    }
    be_chunk_abandon_locked(reader);
    g_queue_unlink(&stream->readers, &reader->link);
    stream->readers_quiet -= reader->quiet;
    if (stream->readers.length == 0) {
        be_chunk_spare_free_locked(stream);
    }
    be_stream_unread_locked(stream);
    if (stream->reads_ended.length > 0) {
        be_clock_kick(0);
    }
    g_mutex_unlock(&stream->lock);
    reader_unref(reader);
}

/*
 * Finds out whether this read goes on where others stopped.  Those come from
 * several threads, so "where" is a range that grows with the sequence; and a
 * caller that knows the map skips holes.
 */
static void reader_follow_locked(BeReader *reader, guint64 offset, guint64 length)
{
    const BeExtents *map = reader->stream->map;
    guint64 slack = MIN(reader->run, BE_POOL_BYTES);
    guint64 data = reader->front;
    gboolean follows = offset + slack >= reader->front && offset <= reader->front + slack;

    if (!follows && reader->run > 0 && map
        && be_extents_next(map, reader->front, TRUE, &data) == BE_NEXT_FOUND) {
        follows = offset + slack >= data && offset <= data + slack;
    }
    if (follows) {
        reader->run += length;
        reader->steps += length >= BE_SMALL_READ || reader->run >= 2 * BE_SMALL_READ;
        reader->front = MAX(reader->front, offset + length);
    } else {
        reader->run = length;
        reader->steps = 0;
        reader->front = offset + length;
        reader->ahead_end = 0;
    }
}

/* ---- Pieces ---- */

static void read_grow(BeRead *read)
{
    guint room = read->room * 2;
    struct iovec *iov = g_new(struct iovec, room);
    BeChunk **chunks = g_new(BeChunk *, room);

    memcpy(iov, read->iov, read->count * sizeof(*iov));
    memcpy(chunks, read->chunks, read->count * sizeof(*chunks));
    if (read->iov != read->iov_inline) {
        g_free(read->iov);
        g_free(read->chunks);
    }
    read->iov = iov;
    read->chunks = chunks;
    read->room = room;
}

static void read_add(BeRead *read, BeChunk *chunk, void *base, gsize length)
{
    if (read->count == read->room) {
        read_grow(read);
    }
    read->iov[read->count] = (struct iovec){.iov_base = base, .iov_len = length};
    read->chunks[read->count] = chunk;
    read->count++;
    if (chunk) {
        chunk->pins++;
        read->missing += chunk->state != BE_CHUNK_READY;
    }
}

static void read_add_zeroes(BeRead *read, guint64 length)
{
    while (length > 0) {
        gsize part = MIN(length, sizeof(zeroes));

        read_add(read, NULL, zeroes, part);
        length -= part;
    }
}

static guint64 read_add_chunk(BeRead *read, BeChunk *chunk, guint64 position, guint64 end)
{
    guint64 inside = position - chunk->transfer.offset;
    guint64 length = MIN(end - position, chunk->transfer.length - inside);

    read_add(read, chunk, (char *)chunk->transfer.buffer + inside, length);
    return position + length;
}

void be_read_release_locked(BeRead *read)
{
    for (guint i = 0; i < read->count; i++) {
        BeChunk *chunk = read->chunks[i];

        if (!chunk) {
            continue;
        }
        if (read->state == BE_READ_ENDED && read->errnum == 0) {
            chunk->consumed += read->iov[i].iov_len;
        }
        be_chunk_unpin_locked(chunk);
    }
    read->count = 0;
    read->missing = 0;
}

gboolean be_read_is_throttled_locked(const BeRead *read)
{
    for (guint i = 0; i < read->count; i++) {
        if (read->chunks[i] && read->chunks[i]->due_us != 0) {
            return TRUE;
        }
    }
    return FALSE;
}

/* ---- Plan ---- */

/* Returns: FALSE when there is no buffer; the read is as before. */
static gboolean read_plan_pieces_locked(BeRead *read)
{
    BeReader *reader = read->reader;
    const BeStream *stream = reader->stream;
    gboolean exact = read->exact || reader->steps == 0;
    guint64 position = read->offset;
    guint64 end = read->offset + read->length;

    while (position < end) {
        BeChunk *chunk = be_chunk_find_locked(reader, position, read->exact);
        guint64 start;
        guint32 length;

        if (!chunk) {
            if (!be_chunk_range_locked(stream, position, end, exact, &start, &length)) {
                read_add_zeroes(read, end - position);
                return TRUE;
            }
            /* What begins behind the hole may have been fetched ahead. */
            if (start > position) {
                read_add_zeroes(read, start - position);
                position = start;
                continue;
            }
            chunk = be_chunk_new_locked(reader, start, length, FALSE);
        }
        if (!chunk) {
            be_read_release_locked(read);
            return FALSE;
        }
        position = read_add_chunk(read, chunk, position, end);
    }
    return TRUE;
}

static gboolean read_plan_locked(BeRead *read)
{
    if (!read_plan_pieces_locked(read)) {
        return FALSE;
    }
    for (guint i = 0; i < read->count; i++) {
        if (read->chunks[i] && read->chunks[i]->state == BE_CHUNK_NEW) {
            be_chunk_start_locked(read->chunks[i]);
        }
    }
    read->state = BE_READ_LOADING;
    read->reader->stream->reads_waiting--;
    return TRUE;
}

void be_stream_progress_locked(BeStream *stream, GQueue *ended)
{
    if (stream->reads_waiting == 0 || stream->state != BE_STREAM_OPEN) {
        return;
    }
    for (GList *link = stream->reads.head, *next; link; link = next) {
        BeRead *read = link->data;

        next = link->next;
        if (read->state == BE_READ_WAITING && read_plan_locked(read)) {
            be_chunk_ahead_locked(read->reader);
            if (read->missing == 0) {
                be_read_end_locked(read, 0, ended);
            }
        }
    }
}

/* ---- End ---- */

void be_read_end_locked(BeRead *read, int errnum, GQueue *ended)
{
    BeStream *stream = read->reader->stream;

    g_queue_unlink(&stream->reads, &read->link);
    stream->reads_waiting -= read->state == BE_READ_WAITING;
    read->state = BE_READ_ENDED;
    read->errnum = errnum;
    if (errnum) {
        be_read_release_locked(read);
    } else {
        be_stream_delivered_locked(read->reader, read->offset, read->length);
    }
    g_queue_push_tail_link(ended, &read->link);
}

static gboolean read_uses(const BeRead *read, const BeChunk *chunk)
{
    for (guint i = 0; i < read->count; i++) {
        if (read->chunks[i] == chunk) {
            return TRUE;
        }
    }
    return FALSE;
}

/*
 * A chunk that failed says nothing of the part that a read wanted, unless it
 * was no larger than that.
 */
static gboolean read_try_again_locked(BeRead *read, guint64 start, guint64 length)
{
    BeStream *stream = read->reader->stream;
    guint64 align = MAX(BE_READ_ALIGN, stream->limits.block_min);
    guint64 end = (read->offset + read->length + align - 1) & ~(align - 1);

    if (read->exact || (start >= (read->offset & ~(align - 1)) && start + length <= end)) {
        return FALSE;
    }
    be_read_release_locked(read);
    read->exact = TRUE;
    read->state = BE_READ_WAITING;
    stream->reads_waiting++;
    return TRUE;
}

static void chunk_failed_locked(BeChunk *chunk, int errnum, GQueue *ended)
{
    BeStream *stream = chunk->stream;
    const BeReader *reader = chunk->reader;
    guint64 start = chunk->transfer.offset;
    guint64 length = chunk->transfer.length;

    /* The last read that lets go of a chunk frees it: so hold it. */
    chunk->pins++;
    for (GList *link = stream->reads.head, *next; link; link = next) {
        BeRead *read = link->data;

        next = link->next;
        if (read->reader == reader && read_uses(read, chunk)
            && !read_try_again_locked(read, start, length)) {
            be_read_end_locked(read, errnum, ended);
        }
    }
    be_chunk_unpin_locked(chunk);
}

void be_reader_chunk_done_locked(BeChunk *chunk, int errnum, GQueue *ended)
{
    BeStream *stream = chunk->stream;

    if (errnum) {
        chunk_failed_locked(chunk, errnum, ended);
        return;
    }
    if (chunk->pins == 0) {
        return;
    }
    for (GList *link = stream->reads.head, *next; link; link = next) {
        BeRead *read = link->data;

        next = link->next;
        if (read->reader != chunk->reader || !read_uses(read, chunk)) {
            continue;
        }
        for (guint i = 0; i < read->count; i++) {
            read->missing -= read->chunks[i] == chunk;
        }
        if (read->missing == 0) {
            be_read_end_locked(read, 0, ended);
        }
    }
}

/* ---- Read ---- */

static BeRead *read_new(BeReader *reader, guint64 offset, gsize length, BeReadDone done,
                        gpointer user)
{
    BeRead *read = g_new(BeRead, 1);

    memset(read, 0, G_STRUCT_OFFSET(BeRead, iov_inline));
    g_atomic_ref_count_init(&read->refs);
    g_atomic_ref_count_inc(&reader->refs);
    read->reader = reader;
    read->offset = offset;
    read->length = length;
    read->done = done;
    read->user = user;
    read->link.data = read;
    read->room = BE_READ_INLINE;
    read->iov = read->iov_inline;
    read->chunks = read->chunks_inline;
    return read;
}

void be_read_unref(BeRead *read)
{
    if (!read || !g_atomic_ref_count_dec(&read->refs)) {
        return;
    }
    if (read->iov != read->iov_inline) {
        g_free(read->iov);
        g_free(read->chunks);
    }
    reader_unref(read->reader);
    g_free(read);
}

static void read_now_done(const void *buffer, int errnum, gpointer user)
{
    BeRead *read = user;
    BeStream *stream = read->reader->stream;
    struct iovec iov = {.iov_base = (void *)(gintptr)buffer, .iov_len = read->length};

    if (errnum == 0) {
        g_mutex_lock(&stream->lock);
        be_stream_delivered_locked(read->reader, read->offset, read->length);
        stream->bytes_fetched += read->length;
        g_mutex_unlock(&stream->lock);
    }
    read->done(errnum ? NULL : &iov, errnum ? 0 : 1, errnum, read->user);
}

/* Whether be_reader_read() would be answered without the source. */
static gboolean read_is_here_locked(const BeRead *read)
{
    const BeReader *reader = read->reader;
    const BeExtents *map = reader->stream->map;
    guint64 data;

    if (be_chunk_find_locked(reader, read->offset, FALSE)
        || be_chunk_find_locked(reader, read->offset + read->length - 1, FALSE)) {
        return TRUE;
    }
    if (!map) {
        return FALSE;
    }
    switch (be_extents_next(map, read->offset, TRUE, &data)) {
    case BE_NEXT_NONE:
        return TRUE;
    case BE_NEXT_FOUND:
    case BE_NEXT_UNKNOWN:
        break;
    }
    return data >= read->offset + read->length;
}

/* What is large, or one of a sequence, is for read-ahead; but a source may have at hand
 * what is large. */
static gboolean read_may_be_now_locked(const BeRead *read)
{
    const BeReader *reader = read->reader;

    return read->length <= BE_SMALL_READ ? reader->steps == 0
                                         : read->length <= reader->stream->limits.now_max;
}

/*
 * A small read out of sequence gains nothing from the poller and loses two
 * thread switches: 0.97 instead of 1.33 times the speed of nbdfuse.
 * Returns: whether done() was called.
 */
static gboolean read_try_now_locked(BeRead *read)
{
    BeStream *stream = read->reader->stream;
    gint64 timeout_us = stream->timeout_us;
    gpointer source = stream->source;
    gboolean done;

    if (stream->state != BE_STREAM_OPEN || !stream->ops->read_now
        || be_rate_is_limited(stream->rate) || !read_may_be_now_locked(read)
        || read_is_here_locked(read)) {
        return FALSE;
    }
    read->reader->strays++;
    if (read->reader->strays == STRAYS_FOR_MAP) {
        (void)be_stream_want_locked(stream, TRUE);
    }
    read->state = BE_READ_ENDED;
    stream->busy++;
    g_mutex_unlock(&stream->lock);
    done = stream->ops->read_now(source, read->offset, (guint32)read->length, timeout_us,
                                 read_now_done, read);
    g_mutex_lock(&stream->lock);
    be_stream_busy_end_locked(stream);
    if (!done) {
        read->state = BE_READ_WAITING;
    }
    return done;
}

static void read_submit_locked(BeRead *read, GQueue *ended)
{
    BeStream *stream = read->reader->stream;

    g_atomic_ref_count_inc(&read->refs);
    read->deadline_us = g_get_monotonic_time() + stream->timeout_us;
    g_queue_push_tail_link(&stream->reads, &read->link);
    stream->reads_waiting++;
    if (stream->state == BE_STREAM_DOWN) {
        be_read_end_locked(read, EIO, ended);
        return;
    }
    if (!be_stream_want_locked(stream, read->reader->steps > 0)) {
        be_read_end_locked(read, EIO, ended);
        return;
    }
    if (stream->state != BE_STREAM_OPEN || !read_plan_locked(read)) {
        be_clock_kick(read->deadline_us);
        return;
    }
    be_chunk_ahead_locked(read->reader);
    if (read->missing == 0) {
        be_read_end_locked(read, 0, ended);
    } else {
        be_clock_kick(read->deadline_us);
    }
}

/**
 * be_reader_read: see backend.h.  @done may be called from inside, on the
 * calling thread, when the bytes are there at once, when the read is small and
 * random (then the caller waits for them), and when the read fails at once.
 * EINVAL: more than BE_READ_MAX bytes.
 */
BeRead *be_reader_read(BeReader *reader, guint64 offset, gsize length, BeReadDone done,
                       gpointer user)
{
    BeStream *stream = reader->stream;
    guint64 left = offset < stream->size ? stream->size - offset : 0;
    gboolean too_long = length > BE_READ_MAX;
    BeRead *read = read_new(reader, offset, MIN(length, left), done, user);
    GQueue ended = G_QUEUE_INIT;

    if (too_long || read->length == 0) {
        read->state = BE_READ_ENDED;
        done(too_long ? NULL : read->iov, 0, too_long ? EINVAL : 0, user);
        return read;
    }
    g_mutex_lock(&stream->lock);
    reader_follow_locked(reader, offset, read->length);
    if (read_try_now_locked(read)) {
        g_mutex_unlock(&stream->lock);
        return read;
    }
    read_submit_locked(read, &ended);
    be_stream_deliver_and_unlock(stream, &ended);
    return read;
}

void be_read_cancel(BeRead *read)
{
    BeStream *stream = read->reader->stream;

    g_mutex_lock(&stream->lock);
    if (read->state != BE_READ_ENDED) {
        be_read_end_locked(read, ECANCELED, &stream->reads_ended);
        be_clock_kick(0);
    }
    g_mutex_unlock(&stream->lock);
}
