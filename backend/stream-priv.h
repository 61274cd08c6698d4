/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream-priv.h - what stream.c, map.c, reader.c, chunk.c, rate.c and clock.c
 * share.
 *
 * One lock for a stream, its readers, chunks and reads: the sections are short,
 * and nothing but submitting to the source happens inside.  Order of locks:
 * stream->lock > the source's, the rate's, the clock's.
 *
 * A read ends in one place: be_read_end_locked() moves it to a list "ended",
 * and be_stream_deliver_and_unlock() calls done() for that list without the
 * lock.  Threads that must not call back (cancel, free, fail) leave the list to
 * the clock.
 */
#pragma once

#include "backend/covered.h"
#include "backend/meter.h"
#include "backend/stream.h"

/* A request of 256 KiB is as fast as one of 1 MiB and leaves the caches cool. */
#define BE_CHUNK_SIZE (256u * 1024)

/* Buffers of a stream; shared out among the readers that have any. */
#define BE_POOL_BYTES (16u * 1024 * 1024)

/* How far read-ahead goes at most. */
#define BE_AHEAD_MAX (8u * 1024 * 1024)

/* Requests start and end at multiples of this, or of the block size. */
#define BE_READ_ALIGN 4096u

/* Reads up to here go to read_now() when they are not sequential. */
#define BE_SMALL_READ (64u * 1024)

typedef enum {
    BE_STREAM_IDLE,            /* not open yet, or opening failed */
    BE_STREAM_OPENING,
    BE_STREAM_OPEN,
    BE_STREAM_DOWN,            /* failed or closed, for good */
} BeStreamState;

typedef enum {
    BE_MAP_NONE,
    BE_MAP_FETCHING,
    BE_MAP_COMPLETE,
    BE_MAP_FAILED,             /* the next seek tries again from where it stopped */
} BeMapState;

struct BeStream {
    gatomicrefcount refs;
    guint64 size;
    const BeSourceOps *ops;

    GMutex lock;
    GCond quiet;               /* while closing: busy became 0, or closed */
    /* all below: guarded by lock */
    gpointer source;           /* NULL when closed; constant while busy > 0 */
    BeStreamState state;
    gboolean attached;         /* the clock knows it; close() is needed */
    gboolean closing;
    gboolean closed;
    char *reason;
    guint busy;                /* tasks, deliveries and read_now() calls under way */
    gint64 timeout_us;
    BeSourceLimits limits;
    guint32 cell;              /* size of a full chunk, a power of 2 */

    BeMapState map_state;
    gboolean map_wanted;       /* fetch it as soon as the source is open */
    BeExtents *map;
    guint64 allocated;
    BeMapState dirty_state;
    BeExtents *dirty;          /* constant when complete */
    GQueue dirty_waits;        /* of DirtyWait, waiting for it; dirty-map.c */
    GQueue seeks;              /* of BeSeek, waiting for the map */
    GQueue seeks_ended;        /* for the clock */

    GQueue reads;              /* of BeRead, not ended, oldest first */
    guint reads_waiting;       /* those of them that are BE_READ_WAITING */
    GQueue reads_ended;        /* for the clock */

    GQueue readers;            /* of BeReader */
    guint readers_quiet;       /* those of them that are quiet */
    guint readers_active;      /* those of them that have chunks */
    GPtrArray *spare;          /* of BeChunk, with buffers that nobody uses */

    BeRate *rate;
    GQueue throttled;          /* of BeChunk, in the order of due_us */
    guint64 bytes_read;
    guint64 bytes_fetched;
    BeMeter meter;             /* of bytes_read */
    gboolean was_opened;       /* there was a reader, not a quiet one */
    BeCovered *delivered;      /* what readers were given */
    guint64 whole_start;       /* what they have to be given: be_stream_was_read_whole() */
    guint64 whole_end;
};

typedef enum {
    BE_CHUNK_NEW,              /* not given to the source yet */
    BE_CHUNK_LOADING,
    BE_CHUNK_READY,
    BE_CHUNK_FAILED,           /* goes when the last read lets go of it */
} BeChunkState;

typedef struct BeSlab BeSlab;

/**
 * BeChunk: a range of the disk in a buffer, or on its way there.
 */
typedef struct {
    BeTransfer transfer;       /* first: the source knows only this */
    BeStream *stream;
    BeSlab *slab;              /* what the buffer is a part of */
    /* guarded by stream->lock */
    BeReader *reader;          /* NULL: freed; the chunk goes when nobody uses it */
    BeChunkState state;
    guint pins;                /* pieces of reads that point into it */
    guint64 consumed;          /* bytes handed out; at length, it has done its work */
    gint64 due_us;             /* 0: not throttled */
    GList due_link;            /* in stream->throttled while due_us != 0 */
} BeChunk;

struct BeReader {
    gatomicrefcount refs;
    BeStream *stream;          /* a reference */
    gboolean quiet;            /* constant: see be_reader_new_quiet() */
    /* guarded by stream->lock */
    GList link;                /* in stream->readers */
    GPtrArray *chunks;         /* of BeChunk, in no order */
    guint64 front;             /* end of what was read in sequence */
    guint64 run;               /* bytes of that sequence */
    guint steps;               /* reads that followed another one */
    guint strays;              /* small reads that did not */
    guint64 ahead_end;         /* read-ahead was started up to here */
};

typedef enum {
    BE_READ_WAITING,           /* for the source or for a buffer */
    BE_READ_LOADING,           /* for its chunks */
    BE_READ_ENDED,
} BeReadState;

#define BE_READ_INLINE 6

struct BeRead {
    gatomicrefcount refs;
    BeReader *reader;          /* a reference */
    guint64 offset;
    gsize length;
    BeReadDone done;
    gpointer user;
    /* guarded by stream->lock until it ended, then by who delivers it */
    GList link;                /* in stream->reads, or in a list of ended ones */
    BeReadState state;
    int errnum;
    gboolean exact;            /* second try: ask for this range and no more */
    gint64 deadline_us;
    guint missing;             /* pieces whose chunk is not ready */
    guint count;
    guint room;
    struct iovec *iov;         /* the pieces */
    BeChunk **chunks;          /* the chunk of each piece; NULL: zeroes */
    struct iovec iov_inline[BE_READ_INLINE];
    BeChunk *chunks_inline[BE_READ_INLINE];
};

/* ---- stream.c ---- */

/* Opens the source when that was not done; fetches the map too when @map.
 * Returns: FALSE when there is no thread for it. */
gboolean be_stream_want_locked(BeStream *stream, gboolean map);

/* Calls done() for @ended, lets go of their chunks, starts what waited for
 * those, and unlocks. */
void be_stream_deliver_and_unlock(BeStream *stream, GQueue *ended);

/* The same for seeks too; both lists are empty afterwards. */
void be_stream_deliver_all_and_unlock(BeStream *stream, GQueue *reads, GQueue *seeks);

void be_stream_busy_end_locked(BeStream *stream);

/* Tells the source when nobody but quiet readers has the stream open. */
void be_stream_unread_locked(BeStream *stream);

/* A reader got these bytes. */
void be_stream_delivered_locked(const BeReader *reader, guint64 offset, guint64 length);

/* Has @stream limited by what limits @other now. */
void be_stream_share_rate(BeStream *stream, BeStream *other);

/* Only these bytes count for be_stream_was_read_whole(); before the first reader. */
void be_stream_set_essence(BeStream *stream, guint64 start, guint64 end);

/* Runs @run on a worker.  It has a reference and counts as busy, until it ends
 * with the other one. */
void be_stream_task_start_locked(BeStream *stream, void (*run)(BeStream *stream));
void be_stream_task_end_and_unlock(BeStream *stream, GQueue *reads, GQueue *seeks);

/* What readers are told of an error of the source. */
int be_stream_errno(const GError *error);

/* Work of the clock: deadlines, limits, deliveries that others left.
 * Returns: when to be called again, or G_MAXINT64. */
gint64 be_stream_tick(BeStream *stream, gint64 now_us);

/* ---- map.c ---- */

/* Fetches the map, or goes on where it failed; the stream is open. */
void be_stream_map_start_locked(BeStream *stream);

/* Ends the seeks that wait. */
void be_seeks_end_locked(BeStream *stream, int errnum, GQueue *ended);

/* Calls done() for each; no lock held. */
void be_seeks_deliver(GQueue *seeks);

/* ---- rate.c ---- */

/* @rate: may be NULL. */
gboolean be_rate_is_limited(BeRate *rate);

/* Returns: when a request of @bytes may start. */
gint64 be_rate_reserve(BeRate *rate, guint64 bytes, gint64 now_us);

/* A request that had its turn before it will not be made: others may have its bytes. */
void be_rate_refund(BeRate *rate, guint64 bytes);

/* ---- reader.c ---- */

/* Moves a read to @ended; on failure it lets go of its chunks at once. */
void be_read_end_locked(BeRead *read, int errnum, GQueue *ended);
void be_read_release_locked(BeRead *read);
gboolean be_read_is_throttled_locked(const BeRead *read);

/* Starts reads that wait, as far as possible. */
void be_stream_progress_locked(BeStream *stream, GQueue *ended);

/* Tells the reads that use a chunk how it ended. */
void be_reader_chunk_done_locked(BeChunk *chunk, int errnum, GQueue *ended);

/* ---- chunk.c ---- */

/* @ahead: take only what is to spare.
 * Returns: a chunk in the state NEW with no pins, or NULL: no buffer. */
BeChunk *be_chunk_new_locked(BeReader *reader, guint64 offset, guint32 length, gboolean ahead);
void be_chunk_start_locked(BeChunk *chunk);

/* The chunk is not at the source and has no pins. */
void be_chunk_drop_locked(BeChunk *chunk);
void be_chunk_unpin_locked(BeChunk *chunk);

/* @ready: only one with data.  One with data is preferred. */
BeChunk *be_chunk_find_locked(const BeReader *reader, guint64 offset, gboolean ready);

/* The first range that has to be fetched at or behind @offset; it begins below
 * @limit.  @exact: no byte outside that is not needed for alignment.
 * Returns: FALSE when all of it is known to be zero. */
gboolean be_chunk_range_locked(const BeStream *stream, guint64 offset, guint64 limit,
                               gboolean exact, guint64 *ret_offset, guint32 *ret_length);

/* Fetches what the reader will want next. */
void be_chunk_ahead_locked(BeReader *reader);

/* Gives up the chunks of a reader that is being freed. */
void be_chunk_abandon_locked(BeReader *reader);

/* Submits the throttled chunks whose time has come. */
void be_chunk_due_locked(BeStream *stream, gint64 now_us);

/* Finds out anew when the throttled chunks may start. */
void be_chunk_throttle_again_locked(BeStream *stream);

/* Drops the throttled chunks; the reads that wanted them have ended. */
void be_chunk_unthrottle_locked(BeStream *stream);
void be_chunk_spare_free_locked(BeStream *stream);

/* ---- clock.c ---- */

/* The clock ticks for a stream until be_clock_detach(), which blocks until the
 * clock has let go of it.  FALSE: no thread. */
gboolean be_clock_attach(BeStream *stream);
void be_clock_detach(BeStream *stream);

/* A tick at @when_us at the latest; 0: now.  Any thread, any lock held. */
void be_clock_kick(gint64 when_us);
