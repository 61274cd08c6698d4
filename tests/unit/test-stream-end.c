/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-stream-end.c - streams when something ends in the middle: the server,
 * the reader, the backup, the patience.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stream-tool.h"

#define SLOW "--filter=delay pattern size=64M delay-read=2"

static gint64 elapsed_ms(gint64 start_us)
{
    return (g_get_monotonic_time() - start_us) / 1000;
}

/* ---- The server goes ---------------------------------------------------------------- */

/* faults.md 50: EIO, never zeroes; with a job: tests/test_backup.py. */
static void test_death_is_eio(void)
{
    GPid pid = server_start("pattern size=256M");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 256 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();
    guint64 offset = 0;
    int errnum = 0;

    assert_read(reader, call, 0, 128 * KIB);
    for (; offset < 20 * MIB; offset += 128 * KIB) {
        assert_read(reader, call, offset, 128 * KIB);
    }
    server_stop(pid);
    /* What had been read ahead is still right. */
    for (; errnum == 0; offset += 128 * KIB) {
        errnum = read_into(reader, call, offset, 128 * KIB);
        if (errnum == 0) {
            assert_pattern(call->bytes, offset, call->result);
        }
    }
    g_assert_cmpint(errnum, ==, EIO);
    g_assert_cmpuint(offset, <, 40 * MIB);
    be_reader_free(reader);
    stream_end(stream);
}

/* faults.md 50: one new connection. */
static void test_new_server_is_found(void)
{
    GPid pid = server_start("pattern size=64M");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    assert_read(reader, call, 0, 4096);
    server_stop(pid);
    pid = server_start("pattern size=64M");
    /* One reconnection, not noticed by the reader. */
    assert_read(reader, call, 40 * MIB, 128 * KIB);
    for (int i = 0; i < 50; i++) {
        assert_read(reader, call, (guint64)i * MIB + 123, 4096);
    }
    server_stop(pid);
    pid = server_start("pattern size=32M");
    g_assert_cmpint(read_into(reader, call, 60 * MIB, 128 * KIB), ==, EIO);
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

static gpointer read_until_error(gpointer data)
{
    BeReader *reader = data;
    g_autoptr(Call) call = call_new();
    GRand *rand = g_rand_new_with_seed(7);
    int errnum = 0;

    while (errnum == 0) {
        guint64 offset = (guint64)g_rand_int_range(rand, 0, 60 * MIB);
        gsize length = (gsize)g_rand_int_range(rand, 1, 300 * KIB);

        errnum = read_into(reader, call, offset, length);
        if (errnum == 0) {
            assert_pattern(call->bytes, offset, call->result);
        }
    }
    g_rand_free(rand);
    return GINT_TO_POINTER(errnum);
}

static void run_and_end(void (*end)(BeStream *stream, GPid pid))
{
    GPid pid = server_start("pattern size=64M");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    GThread *threads[4];

    for (guint i = 0; i < G_N_ELEMENTS(threads); i++) {
        threads[i] = g_thread_new("load", read_until_error, reader);
    }
    g_usleep(200 * 1000);
    end(stream, pid);
    for (guint i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_assert_cmpint(GPOINTER_TO_INT(g_thread_join(threads[i])), ==, EIO);
    }
    be_reader_free(reader);
    stream_end(stream);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void end_by_kill(BeStream *stream G_GNUC_UNUSED, GPid pid)
{
    kill(pid, SIGKILL);
}

static void end_by_fail(BeStream *stream, GPid pid G_GNUC_UNUSED)
{
    g_autofree char *reason = NULL;

    be_stream_fail(stream, "the machine died");
    be_stream_fail(stream, "again");
    reason = be_stream_reason(stream);
    g_assert_cmpstr(reason, ==, "the machine died");
}

static void end_by_close(BeStream *stream, GPid pid G_GNUC_UNUSED)
{
    be_stream_close(stream);
}

static void test_death_under_load(void)
{
    run_and_end(end_by_kill);
}

static void test_fail_under_load(void)
{
    run_and_end(end_by_fail);
}

static void test_close_under_load(void)
{
    run_and_end(end_by_close);
}

/* ---- The reader goes ----------------------------------------------------------------- */

static void test_cancel(void)
{
    GPid pid = server_start(SLOW);
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();
    gint64 best_ms = G_MAXINT64;

    /* 50 ms is what was promised; a busy machine keeps it at least once. */
    for (int i = 0; i < 5; i++) {
        BeRead *read = be_reader_read(reader, 0, 128 * KIB, read_done, call);
        gint64 start_us;

        g_usleep(50 * 1000);
        start_us = g_get_monotonic_time();
        be_read_cancel(read);
        g_assert_cmpint(call_wait(call), ==, ECANCELED);
        best_ms = MIN(best_ms, elapsed_ms(start_us));
        be_read_cancel(read);
        be_read_unref(read);
    }
    g_assert_cmpint(best_ms, <, 50);
    /* What comes for the cancelled ones serves this one. */
    assert_read(reader, call, 0, 128 * KIB);
    g_assert_cmpuint(be_stream_bytes_fetched(stream), <=, 512 * KIB);
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

static void test_cancel_while_connecting(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_autofree char *path = stream_tool_path("mute");
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    BeStream *stream = be_stream_new_nbd(path, "", MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();
    gint64 start_us = g_get_monotonic_time();
    BeRead *read;

    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(listen(fd, 5), ==, 0);
    read = be_reader_read(reader, 0, 4096, read_done, call);
    be_read_cancel(read);
    g_assert_cmpint(call_wait(call), ==, ECANCELED);
    be_read_unref(read);
    be_reader_free(reader);
    stream_end(stream);
    g_assert_cmpint(elapsed_ms(start_us), <, 2000);
    /* Nobody answers: that takes as long as we said. */
    stream = be_stream_new_nbd(path, "", MIB, 0);
    be_stream_set_timeout(stream, 300 * 1000);
    reader = be_reader_new(stream);
    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, ETIMEDOUT);
    be_reader_free(reader);
    stream_end(stream);
    close(fd);
}

#define FLIGHT 20

static void test_free_with_reads_in_flight(void)
{
    GPid pid = server_start(SLOW);
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    Call *calls[FLIGHT];

    for (int round = 0; round < 3; round++) {
        BeReader *reader = be_reader_new(stream);
        gint64 start_us;

        for (int i = 0; i < FLIGHT; i++) {
            guint64 offset = (guint64)i * (round ? 3 * MIB : MIB);

            calls[i] = call_new();
            be_read_unref(be_reader_read(reader, offset, MIB, read_done, calls[i]));
        }
        g_usleep(round * 100 * 1000);
        start_us = g_get_monotonic_time();
        be_reader_free(reader);
        for (int i = 0; i < FLIGHT; i++) {
            g_assert_cmpint(call_wait(calls[i]), ==, ECANCELED);
            call_free(calls[i]);
        }
        g_assert_cmpint(elapsed_ms(start_us), <, 1000);
    }
    stream_end(stream);
    server_stop(pid);
}

static void done_and_free(const struct iovec *iov G_GNUC_UNUSED, int count G_GNUC_UNUSED,
                          int errnum, gpointer user)
{
    gpointer *pair = user;

    be_reader_free(pair[0]);
    read_done(NULL, 0, errnum ? errnum : EALREADY, pair[1]);
}

/* The last reference to everything goes inside the callback. */
static void test_free_inside_done(void)
{
    GPid pid = server_start("pattern size=64M");

    for (int i = 0; i < 20; i++) {
        BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
        BeReader *reader = be_reader_new(stream);
        g_autoptr(Call) call = call_new();
        gpointer pair[2] = {reader, call};

        if (i % 2) {
            assert_read(reader, call, 0, 128 * KIB);
        }
        be_stream_unref(stream);
        be_read_unref(be_reader_read(reader, 0, 128 * KIB, done_and_free, pair));
        g_assert_cmpint(call_wait(call), ==, EALREADY);
    }
    server_stop(pid);
}

/* ---- Time ------------------------------------------------------------------------------ */

/* faults.md 51; that a signal ends the wait: tests/test_interrupt.py. */
static void test_deadline(void)
{
    GPid pid = server_start("--filter=delay pattern size=64M delay-read=3");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();
    gint64 start_us;

    assert_read(reader, call, 40 * MIB, 4096);
    be_stream_set_timeout(stream, 200 * 1000);
    for (int i = 0; i < 4; i++) {
        /* Large and small: the small one waits on its caller's thread. */
        gsize length = i % 2 ? 4096 : 128 * KIB;

        start_us = g_get_monotonic_time();
        g_assert_cmpint(read_into(reader, call, (guint64)i * 8 * MIB, length), ==, ETIMEDOUT);
        g_assert_cmpint(elapsed_ms(start_us), >=, 200);
        g_assert_cmpint(elapsed_ms(start_us), <, 2000);
    }
    be_stream_set_timeout(stream, 10 * G_USEC_PER_SEC);
    assert_read(reader, call, 0, 128 * KIB);
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

static void test_rate(void)
{
    GPid pid = server_start("pattern size=64M");
    BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
    BeReader *reader = be_reader_new(stream);
    BeRate *rate = be_rate_new(4 * MIB);
    g_autoptr(Call) call = call_new();
    gint64 start_us = g_get_monotonic_time();
    double seconds;

    be_stream_set_rate(stream, rate);
    /* Waiting for the limit is longer than that, and does not count. */
    be_stream_set_timeout(stream, 500 * 1000);
    assert_read(reader, call, 0, 4 * MIB);
    assert_read(reader, call, 4 * MIB, 4 * MIB);
    seconds = (double)(g_get_monotonic_time() - start_us) / G_USEC_PER_SEC;
    g_test_message("8 MiB at 4 MiB/s took %.2f s", seconds);
    g_assert_cmpfloat(seconds, >, 1.9);
    g_assert_cmpfloat(seconds, <, 3);
    be_rate_set(rate, 0);
    be_stream_set_timeout(stream, BE_STREAM_TIMEOUT_US);
    assert_read(reader, call, 32 * MIB, 4 * MIB);
    be_rate_set(rate, 1000);
    be_read_unref(be_reader_read(reader, 40 * MIB, 1 * MIB, read_done, call));
    be_rate_unref(rate);
    be_reader_free(reader);
    g_assert_cmpint(call_wait(call), ==, ECANCELED);
    stream_end(stream);
    server_stop(pid);
}

/* ---- A server on demand ------------------------------------------------------------------ */

typedef struct {
    GPid pid;
    gint prepared;             /* atomic */
    gint destroyed;            /* atomic */
    gboolean refuse;
} Demand;

static char *demand_prepare(gpointer user, GError **error)
{
    Demand *demand = user;

    g_atomic_int_inc(&demand->prepared);
    if (demand->refuse) {
        g_set_error(error, BE_ERROR, EACCES, "not today");
        return NULL;
    }
    demand->pid = server_start("pattern size=64M");
    return g_strdup(socket_path);
}

static void demand_destroy(gpointer user)
{
    Demand *demand = user;

    g_atomic_int_inc(&demand->destroyed);
}

static BeStream *demand_stream(Demand *demand, guint64 size)
{
    BeNbdExport nbd = {.name = "", .size = size, .prepare = demand_prepare, .prepare_user = demand,
                       .prepare_destroy = demand_destroy};

    return be_stream_new_nbd_export(&nbd);
}

static void test_server_on_demand(void)
{
    Demand demand = {.refuse = TRUE};
    BeStream *stream = demand_stream(&demand, 64 * MIB);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    g_assert_cmpint(g_atomic_int_get(&demand.prepared), ==, 0);
    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, EIO);
    demand.refuse = FALSE;
    assert_read(reader, call, 0, 128 * KIB);
    g_assert_cmpint(g_atomic_int_get(&demand.prepared), ==, 2);
    /* It is started once more; the connections of the dead one are found dead one by
     * one, and the read goes over several of them. */
    for (int round = 1; round <= 5; round++) {
        server_stop(demand.pid);
        assert_read(reader, call, (guint64)round * 10 * MIB, 128 * KIB);
        g_assert_cmpint(g_atomic_int_get(&demand.prepared), ==, 2 + round);
    }
    be_reader_free(reader);
    stream_end(stream);
    g_assert_cmpint(g_atomic_int_get(&demand.destroyed), ==, 1);
    server_stop(demand.pid);
}

static gpointer open_and_close(gpointer data G_GNUC_UNUSED)
{
    g_autoptr(Call) call = call_new();

    for (int i = 0; i < 60; i++) {
        BeStream *stream = be_stream_new_nbd(socket_path, "", 64 * MIB, 0);
        BeReader *reader = be_reader_new(stream);

        /* Its end kicks the clock, which then looks at all of them. */
        be_read_unref(be_reader_read(reader, 0, MIB, read_done, call));
        be_reader_free(reader);
        call_wait(call);
        stream_end(stream);
    }
    return NULL;
}

/* The last ones go together, again and again, while the clock ticks. */
static void test_many_end_at_once(void)
{
    GPid pid = server_start("pattern size=64M");
    GThread *threads[6];

    for (guint i = 0; i < G_N_ELEMENTS(threads); i++) {
        threads[i] = g_thread_new("open-and-close", open_and_close, NULL);
    }
    for (guint i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_thread_join(threads[i]);
    }
    server_stop(pid);
}

static void ignore_seek(gint64 offset G_GNUC_UNUSED, int errnum G_GNUC_UNUSED,
                        gpointer user G_GNUC_UNUSED)
{
}

static void test_unused_stream_starts_nothing(void)
{
    Demand demand = {0};
    BeStream *stream = demand_stream(&demand, 64 * MIB);
    int errnum;

    g_assert_cmpuint(be_stream_size(stream), ==, 64 * MIB);
    be_stream_close(stream);
    be_stream_close(stream);
    g_assert_cmpint(seek(stream, 0, TRUE, &errnum), ==, -1);
    g_assert_cmpint(errnum, ==, EIO);
    be_stream_unref(stream);
    be_stream_unref(NULL);
    be_stream_unref(demand_stream(&demand, 1));
    g_assert_cmpint(g_atomic_int_get(&demand.prepared), ==, 0);
    g_assert_cmpint(g_atomic_int_get(&demand.destroyed), ==, 2);
}

/* What a stream stands on is freed after the wait: so it is closed by then, and the map
 * that was on its way is not fetched any more. */
static void test_nothing_is_under_way(void)
{
    g_assert_true(be_streams_wait(30 * G_USEC_PER_SEC));
    for (int round = 0; round < 20; round++) {
        Demand demand = {0};
        BeStream *stream = demand_stream(&demand, 64 * MIB);
        BeReader *reader = be_reader_new(stream);
        g_autoptr(Call) call = call_new();

        assert_read(reader, call, 0, 128 * KIB);
        be_stream_seek(stream, 0, TRUE, ignore_seek, NULL);
        be_reader_free(reader);
        be_stream_unref(stream);
        g_assert_true(be_streams_wait(30 * G_USEC_PER_SEC));
        g_assert_cmpint(g_atomic_int_get(&demand.destroyed), ==, 1);
        server_stop(demand.pid);
    }
}

/* ---- Main ---------------------------------------------------------------- */

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    if (!stream_tool_begin()) {
        g_print("1..0 # SKIP nbdkit is not installed\n");
        return 0;
    }
    g_test_add_func("/stream-end/death-is-eio", test_death_is_eio);
    g_test_add_func("/stream-end/new-server-is-found", test_new_server_is_found);
    g_test_add_func("/stream-end/death-under-load", test_death_under_load);
    g_test_add_func("/stream-end/fail-under-load", test_fail_under_load);
    g_test_add_func("/stream-end/close-under-load", test_close_under_load);
    g_test_add_func("/stream-end/cancel", test_cancel);
    g_test_add_func("/stream-end/cancel-while-connecting", test_cancel_while_connecting);
    g_test_add_func("/stream-end/free-with-reads-in-flight", test_free_with_reads_in_flight);
    g_test_add_func("/stream-end/free-inside-done", test_free_inside_done);
    g_test_add_func("/stream-end/deadline", test_deadline);
    g_test_add_func("/stream-end/rate", test_rate);
    g_test_add_func("/stream-end/server-on-demand", test_server_on_demand);
    g_test_add_func("/stream-end/many-end-at-once", test_many_end_at_once);
    g_test_add_func("/stream-end/nothing-is-under-way", test_nothing_is_under_way);
    g_test_add_func("/stream-end/unused-stream-starts-nothing", test_unused_stream_starts_nothing);
    status = g_test_run();
    stream_tool_end();
    return status;
}
