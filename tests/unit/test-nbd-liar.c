/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-nbd-liar.c - streams of servers that break the rules of NBD.
 */
#include <errno.h>

#include "stream-tool.h"

/*
 * A server with structured replies and base:allocation that breaks one rule,
 * named by its second argument.
 */
static const char liar[] =
    "import ctypes, random, socket, struct, sys, threading\n"
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
    "R, asked = random.Random(1), []\n"
    "def chaos(c, h, off, n):\n"
    "    asked.append(h)\n"
    "    for _ in range(R.randint(1, 3)):\n"
    "        t = R.choice([0, 1, 1, 2, 5, 6, 0x8001, 0x8002, 0x9000])\n"
    "        d = {1: S('>Q', off + R.choice([0, 0, 512])) + b'x' * R.choice([n, n, n // 2]),\n"
    "             2: S('>QI', off, R.choice([n, 0, 1 << 31])),\n"
    "             5: S('>IIIII', 1, R.choice([0, 4096, 1 << 31]), 0, n, 3),\n"
    "             0x8001: S('>IH', R.choice([0, 5]), R.choice([0, 9])),\n"
    "             0x8002: S('>IHQ', 5, 0, off)}.get(t, b'')\n"
    "        h = R.choice([h] * 8 + [asked[0], asked[-2:][0], h ^ 1])\n"
    "        chunk(c, h, t, d[:R.choice([len(d)] * 5 + [len(d) // 2])], R.choice([0, 1]))\n"
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
    "        if lie == 'chaos': chaos(c, h, off, n); continue\n"
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

/* faults.md 52 (negative-size), 53 (short, missing, misplaced, overlapping), 54 (tls-required). */
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

/* faults.md 53. */
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

/* Nothing that a server says ends us: whatever it is, reads end. */
static void test_chaos(void)
{
    GPid pid = liar_start("chaos");
    int errnum;

    for (int i = 0; i < 40; i++) {
        BeStream *stream = be_stream_new_nbd(socket_path, "", MIB, 0);
        BeReader *reader = be_reader_new(stream);
        g_autoptr(Call) call = call_new();

        be_stream_set_timeout(stream, 200 * 1000);
        for (int j = 0; j < 4; j++) {
            errnum = read_into(reader, call, (guint64)j * 100 * KIB, j % 2 ? 4096 : 128 * KIB);
            g_assert_true(errnum == 0 || errnum == EIO || errnum == ETIMEDOUT);
        }
        seek(stream, 0, FALSE, &errnum);
        be_reader_free(reader);
        stream_end(stream);
    }
    server_stop(pid);
}

/* faults.md 53. */
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
    for (const char *const *lie = (const char *const[]){"short-data", "no-data", "wrong-place",
                                                        "garbage", "hole-twice", "negative-size",
                                                        "tls-required", NULL};
         *lie; lie++) {
        g_autofree char *path = g_strconcat("/nbd-liar/", *lie, NULL);

        g_test_add_data_func(path, *lie, test_lies_about_data);
    }
    for (const char *const *lie = (const char *const[]){"unknown", "twice", "twice-simple", NULL};
         *lie; lie++) {
        g_autofree char *path = g_strconcat("/nbd-liar/", *lie, NULL);

        g_test_add_data_func(path, *lie, test_answers_too_many);
    }
    g_test_add_data_func("/nbd-liar/zero-extent", "zero-extent", test_lies_about_extents);
    g_test_add_data_func("/nbd-liar/no-extent", "no-extent", test_lies_about_extents);
    g_test_add_func("/nbd-liar/chaos", test_chaos);
    g_test_add_func("/nbd-liar/past-end", test_extents_past_end_are_cut);
    status = g_test_run();
    stream_tool_end();
    return status;
}
