/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-stream.c - streams over NBD give the right bytes, whatever the server is
 * like, and errors for what it cannot give.  What happens when things go wrong
 * in mid-stream is in test-stream-end.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "stream-tool.h"

/* ---- Right bytes ------------------------------------------------------------------ */

typedef struct {
    BeReader *reader;
    guint64 size;
    gint *position;            /* atomic, in blocks; NULL: random */
    guint32 seed;
    int count;
} Load;

static gpointer load_sequential(gpointer data)
{
    const Load *load = data;
    g_autoptr(Call) call = call_new();
    guint64 offset;

    while ((offset = (guint64)g_atomic_int_add(load->position, 1) * 128 * KIB) < load->size) {
        assert_read(load->reader, call, offset, MIN(128 * KIB, load->size - offset));
    }
    return NULL;
}

static gpointer load_random(gpointer data)
{
    const Load *load = data;
    g_autoptr(Call) call = call_new();
    GRand *rand = g_rand_new_with_seed(load->seed);

    for (int i = 0; i < load->count; i++) {
        gsize length = (gsize)1 << g_rand_int_range(rand, 0, i % 100 ? 14 : 21);
        guint64 offset = (guint64)(g_rand_double(rand) * (double)(load->size - length));

        assert_read(load->reader, call, offset, length - (offset & 1 && length > 1));
    }
    g_rand_free(rand);
    return NULL;
}

static void run_threads(GThreadFunc run, const Load *load, int count)
{
    g_autofree Load *loads = g_new(Load, count);
    g_autofree GThread **threads = g_new(GThread *, count);

    for (int i = 0; i < count; i++) {
        loads[i] = *load;
        loads[i].seed += (guint32)i;
        threads[i] = g_thread_new("load", run, &loads[i]);
    }
    for (int i = 0; i < count; i++) {
        g_thread_join(threads[i]);
    }
}

static void check_sequential_and_random(const char *arguments, guint64 size, int random)
{
    GPid pid = server_start(arguments);
    BeStream *stream = be_stream_new_nbd(socket_path, "", size, 0);
    BeReader *reader = be_reader_new(stream);
    gint position = 0;
    Load load = {.reader = reader, .size = size, .position = &position, .seed = 1};
    g_autoptr(Call) call = call_new();

    run_threads(load_sequential, &load, 3);
    load.count = random / 4;
    run_threads(load_random, &load, 4);
    g_assert_cmpint(read_into(reader, call, size - 10, 4096), ==, 0);
    g_assert_cmpint(call->result, ==, 10);
    assert_pattern(call->bytes, size - 10, 10);
    g_assert_cmpuint(be_stream_readers(stream), ==, 1);
    g_assert_cmpuint(be_stream_bytes_read(stream), >=, size);
    be_reader_free(reader);
    g_assert_cmpuint(be_stream_readers(stream), ==, 0);
    stream_end(stream);
    server_stop(pid);
}

static void test_bytes(void)
{
    check_sequential_and_random("pattern size=96M", 96 * MIB, 4000);
}

static void test_odd_size(void)
{
    check_sequential_and_random("pattern size=20000001", 20000001, 1000);
}

static void test_minimum_block(void)
{
    check_sequential_and_random("--filter=blocksize-policy pattern size=32M blocksize-minimum=4096"
                                " blocksize-preferred=4096 blocksize-maximum=64K"
                                " blocksize-error-policy=error",
                                32 * MIB, 2000);
}

static void test_large_minimum_block(void)
{
    check_sequential_and_random("--filter=blocksize-policy pattern size=32M blocksize-minimum=64K"
                                " blocksize-preferred=64K blocksize-error-policy=error",
                                32 * MIB, 1000);
}

static void test_no_structured_replies(void)
{
    check_sequential_and_random("--no-sr pattern size=32M", 32 * MIB, 2000);
}

static void test_one_connection(void)
{
    check_sequential_and_random(
        "--filter=multi-conn pattern size=32M multi-conn-mode=disable", 32 * MIB, 2000);
}

/* The server says multi-conn and then refuses the second connection. */
static void test_limited_connections(void)
{
    check_sequential_and_random("--filter=limit --filter=multi-conn pattern size=32M limit=1"
                                " multi-conn-mode=unsafe",
                                32 * MIB, 2000);
}

static void test_answers_out_of_order(void)
{
    check_sequential_and_random("--filter=delay pattern size=8M delay-read=2ms", 8 * MIB, 200);
}

static void test_many_random_reads(void)
{
    gint64 start_us = g_get_monotonic_time();

    check_sequential_and_random("pattern size=64M", 64 * MIB, 100000);
    g_test_message("%.1f s", (double)(g_get_monotonic_time() - start_us) / G_USEC_PER_SEC);
}

static void test_edges_of_a_read(void)
{
    GPid pid = server_start("pattern size=1M");
    BeStream *stream = be_stream_new_nbd(socket_path, "", MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    g_assert_cmpint(read_into(reader, call, MIB, 1), ==, 0);
    g_assert_cmpint(call->result, ==, 0);
    g_assert_cmpint(read_into(reader, call, G_MAXUINT64, 100), ==, 0);
    g_assert_cmpint(call->result, ==, 0);
    g_assert_cmpint(read_into(reader, call, 0, BE_READ_MAX + 1), ==, EINVAL);
    g_assert_cmpint(read_into(reader, call, 0, BE_READ_MAX), ==, 0);
    g_assert_cmpint(call->result, ==, MIB);
    assert_pattern(call->bytes, 0, MIB);
    be_reader_free(reader);
    be_reader_free(NULL);
    stream_end(stream);
    server_stop(pid);
}

/* ---- Holes ------------------------------------------------------------------------ */

static void assert_seek(BeStream *stream, guint64 offset, gboolean data, gint64 expected)
{
    int errnum;
    gint64 result = seek(stream, offset, data, &errnum);

    g_assert_cmpint(result, ==, expected < 0 ? -1 : expected);
    g_assert_cmpint(errnum, ==, expected < 0 ? -expected : 0);
}

/* 16 MiB: data [1, 2) and [8, 9) */
static char *make_sparse_file(void)
{
    char *path = stream_tool_path("sparse");
    g_autofree guint8 *bytes = g_malloc(MIB);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    memset(bytes, 0x5a, MIB);
    g_assert_cmpint(ftruncate(fd, 16 * MIB), ==, 0);
    g_assert_cmpint(pwrite(fd, bytes, MIB, MIB), ==, MIB);
    g_assert_cmpint(pwrite(fd, bytes, MIB, 8 * MIB), ==, MIB);
    close(fd);
    return path;
}

static void test_holes(void)
{
    g_autofree char *path = make_sparse_file();
    g_autofree char *arguments = g_strdup_printf("file %s", path);
    GPid pid = server_start(arguments);
    BeStream *stream = be_stream_new_nbd(socket_path, "", 16 * MIB, 16 * MIB);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    g_assert_cmpuint(be_stream_allocated(stream), ==, 16 * MIB);
    assert_seek(stream, 0, TRUE, MIB);
    assert_seek(stream, 0, FALSE, 0);
    assert_seek(stream, MIB + 5, TRUE, MIB + 5);
    assert_seek(stream, MIB + 5, FALSE, 2 * MIB);
    assert_seek(stream, 2 * MIB, TRUE, 8 * MIB);
    assert_seek(stream, 9 * MIB, TRUE, -ENXIO);
    assert_seek(stream, 9 * MIB, FALSE, 9 * MIB);
    assert_seek(stream, 16 * MIB, FALSE, -ENXIO);
    assert_seek(stream, G_MAXUINT64, TRUE, -ENXIO);
    g_assert_cmpuint(be_stream_allocated(stream), ==, 2 * MIB);
    for (guint64 at = 0; at < 16 * MIB; at += 100 * KIB) {
        g_assert_cmpint(read_into(reader, call, at, 100 * KIB), ==, 0);
        for (guint64 i = 0; i < (guint64)call->result; i++) {
            guint64 mib = (at + i) / MIB;

            g_assert_cmpint(call->bytes[i], ==, mib == 1 || mib == 8 ? 0x5a : 0);
        }
    }
    g_assert_cmpuint(be_stream_bytes_fetched(stream), ==, 2 * MIB);
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

/* In a hole, and never behind the read before. */
static void read_stray(BeReader *reader, Call *call, guint i)
{
    guint64 offset = (2 + i % 2 * 8) * MIB + i * 8 * KIB;

    g_assert_cmpint(read_into(reader, call, offset, 4 * KIB), ==, 0);
    g_assert_cmpint(call->result, ==, 4 * KIB);
    g_assert_cmpint(call->bytes[0] | call->bytes[4 * KIB - 1], ==, 0);
}

/* A few looks at a disk fetch no map; who goes on gets holes without the server. */
static void test_holes_at_random(void)
{
    g_autofree char *path = make_sparse_file();
    g_autofree char *arguments = g_strdup_printf("file %s", path);
    GPid pid = server_start(arguments);
    BeStream *stream = be_stream_new_nbd(socket_path, "", 16 * MIB, 16 * MIB);
    BeReader *reader = be_reader_new(stream);
    gint64 deadline_us = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    g_autoptr(Call) call = call_new();
    guint64 fetched;
    guint i;

    for (i = 0; i < 60; i++) {
        read_stray(reader, call, i);
    }
    g_assert_cmpuint(be_stream_allocated(stream), ==, 16 * MIB);
    g_assert_cmpuint(be_stream_bytes_fetched(stream), >=, 60 * 4 * KIB);
    for (; be_stream_allocated(stream) != 2 * MIB; i++) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
        read_stray(reader, call, i % 500);
    }
    fetched = be_stream_bytes_fetched(stream);
    for (i = 0; i < 500; i++) {
        read_stray(reader, call, i);
    }
    g_assert_cmpuint(be_stream_bytes_fetched(stream), ==, fetched);
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

static void test_no_map_is_all_data(void)
{
    GPid pid = server_start("--no-sr memory 4M");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 4 * MIB, 0);

    assert_seek(stream, 0, TRUE, 0);
    assert_seek(stream, 100, FALSE, 4 * MIB);
    assert_seek(stream, 4 * MIB, TRUE, -ENXIO);
    stream_end(stream);
    server_stop(pid);
}

/* ---- Errors ------------------------------------------------------------------------ */

typedef struct {
    const char *errnum;        /* what the server says */
    const char *rate;
    int failed_min;            /* of 1000 reads, each of which is tried twice */
    int failed_max;
} Errors;

static const Errors errors[] = {
    {"EIO", "1%", 0, 60},
    {"ESHUTDOWN", "10%", 20, 300},
    {"ENOSPC", "100%", 1000, 1000},
};

/* faults.md 49: EIO for the reads that failed, and right bytes for all others. */
static void test_errors_hit_single_reads(gconstpointer data)
{
    const Errors *kind = data;
    g_autofree char *plugin =
        g_strdup_printf("--filter=error pattern size=64M error-pread=%s error-pread-rate=%s",
                        kind->errnum, kind->rate);
    GPid pid = server_start(plugin);
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();
    int failed = 0;

    for (int i = 0; i < 1000; i++) {
        guint64 offset = i < 500 ? (guint64)i * 128 * KIB
                                 : (guint64)g_test_rand_int_range(0, 60 * MIB);
        int errnum = read_into(reader, call, offset, 128 * KIB);

        if (errnum) {
            g_assert_cmpint(errnum, ==, EIO);
            failed++;
        } else {
            assert_pattern(call->bytes, offset, 128 * KIB);
        }
    }
    g_test_message("%d of 1000 reads failed", failed);
    g_assert_cmpint(failed, >=, kind->failed_min);
    g_assert_cmpint(failed, <=, kind->failed_max);
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

/* faults.md 49: the connection is kept, and what was wrong is not remembered. */
static void test_errors_end(void)
{
    g_autofree char *trigger = g_strconcat(socket_path, ".error", NULL);
    g_autofree char *plugin =
        g_strdup_printf("--filter=error --filter=limit pattern size=64M limit=8"
                        " error-pread=EIO error-pread-rate=100%% error-pread-file=%s", trigger);
    GPid pid = server_start(plugin);
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    for (int round = 0; round < 3; round++) {
        assert_read(reader, call, 40 * MIB, 128 * KIB);
        assert_read(reader, call, 20 * MIB, 4096);
        g_assert_true(g_file_set_contents(trigger, "", 0, NULL));
        g_assert_cmpint(read_into(reader, call, 50 * MIB, 128 * KIB), ==, EIO);
        g_assert_cmpint(read_into(reader, call, 30 * MIB, 4096), ==, EIO);
        g_assert_cmpint(g_unlink(trigger), ==, 0);
        assert_read(reader, call, 50 * MIB, 128 * KIB);
        assert_read(reader, call, 30 * MIB, 4096);
    }
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

/* One byte cannot be read: it must not take its neighbours along. */
static void test_bad_sector(void)
{
    GPid pid = server_start("eval get_size='echo 524288' pread='if [ $4 -le 100000 ] &&"
                            " [ $(($4+$3)) -gt 100000 ]; then echo EIO x >&2; exit 1; fi;"
                            " head -c $3 /dev/zero' thread_model='echo parallel'");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 512 * KIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    for (guint64 offset = 0; offset < 512 * KIB; offset += 8 * KIB) {
        gboolean bad = offset <= 100000 && offset + 8 * KIB > 100000;

        g_assert_cmpint(read_into(reader, call, offset, 8 * KIB), ==, bad ? EIO : 0);
    }
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

/* faults.md 52; a negative size: test-nbd-liar.c. */
static void test_wrong_size_is_refused(void)
{
    static const guint64 sizes[] = {MIB - 1, MIB + 1, 0x7fffffffffffffff};
    GPid pid = server_start("pattern size=1M");
    g_autoptr(Call) call = call_new();

    for (guint i = 0; i < G_N_ELEMENTS(sizes); i++) {
        BeStream *stream = be_stream_new_nbd(socket_path, "", sizes[i], 0);
        BeReader *reader = be_reader_new(stream);
        int errnum;

        g_assert_cmpint(read_into(reader, call, 0, 4096), ==, EIO);
        seek(stream, 0, TRUE, &errnum);
        g_assert_cmpint(errnum, ==, EIO);
        be_reader_free(reader);
        stream_end(stream);
    }
    server_stop(pid);
}

/* faults.md 52. */
static void test_huge_size_is_refused(void)
{
    GPid pid = server_start("null size=9223372036854775807");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 0x7fffffffffffffff, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, EIO);
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

static void test_no_server(void)
{
    BeStream *stream = be_stream_new_nbd("/nonexistent/socket", "", MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, EIO);
    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, EIO);
    be_reader_free(reader);
    stream_end(stream);
}

/* ---- Main -------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    if (!stream_tool_begin()) {
        g_print("1..0 # SKIP nbdkit is not installed\n");
        return 0;
    }
    g_test_add_func("/stream/bytes", test_bytes);
    g_test_add_func("/stream/odd-size", test_odd_size);
    g_test_add_func("/stream/minimum-block", test_minimum_block);
    g_test_add_func("/stream/large-minimum-block", test_large_minimum_block);
    g_test_add_func("/stream/no-structured-replies", test_no_structured_replies);
    g_test_add_func("/stream/one-connection", test_one_connection);
    g_test_add_func("/stream/limited-connections", test_limited_connections);
    g_test_add_func("/stream/answers-out-of-order", test_answers_out_of_order);
    g_test_add_func("/stream/many-random-reads", test_many_random_reads);
    g_test_add_func("/stream/edges-of-a-read", test_edges_of_a_read);
    g_test_add_func("/stream/holes", test_holes);
    g_test_add_func("/stream/holes-at-random", test_holes_at_random);
    g_test_add_func("/stream/no-map-is-all-data", test_no_map_is_all_data);
    for (guint i = 0; i < G_N_ELEMENTS(errors); i++) {
        g_autofree char *path = g_strconcat("/stream/errors-hit-single-reads/", errors[i].errnum,
                                            NULL);

        g_test_add_data_func(path, &errors[i], test_errors_hit_single_reads);
    }
    g_test_add_func("/stream/errors-end", test_errors_end);
    g_test_add_func("/stream/bad-sector", test_bad_sector);
    g_test_add_func("/stream/wrong-size-is-refused", test_wrong_size_is_refused);
    g_test_add_func("/stream/huge-size-is-refused", test_huge_size_is_refused);
    g_test_add_func("/stream/no-server", test_no_server);
    status = g_test_run();
    stream_tool_end();
    return status;
}
