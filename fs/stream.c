/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream.c - reads of data files, answered by whoever has the bytes.
 *
 * Entered by FUSE threads; the answers come from the backend's pollers and
 * workers, straight out of their buffers.
 */
#include "fs/stream.h"

#include <errno.h>
#include <fcntl.h>

#include "fs/file.h"

/* As long as a text is waited for. */
#define WAIT_MS 1000
#define WAIT_SLOW_MS 5000

/* Programs that read a file once, from start to end.  A hint that changes no byte; whoever
 * calls himself so without being it is only slower. */
static const char *const streaming_programs[] = {"cp", NULL};

static gboolean is_streamed(const FsReq *req)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/comm", (int)req->caller.pid);
    g_autofree char *name = NULL;

    return g_file_get_contents(path, &name, NULL, NULL)
           && g_strv_contains(streaming_programs, g_strchomp(name));
}

/*
 * The page cache costs a copy, and what others have in it.  A file without holes is read by
 * st_blksize, 1 MiB, so it is not worth that.  One with holes is read by 128 KiB, each a
 * wake-up, which the kernel's read-ahead hides; but only as long as there are processors
 * for it, two for each stream (contrib/bench/RESULTS.md).
 */
static gboolean is_past_page_cache(const FsReq *req, FsFile *file)
{
    gint others;

    if (!is_streamed(req)) {
        return FALSE;
    }
    file->streamed = TRUE;
    others = g_atomic_int_add(&req->fs->streamed_files, 1);
    return (req->node->def->flags & FS_DENSE) || (guint)others * 2 >= g_get_num_processors();
}

/* ---- Streams whose size is to be found out --------------------------------- */

/* Somebody waits for it; a counted box, shared with the deadline. */
typedef struct {
    FsReq *req;                /* a reference */
    void (*resume)(FsReq *req);
    GSource *deadline;
} Preparation;

static void preparation_free(gpointer data)
{
    Preparation *preparation = data;

    fs_req_unref(preparation->req);
}

static void preparation_release(gpointer preparation)
{
    g_atomic_rc_box_release_full(preparation, preparation_free);
}

static void prepared(const GError *error, gpointer user)
{
    Preparation *preparation = user;

    g_source_destroy(preparation->deadline);
    g_source_unref(preparation->deadline);
    if (error) {
        fs_req_fail(preparation->req, fs_error_errno(error), "%s", error->message);
    } else {
        preparation->resume(fs_req_ref(preparation->req));
    }
    preparation_release(preparation);
}

/* The deadline, on the timer thread. */
static gboolean give_up(gpointer data)
{
    const Preparation *preparation = data;

    fs_req_error(preparation->req, ETIMEDOUT);
    return G_SOURCE_REMOVE;
}

static void prepare_cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
}

void fs_stream_prepare(FsReq *req, void (*resume)(FsReq *req))
{
    const FsDef *def = req->node->def;
    Preparation *preparation;

    if (!def->prepare || def->stream(req->node->item)) {
        resume(req);
        return;
    }
    fs_req_on_cancel(req, prepare_cancelled, NULL);
    preparation = g_atomic_rc_box_new0(Preparation);
    preparation->req = req;
    preparation->resume = resume;
    preparation->deadline =
        fs_timer_add(req->fs, def->flags & FS_SLOW ? WAIT_SLOW_MS : WAIT_MS, give_up,
                     g_atomic_rc_box_acquire(preparation), preparation_release);
    def->prepare(req->node->item, prepared, preparation);
}

/* ---- Open, read, seek ------------------------------------------------------- */

static void open_prepared(FsReq *req)
{
    FsFile *file = fs_file_new(req->fs, req->node, req->caller.pid);

    file->reader = be_reader_new(req->node->def->stream(req->node->item));
    /*
     * A node number stands for one object and its bytes never change, so what
     * the kernel has cached of it is right for every opener.
     */
    req->fi.keep_cache = 1;
    req->fi.direct_io = is_past_page_cache(req, file) || (req->fi.flags & O_DIRECT);
    fs_req_open(req, file);
    fs_req_unref(req);
}

void fs_stream_open(FsReq *req)
{
    fs_stream_prepare(req, open_prepared);
}

static void read_done(const struct iovec *iov, int count, int errnum, gpointer user)
{
    FsReq *req = user;

    if (errnum == 0) {
        fs_req_iov(req, iov, count);
    } else if (errnum == ECANCELED) {
        fs_req_error(req, EINTR);
    } else {
        g_autofree char *text =
            g_strdup_printf("cannot read %" G_GSIZE_FORMAT " bytes at %" G_GINT64_FORMAT, req->size,
                            (gint64)req->offset);

        fs_req_record(req, errnum, text);
        fs_req_error(req, errnum);
    }
    fs_req_unref(req);
}

static void read_cancelled(FsReq *req, gpointer data G_GNUC_UNUSED)
{
    fs_req_error(req, EINTR);
}

void fs_stream_read(FsReq *req)
{
    BeRead *read;

    /*
     * A caller that is being killed is let go at once; the transfer goes on
     * and its bytes serve the next reader.
     */
    fs_req_on_cancel(req, read_cancelled, NULL);
    read = be_reader_read(req->file->reader, (guint64)req->offset, req->size, read_done, req);
    be_read_unref(read);
}

static void seek_done(gint64 offset, int errnum, gpointer user)
{
    FsReq *req = user;

    if (errnum) {
        fs_req_error(req, errnum);
    } else {
        fs_req_lseek(req, (off_t)offset);
    }
    fs_req_unref(req);
}

void fs_stream_lseek(FsReq *req)
{
    if (req->whence != SEEK_DATA && req->whence != SEEK_HOLE) {
        fs_req_error(req, EINVAL);
        fs_req_unref(req);
        return;
    }
    fs_req_on_cancel(req, read_cancelled, NULL);
    be_stream_seek(req->node->def->stream(req->node->item), (guint64)req->offset,
                   req->whence == SEEK_DATA, seek_done, req);
}
