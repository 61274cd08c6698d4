/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-stream-end.c - streams when something ends in the middle: the server,
 * the reader, the backup, the patience; and servers that lie.
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

/* ---- Liars ---------------------------------------------------------------------------------- */

/*
 * A server with structured replies and base:allocation that breaks one rule,
 * named by its second argument.
 */
static const char liar[] =
    "import ctypes, socket, struct, sys, threading\n"
    "ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL\n"
    "path, lie = sys.argv[1:]\n"
    "S = struct.pack\n"
    "def get(c, n):\n"
    "    b = b''\n"
    "    while len(b) < n:\n"
    "        d = c.recv(n - len(b))\n"
    "        if not d: raise EOFError\n"
    "        b += d\n"
    "    return b\n"
    "def opt(c, o, t, d=b''):\n"
    "    c.sendall(S('>QIII', 0x3e889045565a9, o, t, len(d)) + d)\n"
    "def chunk(c, h, t, d=b'', f=1):\n"
    "    c.sendall(S('>IHHQI', 0x668e33ef, f, t, h, len(d)) + d)\n"
    "def serve(c):\n"
    "    c.sendall(b'NBDMAGICIHAVEOPT' + S('>H', 3)); get(c, 4)\n"
    "    while True:\n"
    "        _, o, n = struct.unpack('>8sII', get(c, 16)); get(c, n)\n"
    "        if lie == 'tls-required' and o == 1: return\n"
    "        elif lie == 'tls-required': opt(c, o, 0x80000005)\n"
    "        elif o == 8: opt(c, o, 1)\n"
    "        elif o == 10: opt(c, o, 4, S('>I', 1) + b'base:allocation'); opt(c, o, 1)\n"
    "        elif o == 7:\n"
    "            size = 1 << 63 if lie == 'negative-size' else 1 << 20\n"
    "            opt(c, o, 3, S('>HQH', 0, size, 0x103))\n"
    "            opt(c, o, 1); break\n"
    "        else: opt(c, o, 0x80000001)\n"
    "    while True:\n"
    "        _, _, t, h, off, n = struct.unpack('>IHHQQI', get(c, 28))\n"
    "        if t == 2: return\n"
    "        if t == 7:\n"
    "            e = {'zero-extent': [0, 0], 'past-end': [4096, 0, 0xffffffff, 3, 0xffffffff, 0],\n"
    "                 'no-extent': [4096]}.get(lie, [n, 0])\n"
    "            chunk(c, h, 5, S('>%dI' % (len(e) + 1), 1, *e))\n"
    "        elif lie == 'short-data': chunk(c, h, 1, S('>Q', off) + b'x' * (n // 2))\n"
    "        elif lie == 'no-data': chunk(c, h, 0)\n"
    "        elif lie == 'wrong-place': chunk(c, h, 1, S('>Q', off + 4096) + b'x' * n)\n"
    "        elif lie == 'unknown': chunk(c, h ^ 1, 1, S('>Q', off) + b'x' * n)\n"
    "        elif lie == 'twice':\n"
    "            for i in 0, 1: chunk(c, h, 1, S('>Q', off) + b'x' * n)\n"
    "        elif lie == 'twice-simple':\n"
    "            for i in 0, 1: c.sendall(S('>IIQ', 0x67446698, 5, h))\n"
    "        elif lie == 'garbage': c.sendall(b'garbage' * 1000)\n"
    "        elif lie == 'hole-twice':\n"
    "            for f in 0, 1: chunk(c, h, 2, S('>QI', off, n), f)\n"
    "        else: chunk(c, h, 1, S('>Q', off) + b'x' * n)\n"
    "def run(c):\n"
    "    try: serve(c)\n"
    "    except (EOFError, OSError): pass\n"
    "    c.close()\n"
    "s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(10)\n"
    "open(path + '.pid', 'w').close()\n"
    "while True:\n"
    "    threading.Thread(target=run, args=(s.accept()[0],), daemon=True).start()\n";

static GPid liar_start(const char *lie)
{
    g_autofree char *quoted = g_shell_quote(liar);
    g_autofree char *line = g_strdup_printf("python3 -c %s %s %s", quoted, socket_path, lie);

    return server_start_line(line);
}

static void test_lies_about_data(gconstpointer lie)
{
    GPid pid = liar_start(lie);
    BeStream *stream = be_stream_new_nbd(socket_path, "", MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(read_into(reader, call, (guint64)i * 300 * KIB, 128 * KIB), ==, EIO);
        g_assert_cmpint(read_into(reader, call, (guint64)i * 200 * KIB, 4096), ==, EIO);
    }
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

static void test_lies_about_extents(gconstpointer lie)
{
    GPid pid = liar_start(lie);
    BeStream *stream = be_stream_new_nbd(socket_path, "", MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();
    int errnum;

    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(seek(stream, 0, FALSE, &errnum), ==, -1);
        g_assert_cmpint(errnum, ==, EIO);
        g_assert_cmpint(read_into(reader, call, 0, 128 * KIB), ==, 0);
        g_assert_cmpint(call->bytes[5], ==, 'x');
    }
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

/* libnbd gives the connection up; what was answered right before that was right. */
static void test_answers_too_many(gconstpointer lie)
{
    GPid pid = liar_start(lie);
    BeStream *stream = be_stream_new_nbd(socket_path, "", MIB, 0);
    BeReader *reader = be_reader_new(stream);
    g_autoptr(Call) call = call_new();

    for (int i = 0; i < 6; i++) {
        int errnum = read_into(reader, call, (guint64)i * 100 * KIB, i % 2 ? 4096 : 128 * KIB);

        g_assert_true(errnum == EIO || (errnum == 0 && call->bytes[5] == 'x'));
    }
    be_reader_free(reader);
    stream_end(stream);
    server_stop(pid);
}

static void test_extents_past_end_are_cut(void)
{
    GPid pid = liar_start("past-end");
    BeStream *stream = be_stream_new_nbd(socket_path, "", MIB, 0);
    int errnum;

    g_assert_cmpint(seek(stream, 0, FALSE, &errnum), ==, 4096);
    g_assert_cmpint(seek(stream, 4096, TRUE, &errnum), ==, -1);
    g_assert_cmpint(errnum, ==, ENXIO);
    stream_end(stream);
    server_stop(pid);
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
    g_test_add_func("/stream-end/unused-stream-starts-nothing", test_unused_stream_starts_nothing);
    for (const char *const *lie = (const char *const[]){"short-data", "no-data", "wrong-place",
                                                        "garbage", "hole-twice", "negative-size",
                                                        "tls-required", NULL};
         *lie; lie++) {
        g_autofree char *path = g_strconcat("/stream-end/lies/", *lie, NULL);

        g_test_add_data_func(path, *lie, test_lies_about_data);
    }
    for (const char *const *lie = (const char *const[]){"unknown", "twice", "twice-simple", NULL};
         *lie; lie++) {
        g_autofree char *path = g_strconcat("/stream-end/lies/", *lie, NULL);

        g_test_add_data_func(path, *lie, test_answers_too_many);
    }
    g_test_add_data_func("/stream-end/lies/zero-extent", "zero-extent", test_lies_about_extents);
    g_test_add_data_func("/stream-end/lies/no-extent", "no-extent", test_lies_about_extents);
    g_test_add_func("/stream-end/lies/past-end", test_extents_past_end_are_cut);
    status = g_test_run();
    stream_tool_end();
    return status;
}
