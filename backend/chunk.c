/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * chunk.c - the buffers of readers and what is fetched into them.
 *
 * All functions run with stream->lock held, on threads of readers, of the
 * source and of the clock; only chunk_done() takes it itself.
 *
 * Buffers are mapped, not allocated: a server that leaves out bytes of a reply
 * can then show zeroes or older bytes of the same disk, and never memory of
 * something else (libnbd does not clear buffers for us, which costs 12 %).  They are
 * parts of huge pages, where the kernel has some: that saves a fifth of our processor.
 */
#include "backend/stream-priv.h"

#include <sys/mman.h>

/* A huge page, or several, of each processor that QEMU runs on. */
#define SLAB_BYTES (2u * 1024 * 1024)

/* Requests under a limit are no smaller than this: what a read needs has to be held. */
#define LIMITED_CELL_MIN (16u * 1024)

static guint64 chunk_end(const BeChunk *chunk)
{
    return chunk->transfer.offset + chunk->transfer.length;
}

/* ---- Buffers ---- */

static guint chunk_budget(const BeStream *stream)
{
    guint active = MAX(stream->readers_active, 1);

    return MAX(BE_POOL_BYTES / BE_CHUNK_SIZE / active, 8);
}

/* What is fetched comes whole, so under a limit it is no more than a tenth of a second's. */
static guint32 cell_of(const BeStream *stream)
{
    guint64 limit = stream->rate ? be_rate_get(stream->rate) : 0;
    guint32 cell_min = MAX(LIMITED_CELL_MIN, stream->limits.block_min);
    guint32 cell = stream->cell;

    while (limit > 0 && cell > cell_min && cell > limit / 10) {
        cell /= 2;
    }
    return cell;
}

/* How far reads of one call may go over the budget, so that a read that holds many
 * small chunks can always be completed. */
static guint overdraft(const BeStream *stream)
{
    return BE_READ_MAX / cell_of(stream) + 4;
}

/* Buffers that share a huge page; it is unmapped with the last of them. */
struct BeSlab {
    char *base;
    guint chunks;              /* guarded by the lock of their stream */
};

static void chunk_free(BeChunk *chunk)
{
    BeSlab *slab = chunk->slab;

    if (--slab->chunks == 0) {
        munmap(slab->base, SLAB_BYTES);
        g_free(slab);
    }
    g_free(chunk);
}

void be_chunk_spare_free_locked(BeStream *stream)
{
    for (guint i = 0; i < stream->spare->len; i++) {
        chunk_free(g_ptr_array_index(stream->spare, i));
    }
    g_ptr_array_set_size(stream->spare, 0);
}

/* Only what is as large as a huge page, and begins where one does, becomes one. */
static char *map_slab(void)
{
    char *pages = mmap(NULL, 2 * SLAB_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    gsize before;

    if (pages == MAP_FAILED) {
        return NULL;
    }
    before = (0 - (gsize)pages) % SLAB_BYTES;
    if (before > 0) {
        munmap(pages, before);
    }
    munmap(pages + before + SLAB_BYTES, SLAB_BYTES - before);
    (void)madvise(pages + before, SLAB_BYTES, MADV_HUGEPAGE);
    return pages + before;
}

static gboolean add_spares_locked(BeStream *stream)
{
    char *pages = map_slab();
    BeSlab *slab;

    if (!pages) {
        return FALSE;
    }
    slab = g_new0(BeSlab, 1);
    slab->base = pages;
    for (; slab->chunks < SLAB_BYTES / BE_CHUNK_SIZE; slab->chunks++) {
        BeChunk *chunk = g_new0(BeChunk, 1);

        chunk->stream = stream;
        chunk->slab = slab;
        chunk->transfer.buffer = pages + (gsize)slab->chunks * BE_CHUNK_SIZE;
        g_ptr_array_add(stream->spare, chunk);
    }
    return TRUE;
}

static BeChunk *chunk_take_locked(BeStream *stream)
{
    if (stream->spare->len == 0 && !add_spares_locked(stream)) {
        return NULL;
    }
    return g_ptr_array_remove_index_fast(stream->spare, stream->spare->len - 1);
}

void be_chunk_drop_locked(BeChunk *chunk)
{
    BeStream *stream = chunk->stream;
    BeReader *reader = chunk->reader;

    if (reader) {
        g_ptr_array_remove_fast(reader->chunks, chunk);
        if (reader->chunks->len == 0) {
            stream->readers_active--;
        }
    }
    /* Spares are for readers that will come back for them. */
    if (stream->readers.length > 0 && stream->spare->len < BE_POOL_BYTES / BE_CHUNK_SIZE) {
        g_ptr_array_add(stream->spare, chunk);
        return;
    }
    /* Without readers the rest of its slab goes, too, and takes the pages with it. */
    if (stream->readers.length > 0) {
        (void)madvise(chunk->transfer.buffer, BE_CHUNK_SIZE, MADV_DONTNEED);
    }
    chunk_free(chunk);
}

/*
 * A chunk that can go: one behind the reader, the hindmost first, as reads come
 * slightly out of order; if @any, else the one farthest ahead.
 */
static BeChunk *chunk_victim(const BeReader *reader, gboolean any)
{
    BeChunk *behind = NULL;
    BeChunk *ahead = NULL;

    for (guint i = 0; i < reader->chunks->len; i++) {
        BeChunk *chunk = g_ptr_array_index(reader->chunks, i);

        if (chunk->state != BE_CHUNK_READY || chunk->pins > 0) {
            continue;
        }
        if (chunk_end(chunk) <= reader->front) {
            if (!behind || chunk->transfer.offset < behind->transfer.offset) {
                behind = chunk;
            }
        } else if (!ahead || chunk->transfer.offset > ahead->transfer.offset) {
            ahead = chunk;
        }
    }
    return behind || !any ? behind : ahead;
}

BeChunk *be_chunk_new_locked(BeReader *reader, guint64 offset, guint32 length, gboolean ahead)
{
    BeStream *stream = reader->stream;
    guint budget = chunk_budget(stream);
    BeChunk *chunk;

    if (reader->chunks->len >= budget) {
        BeChunk *victim = chunk_victim(reader, !ahead);

        if (victim) {
            be_chunk_drop_locked(victim);
        } else if (ahead || reader->chunks->len >= budget + overdraft(stream)) {
            return NULL;
        }
    }
    chunk = chunk_take_locked(stream);
    if (!chunk) {
        return NULL;
    }
    chunk->transfer.offset = offset;
    chunk->transfer.length = length;
    chunk->reader = reader;
    chunk->state = BE_CHUNK_NEW;
    chunk->pins = 0;
    chunk->consumed = 0;
    chunk->due_us = 0;
    if (reader->chunks->len == 0) {
        stream->readers_active++;
    }
    g_ptr_array_add(reader->chunks, chunk);
    return chunk;
}

void be_chunk_unpin_locked(BeChunk *chunk)
{
    chunk->pins--;
    if (chunk->pins > 0 || chunk->state == BE_CHUNK_LOADING) {
        return;
    }
    if (!chunk->reader || chunk->state != BE_CHUNK_READY
        || chunk->consumed >= chunk->transfer.length) {
        be_chunk_drop_locked(chunk);
    }
}

BeChunk *be_chunk_find_locked(const BeReader *reader, guint64 offset, gboolean ready)
{
    BeChunk *found = NULL;

    for (guint i = 0; i < reader->chunks->len; i++) {
        BeChunk *chunk = g_ptr_array_index(reader->chunks, i);

        if (offset < chunk->transfer.offset || offset >= chunk_end(chunk)) {
            continue;
        }
        if (chunk->state == BE_CHUNK_READY) {
            return chunk;
        }
        if (!ready && chunk->state != BE_CHUNK_FAILED) {
            found = chunk;
        }
    }
    return found;
}

/* It waited for the limit, and is not fetched any more. */
static void chunk_unthrottle_locked(BeChunk *chunk)
{
    BeStream *stream = chunk->stream;

    g_queue_unlink(&stream->throttled, &chunk->due_link);
    chunk->due_us = 0;
    chunk->state = BE_CHUNK_FAILED;
    if (stream->rate) {
        be_rate_refund(stream->rate, chunk->transfer.length);
    }
}

void be_chunk_abandon_locked(BeReader *reader)
{
    while (reader->chunks->len > 0) {
        BeChunk *chunk = g_ptr_array_index(reader->chunks, reader->chunks->len - 1);

        if (chunk->due_us != 0) {
            chunk_unthrottle_locked(chunk);
        }
        if (chunk->pins == 0 && chunk->state != BE_CHUNK_LOADING) {
            be_chunk_drop_locked(chunk);
            continue;
        }
        chunk->reader = NULL;
        g_ptr_array_set_size(reader->chunks, (gint)reader->chunks->len - 1);
        if (reader->chunks->len == 0) {
            reader->stream->readers_active--;
        }
    }
}

/* ---- Fetching ---- */

static void chunk_done(BeTransfer *transfer, int errnum)
{
    BeChunk *chunk = (BeChunk *)transfer;
    BeStream *stream = chunk->stream;
    GQueue ended = G_QUEUE_INIT;

    g_mutex_lock(&stream->lock);
    chunk->state = errnum ? BE_CHUNK_FAILED : BE_CHUNK_READY;
    if (errnum == 0) {
        stream->bytes_fetched += transfer->length;
    }
    if (chunk->reader) {
        be_reader_chunk_done_locked(chunk, errnum, &ended);
    } else {
        be_chunk_drop_locked(chunk);
    }
    be_stream_progress_locked(stream, &ended);
    be_stream_deliver_and_unlock(stream, &ended);
}

static void chunk_submit_locked(BeChunk *chunk)
{
    chunk->due_us = 0;
    chunk->stream->ops->pread(chunk->stream->source, &chunk->transfer);
}

void be_chunk_start_locked(BeChunk *chunk)
{
    BeStream *stream = chunk->stream;
    gint64 due_us = 0;

    chunk->state = BE_CHUNK_LOADING;
    chunk->transfer.done = chunk_done;
    if (stream->rate) {
        gint64 now_us = g_get_monotonic_time();

        due_us = be_rate_reserve(stream->rate, chunk->transfer.length, now_us);
        due_us = due_us > now_us ? due_us : 0;
    }
    if (due_us == 0) {
        chunk_submit_locked(chunk);
        return;
    }
    chunk->due_us = due_us;
    chunk->due_link = (GList){.data = chunk};
    g_queue_push_tail_link(&stream->throttled, &chunk->due_link);
    be_clock_kick(due_us);
}

void be_chunk_due_locked(BeStream *stream, gint64 now_us)
{
    BeChunk *chunk;

    while ((chunk = g_queue_peek_head(&stream->throttled)) && chunk->due_us <= now_us) {
        g_queue_unlink(&stream->throttled, &chunk->due_link);
        chunk_submit_locked(chunk);
    }
}

/* In their order; the rate counts from now on. */
void be_chunk_throttle_again_locked(BeStream *stream)
{
    gint64 now_us = g_get_monotonic_time();

    for (GList *link = stream->throttled.head; link; link = link->next) {
        BeChunk *chunk = link->data;

        chunk->due_us =
            stream->rate ? be_rate_reserve(stream->rate, chunk->transfer.length, now_us) : now_us;
    }
    if (stream->throttled.length > 0) {
        be_clock_kick(0);
    }
}

void be_chunk_unthrottle_locked(BeStream *stream)
{
    BeChunk *chunk;

    while ((chunk = g_queue_peek_head(&stream->throttled))) {
        chunk_unthrottle_locked(chunk);
        be_chunk_drop_locked(chunk);
    }
}

/* ---- What to fetch ---- */

/* Zeroes at the end of a range need not be fetched. */
static guint64 cut_tail(const BeExtents *map, guint64 start, guint64 end)
{
    BeExtent extent;

    while (be_extents_lookup(map, end - 1, &extent) && !be_extents_is_data(map, extent.flags)) {
        if (extent.start <= start) {
            break;
        }
        end = extent.start;
    }
    return end;
}

gboolean be_chunk_range_locked(const BeStream *stream, guint64 offset, guint64 limit,
                               gboolean exact, guint64 *ret_offset, guint32 *ret_length)
{
    guint64 align = MIN(MAX(BE_READ_ALIGN, stream->limits.block_min), stream->cell);
    guint32 cell = cell_of(stream);
    guint64 cell_end;
    guint64 end;

    if (stream->map && be_extents_next(stream->map, offset, TRUE, &offset) == BE_NEXT_NONE) {
        return FALSE;
    }
    if (offset >= limit) {
        return FALSE;
    }
    cell_end = MIN((offset | (cell - 1)) + 1, stream->size);
    end = cell_end;
    if (exact) {
        end = MIN(limit, end);
    } else if (stream->map) {
        end = cut_tail(stream->map, offset, end);
    }
    end = MIN((end + align - 1) & ~(align - 1), cell_end);
    *ret_offset = offset & ~(align - 1);
    *ret_length = (guint32)(end - *ret_offset);
    return TRUE;
}

/* Bytes in front of the reader that it has not got yet. */
static guint64 ahead_bytes(const BeReader *reader)
{
    guint64 bytes = 0;

    for (guint i = 0; i < reader->chunks->len; i++) {
        BeChunk *chunk = g_ptr_array_index(reader->chunks, i);

        if (chunk_end(chunk) > reader->front) {
            bytes += chunk->transfer.length;
        }
    }
    return bytes;
}

static guint64 ahead_wanted(const BeReader *reader)
{
    const BeStream *stream = reader->stream;
    guint64 half_pool = (guint64)chunk_budget(stream) * BE_CHUNK_SIZE / 2;
    guint64 wanted = MIN(MIN(reader->run * 2, BE_AHEAD_MAX), half_pool);

    if (be_rate_is_limited(stream->rate)) {
        wanted = MIN(wanted, be_rate_get(stream->rate) / 2);
    }
    return wanted;
}

/*
 * Several chunks at once: each time that the source has to be woken costs as much as
 * reading a part of a chunk.  Under a limit each chunk has its own time anyway.
 */
static guint64 refill_step(const BeStream *stream, guint64 wanted)
{
    return be_rate_is_limited(stream->rate) ? 1 : MAX(wanted / 4, 1);
}

void be_chunk_ahead_locked(BeReader *reader)
{
    BeStream *stream = reader->stream;
    guint64 position = MAX(reader->ahead_end, reader->front);
    guint64 wanted;
    guint64 have;

    if (reader->steps == 0 || stream->state != BE_STREAM_OPEN) {
        return;
    }
    wanted = ahead_wanted(reader);
    have = ahead_bytes(reader);
    if (have + refill_step(stream, wanted) > wanted) {
        return;
    }
    while (have < wanted) {
        guint64 start;
        guint32 length;
        BeChunk *chunk;

        if (!be_chunk_range_locked(stream, position, stream->size, FALSE, &start, &length)) {
            break;
        }
        chunk = be_chunk_find_locked(reader, MAX(start, position), FALSE);
        if (chunk) {
            position = chunk_end(chunk);
            continue;
        }
        chunk = be_chunk_new_locked(reader, start, length, TRUE);
        if (!chunk) {
            break;
        }
        be_chunk_start_locked(chunk);
        have += length;
        position = start + length;
    }
    reader->ahead_end = position;
}
