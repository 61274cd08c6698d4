/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream-bench.c - reads an NBD export through the stream layer, without FUSE.
 *
 *   stream-bench [OPTION...] SOCKET EXPORT
 *
 * Sequential: --depth threads take the next --block bytes each, as the kernel's
 * read-ahead and the FUSE threads do, skip holes as cp does, and write to
 * --output from inside the callback, as the daemon does.  Random: --random
 * reads.  One line of results; exit status 1 on any error.
 */
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/nbd.h"

static int opt_depth = 2;
static int opt_block = 128 * 1024;
static int opt_random;
static int opt_readers = 1;
static gint64 opt_rate;
static gboolean opt_no_seek;
static char *opt_output;

static const GOptionEntry options[] = {
    {"depth", 'd', 0, G_OPTION_ARG_INT, &opt_depth, "reads in flight on each reader", "N"},
    {"block", 'b', 0, G_OPTION_ARG_INT, &opt_block, "bytes of a read", "N"},
    {"random", 'r', 0, G_OPTION_ARG_INT, &opt_random, "this many random reads", "N"},
    {"readers", 'n', 0, G_OPTION_ARG_INT, &opt_readers, "open files", "N"},
    {"rate", 0, 0, G_OPTION_ARG_INT64, &opt_rate, "limit in bytes per second", "N"},
    {"no-seek", 0, 0, G_OPTION_ARG_NONE, &opt_no_seek, "read the holes too", NULL},
    {"output", 'o', 0, G_OPTION_ARG_FILENAME, &opt_output, "write here", "FILE"},
    G_OPTION_ENTRY_NULL,
};

/* One open file with its threads; lock guards what follows it. */
typedef struct {
    BeStream *stream;
    BeReader *reader;
    int fd;
    GMutex lock;
    guint64 position;
    guint64 data_end;
    guint64 bytes;
    gboolean ended;
    int errnum;
} Job;

/* One call that is waited for. */
typedef struct {
    Job *job;
    guint64 offset;
    GMutex lock;
    GCond changed;
    gboolean done;             /* guarded by lock */
    gint64 result;
    int errnum;
} Call;

static void call_end(Call *call)
{
    g_mutex_lock(&call->lock);
    call->done = TRUE;
    g_cond_signal(&call->changed);
    g_mutex_unlock(&call->lock);
}

static void call_wait(Call *call)
{
    g_mutex_lock(&call->lock);
    while (!call->done) {
        g_cond_wait(&call->changed, &call->lock);
    }
    call->done = FALSE;
    g_mutex_unlock(&call->lock);
}

static void read_done(const struct iovec *iov, int count, int errnum, gpointer user)
{
    Call *call = user;

    call->errnum = errnum;
    call->result = 0;
    for (int i = 0; i < count; i++) {
        call->result += (gint64)iov[i].iov_len;
    }
    if (errnum == 0 && call->job->fd >= 0
        && pwritev(call->job->fd, iov, count, (off_t)call->offset) != call->result) {
        call->errnum = EIO;
    }
    call_end(call);
}

static void seek_done(gint64 offset, int errnum, gpointer user)
{
    Call *call = user;

    call->result = offset;
    call->errnum = errnum;
    call_end(call);
}

static gboolean seek(Job *job, Call *call, gboolean data)
{
    be_stream_seek(job->stream, job->position, data, seek_done, call);
    call_wait(call);
    return call->errnum == 0;
}

/* Returns: bytes to read at @ret_offset; 0 at the end. */
static gsize next_sequential(Job *job, Call *call, guint64 *ret_offset)
{
    gsize length = 0;

    g_mutex_lock(&job->lock);
    if (!job->ended && job->position >= job->data_end) {
        job->ended = job->position >= be_stream_size(job->stream);
        if (opt_no_seek) {
            job->data_end = be_stream_size(job->stream);
        } else if (!job->ended && seek(job, call, TRUE)) {
            job->position = (guint64)call->result;
            job->data_end = seek(job, call, FALSE) ? (guint64)call->result : 0;
        } else {
            job->ended = TRUE;
        }
    }
    if (!job->ended) {
        length = MIN((guint64)opt_block, job->data_end - job->position);
        *ret_offset = job->position;
        job->position += length;
    }
    g_mutex_unlock(&job->lock);
    return length;
}

static gsize next_random(Job *job, GRand *rand, guint64 *ret_offset)
{
    guint64 blocks = be_stream_size(job->stream) / (guint64)opt_block;

    *ret_offset = (guint64)(g_rand_double(rand) * (double)blocks) * (guint64)opt_block;
    return (gsize)opt_block;
}

static gpointer job_run(gpointer data)
{
    Job *job = data;
    Call call = {.job = job};
    GRand *rand = g_rand_new_with_seed((guint32)(gintptr)&call);
    int left = opt_random / (opt_depth * opt_readers);
    gsize length;

    g_mutex_init(&call.lock);
    g_cond_init(&call.changed);
    while (opt_random ? left-- > 0 : TRUE) {
        length = opt_random ? next_random(job, rand, &call.offset)
                            : next_sequential(job, &call, &call.offset);
        if (length == 0) {
            break;
        }
        be_read_unref(be_reader_read(job->reader, call.offset, length, read_done, &call));
        call_wait(&call);
        g_mutex_lock(&job->lock);
        job->bytes += (guint64)call.result;
        job->errnum = call.errnum ? call.errnum : job->errnum;
        g_mutex_unlock(&job->lock);
        if (call.errnum) {
            break;
        }
    }
    g_rand_free(rand);
    g_cond_clear(&call.changed);
    g_mutex_clear(&call.lock);
    return NULL;
}

static gint64 export_size(const char *socket, const char *name)
{
    struct nbd_handle *handle = nbd_create();
    gint64 size = -1;

    if (handle && nbd_set_export_name(handle, name) == 0
        && nbd_connect_unix(handle, socket) == 0) {
        size = nbd_get_size(handle);
    }
    nbd_close(handle);
    return size;
}

static gboolean run(BeStream *stream, guint64 *ret_bytes)
{
    g_autofree Job *jobs = g_new0(Job, opt_readers);
    GPtrArray *threads = g_ptr_array_new();
    int errnum = 0;

    *ret_bytes = 0;
    for (int i = 0; i < opt_readers; i++) {
        jobs[i].stream = stream;
        jobs[i].reader = be_reader_new(stream);
        jobs[i].fd = opt_output ? open(opt_output, O_WRONLY | O_CREAT | O_CLOEXEC, 0600) : -1;
        g_mutex_init(&jobs[i].lock);
        for (int j = 0; j < opt_depth; j++) {
            g_ptr_array_add(threads, g_thread_new("job", job_run, &jobs[i]));
        }
    }
    for (guint i = 0; i < threads->len; i++) {
        g_thread_join(g_ptr_array_index(threads, i));
    }
    g_ptr_array_unref(threads);
    for (int i = 0; i < opt_readers; i++) {
        be_reader_free(jobs[i].reader);
        *ret_bytes += jobs[i].bytes;
        errnum = errnum ? errnum : jobs[i].errnum;
        g_mutex_clear(&jobs[i].lock);
        if (jobs[i].fd >= 0) {
            (void)!ftruncate(jobs[i].fd, (off_t)be_stream_size(stream));
            close(jobs[i].fd);
        }
    }
    if (errnum) {
        fprintf(stderr, "stream-bench: %s\n", g_strerror(errnum));
    }
    return errnum == 0;
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new("SOCKET EXPORT");
    g_autoptr(GError) error = NULL;
    struct rusage usage;
    guint64 bytes;
    gint64 size;
    gint64 start_us;
    double seconds;
    BeStream *stream;
    gboolean ok;

    g_option_context_add_main_entries(context, options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc != 3) {
        fprintf(stderr, "stream-bench: %s\n", error ? error->message : "SOCKET and EXPORT wanted");
        return 1;
    }
    size = export_size(argv[1], argv[2]);
    if (size < 0) {
        fprintf(stderr, "stream-bench: %s\n", nbd_get_error());
        return 1;
    }
    stream = be_stream_new_nbd(argv[1], argv[2], (guint64)size, (guint64)size);
    if (opt_rate > 0) {
        BeRate *rate = be_rate_new((guint64)opt_rate);

        be_stream_set_rate(stream, rate);
        be_rate_unref(rate);
    }
    start_us = g_get_monotonic_time();
    ok = run(stream, &bytes);
    seconds = (double)(g_get_monotonic_time() - start_us) / G_USEC_PER_SEC;
    be_stream_close(stream);
    be_stream_unref(stream);
    getrusage(RUSAGE_SELF, &usage);
    printf("%.3f s  %.0f MiB/s  %.0f reads/s  cpu %.2f s  rss %ld MiB\n", seconds,
           (double)bytes / 1048576 / seconds, (double)bytes / opt_block / seconds,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
               + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
           usage.ru_maxrss / 1024);
    return ok ? 0 : 1;
}
