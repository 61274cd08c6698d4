/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream.h - the base of all streams, for those who make and end them.
 *
 * A stream is a size, a source and what readers share: the allocation map, the
 * buffers, the rate limit.  What readers see is in backend.h.
 */
#pragma once

#include "backend/backend.h"
#include "backend/extents.h"

/* A read that is longer is refused with EINVAL; FUSE asks for 1 MiB at most. */
#define BE_READ_MAX (4u * 1024 * 1024)

/* Deadline of a read, a connection or a step of the map, unless set. */
#define BE_STREAM_TIMEOUT_US (30 * G_USEC_PER_SEC)

typedef struct BeTransfer BeTransfer;

/**
 * BeTransfer: one request to a source.  Belongs to the reader that made it; to
 * the source from pread() until it calls @done.
 */
struct BeTransfer {
    void *buffer;
    guint64 offset;
    guint32 length;
    void (*done)(BeTransfer *transfer, int errnum); /* on a thread of the source, no lock held */
    /* for the source alone */
    GList link;
    gpointer owner;
    gint64 cookie;
    guint lost_in;             /* generation of the connections it was lost on; 0: none */
};

/**
 * BeSourceLimits: what a source wants of requests; known when it is open.
 */
typedef struct {
    guint32 block_min;         /* offset and length are multiples; a power of 2, at most 64 KiB */
    guint32 request_max;       /* bytes of a request, at least @block_min */
    guint32 now_max;           /* large reads up to here go to read_now() too; 0: none */
} BeSourceLimits;

/**
 * BeSourceNow: the bytes of read_now(); @buffer is valid during the call.
 * @errnum: 0, or why there are none.
 */
typedef void (*BeSourceNow)(const void *buffer, int errnum, gpointer user);

/**
 * BeSourceOps: what a kind of source does.  After cancel() everything ends
 * soon with EIO.
 */
typedef struct {
    const char *name;          /* for messages: "nbd" */

    /**
     * open: connects.  Blocks at most @timeout_us; on a worker.  Called again
     * after a failure, never after success.
     * Checks that the disk has the size the stream was made with.
     */
    gboolean (*open)(gpointer source, gint64 timeout_us, BeSourceLimits *ret_limits,
                     GError **error);

    /**
     * pread: submits a request within the limits and the disk.  Does not block
     * and does not call done() itself; called with the stream's lock held.
     */
    void (*pread)(gpointer source, BeTransfer *transfer);

    /**
     * read_now: reads on the calling thread, which waits; for small random
     * reads, and for large ones up to now_max, which do not wait.  May be NULL.
     * Returns: FALSE when that cannot be done now, and @sink was not called.
     */
    gboolean (*read_now)(gpointer source, guint64 offset, guint32 length, gint64 timeout_us,
                         BeSourceNow sink, gpointer user);

    /**
     * extents: what is known from @offset on: appends at least one BeExtent to
     * @out (their starts are not looked at) that together begin at @offset.
     * Blocks at most @timeout_us; on a worker.
     */
    gboolean (*extents)(gpointer source, BeExtentKind kind, guint64 offset, gint64 timeout_us,
                        GArray *out, GError **error);

    /**
     * unread: nobody but quiet readers has the stream open; what is only held for readers
     * can go until the next call.  Does not block; called with the stream's lock held, while
     * the source is open.  May be NULL.
     */
    void (*unread)(gpointer source);

    /**
     * cancel: makes every call above and every transfer end now with EIO, for
     * good.  Any thread, any number of times, before and after open(); does not
     * block.
     */
    void (*cancel)(gpointer source);

    /**
     * close: joins the threads of the source and frees it.  Every transfer was
     * done() before it returns.  Blocks; after cancel(), with no call above
     * under way.
     */
    void (*close)(gpointer source);
} BeSourceOps;

/**
 * be_stream_new:
 * @size: bytes of the disk
 * @allocated_estimate: what be_stream_allocated() says until the map is known
 * @source: belongs to the stream from now on
 *
 * Starts nothing: the first read or seek opens the source, on a worker thread.
 */
BeStream *be_stream_new(guint64 size, guint64 allocated_estimate, const BeSourceOps *ops,
                        gpointer source);

/**
 * be_stream_fail: from now on every read and seek, under way or new, ends
 * with EIO.  Any thread; never blocks; callbacks come from another thread.
 * @reason: a sentence for be_stream_reason(); the first one is kept
 */
void be_stream_fail(BeStream *stream, const char *reason);

/**
 * be_stream_close: the same, then waits for every callback, joins the threads
 * and closes the connections.  Blocks, briefly; on a worker, not in a callback.
 * Called again, it waits for the first.  A stream whose last reference goes
 * without it is closed on a worker.
 */
void be_stream_close(BeStream *stream);

/**
 * be_streams_wait: until every stream that was ever opened is closed.  The last reference
 * to one may go on a thread that has to do with it, and it is closed on a worker: only
 * after this does none of them call what it stands on.  The caller has let go of all.
 * Returns: FALSE when that took longer than @timeout_us.
 */
gboolean be_streams_wait(gint64 timeout_us);

/**
 * be_stream_reason: why it failed, to free with g_free(), or NULL.
 */
char *be_stream_reason(BeStream *stream);

/**
 * be_stream_readers: how many BeReaders are open.
 * be_stream_takers: without the quiet ones.
 */
guint be_stream_readers(BeStream *stream);
guint be_stream_takers(BeStream *stream);

/**
 * be_stream_rest: lets go of what is only held for readers, if there are none but quiet
 * ones; their next read takes it again.  Any thread; never blocks.
 */
void be_stream_rest(BeStream *stream);

/**
 * be_reader_new_quiet: as be_reader_new(), for who looks at the disk and takes no copy
 * of it: what is read through it does not count for be_stream_was_read_whole().
 */
BeReader *be_reader_new_quiet(BeStream *stream);

/**
 * be_stream_bytes_read: bytes handed to readers, holes too.
 * be_stream_bytes_fetched: bytes that came from the source.
 */
guint64 be_stream_bytes_read(BeStream *stream);
guint64 be_stream_bytes_fetched(BeStream *stream);

/**
 * be_stream_read_rate: bytes per second handed to readers, the mean of the last few.
 */
guint64 be_stream_read_rate(BeStream *stream);

/**
 * be_stream_progress: which part of what be_stream_was_read_whole() asks for was
 * handed to readers: 0 to 1; 1 exactly when that is TRUE.
 */
double be_stream_progress(BeStream *stream);

/**
 * be_stream_was_read_whole: whether everything in it was given to readers without
 * an error: each byte at least once, by anybody, in any order.  What the map calls
 * zero counts as read, as it is skipped by SEEK_DATA; but somebody must have opened
 * the stream.  Of a computed image the data counts, and not the tables, unless it
 * has no data.  Any thread, also after be_stream_close(), so that the end of a
 * backup can ask whether it was taken.
 *
 * Never TRUE of what was not read; FALSE too for what was read in too many pieces
 * to remember (BE_COVERED_MAX ranges that do not touch).
 */
gboolean be_stream_was_read_whole(BeStream *stream);

/**
 * be_stream_set_timeout: the deadline of reads, connections and steps of the
 * map from now on.
 */
void be_stream_set_timeout(BeStream *stream, gint64 timeout_us);

/**
 * BeRate: a limit in bytes per second that several streams can share.
 */
typedef struct BeRate BeRate;

/**
 * be_rate_new: 0 means no limit.  be_rate_set() counts from the next request.
 */
BeRate *be_rate_new(guint64 bytes_per_second);
BeRate *be_rate_ref(BeRate *rate);
void be_rate_unref(BeRate *rate);
void be_rate_set(BeRate *rate, guint64 bytes_per_second);
guint64 be_rate_get(BeRate *rate);

/**
 * be_stream_set_rate: limits what is fetched from the source.  Also to be called when
 * @rate was changed by be_rate_set(), so that what waits, waits no longer than it has to.
 * @rate: NULL: not limited
 */
void be_stream_set_rate(BeStream *stream, BeRate *rate);
