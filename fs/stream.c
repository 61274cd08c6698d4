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

/*
 * Programs that read a file once, from start to end, in large pieces: past the
 * page cache they are a fifth faster (contrib/bench/RESULTS.md).  A hint that
 * changes no byte; whoever calls himself so without being it is only slower.
 */
static const char *const streaming_programs[] = {"cp", NULL};

static gboolean caller_streams(const FsReq *req)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/comm", (int)req->caller.pid);
    g_autofree char *name = NULL;

    return g_file_get_contents(path, &name, NULL, NULL)
           && g_strv_contains(streaming_programs, g_strchomp(name));
}

void fs_stream_open(FsReq *req)
{
    FsFile *file = fs_file_new(req->fs, req->node, req->caller.pid);

    file->reader = be_reader_new(req->node->def->stream(req->node->item));
    /*
     * A node number stands for one object and its bytes never change, so what
     * the kernel has cached of it is right for every opener.
     */
    req->fi.keep_cache = 1;
    req->fi.direct_io = (req->fi.flags & O_DIRECT) || caller_streams(req);
    fs_req_open(req, file);
    fs_req_unref(req);
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
