/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-image-stream.c - the stream of a disk that is held by local images, and
 * the internal snapshots of one, against what qemu-img makes of them.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "backend/image-stream.h"
#include "backend/lease.h"
#include "stream-tool.h"
#include "tool.h"

static const char *const tools[] = {"qemu-img", "qemu-io", "qemu-nbd", NULL};

static char *dir;

static char *in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

static GPtrArray *inspect(const char *path, const char *format)
{
    g_autoptr(GError) error = NULL;
    GPtrArray *chain = be_image_chain_inspect(path, format, &error);

    g_assert_no_error(error);
    return chain;
}

/* The stream alone holds the chain afterwards. */
static BeStream *stream_of(const char *path, const char *format, const char *snapshot)
{
    g_autoptr(GPtrArray) chain = inspect(path, format);
    BeImageSource source = {.chain = chain, .directory = dir, .snapshot = snapshot,
                            .in_use = snapshot != NULL};
    g_autoptr(GError) error = NULL;
    BeStream *stream = be_stream_new_image(&source, &error);

    g_assert_no_error(error);
    return stream;
}

static void assert_no_stream(const char *path, const char *format, const char *snapshot, int errnum)
{
    g_autoptr(GPtrArray) chain = inspect(path, format);
    BeImageSource source = {.chain = chain, .directory = dir, .snapshot = snapshot};
    g_autoptr(GError) error = NULL;

    g_assert_null(be_stream_new_image(&source, &error));
    g_assert_error(error, BE_ERROR, errnum);
}

static void write_pattern(const char *path, const char *command)
{
    TOOL_OK("qemu-io", "-f", "qcow2", "-c", command, path);
}

/* Reads a stream in sequence and at random; it must be the bytes of a raw file. */
static void assert_is(BeStream *stream, const char *raw)
{
    g_autoptr(Call) call = call_new();
    BeReader *reader = be_reader_new(stream);
    g_autofree char *bytes = NULL;
    gsize length = 0;

    g_assert_true(g_file_get_contents(raw, &bytes, &length, NULL));
    g_assert_cmpuint(be_stream_size(stream), ==, length);
    for (gsize at = 0; at < length; at += 128 * KIB) {
        gsize part = MIN(128 * KIB, length - at);

        g_assert_cmpint(read_into(reader, call, at, part), ==, 0);
        g_assert_cmpmem(call->bytes, call->result, bytes + at, part);
    }
    for (guint i = 0; i < 300; i++) {
        gsize at = (gsize)g_test_rand_int_range(0, (gint32)length);
        gsize part = (gsize)g_test_rand_int_range(1, 200 * KIB);

        part = MIN(part, length - at);
        g_assert_cmpint(read_into(reader, call, at, part), ==, 0);
        g_assert_cmpmem(call->bytes, call->result, bytes + at, part);
    }
    be_reader_free(reader);
}

static guint sockets(void)
{
    g_autoptr(GDir) handle = g_dir_open(dir, 0, NULL);
    const char *name;
    guint count = 0;

    while ((name = g_dir_read_name(handle))) {
        count += g_str_has_suffix(name, ".sock");
    }
    return count;
}

/* ---- Internal snapshots --------------------------------------------------- */

/* Commas are separators and dashes begin options to QEMU's tools. */
#define ODD_NAME "--a,snapshot.id=2,,b \xc3\xa9'\""

static void test_snapshot(void)
{
    g_autofree char *base = in_dir("base.qcow2");
    g_autofree char *path = in_dir("disk.qcow2");
    g_autofree char *then = in_dir("then.raw");
    BeStream *stream;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", base, "5M");
    write_pattern(base, "write -P 1 1M 512k");
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path, "4M");
    write_pattern(path, "write -P 2 0 1500");
    TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, then);
    TOOL_OK("qemu-img", "snapshot", "-c", "2", path);
    TOOL_OK("qemu-img", "snapshot", "-c", ODD_NAME, path);
    write_pattern(path, "write -P 3 0 4M");
    stream = stream_of(path, "qcow2", ODD_NAME);
    g_assert_cmpuint(sockets(), ==, 0);
    assert_is(stream, then);
    g_assert_cmpuint(sockets(), ==, 1);
    stream_end(stream);
    g_assert_cmpuint(sockets(), ==, 0);
    assert_no_stream(path, "qcow2", "1", ENOENT);
    assert_no_stream(path, "qcow2", "", ENOENT);
    assert_no_stream(path, "raw", "2", EOPNOTSUPP);
}

/* The image has another size now than the snapshot. */
static void test_snapshot_of_another_size(void)
{
    g_autofree char *path = in_dir("resized.qcow2");
    g_autofree char *then = in_dir("small.raw");
    BeStream *stream;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "3M");
    write_pattern(path, "write -P 1 0 3M");
    TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, then);
    TOOL_OK("qemu-img", "snapshot", "-c", "small", path);
    TOOL_OK("qemu-img", "resize", "-q", path, "6M");
    write_pattern(path, "write -P 2 0 6M");
    TOOL_OK("qemu-img", "snapshot", "-c", "large", path);
    stream = stream_of(path, "qcow2", "small");
    assert_is(stream, then);
    stream_end(stream);
    TOOL_OK("qemu-img", "resize", "-q", "--shrink", path, "3M");
    assert_no_stream(path, "qcow2", "large", EOPNOTSUPP);
}

/* Somebody has the image open for writing, as a running machine would. */
static void test_snapshot_of_an_image_in_use(void)
{
    g_autofree char *path = in_dir("used.qcow2");
    g_autofree char *then = in_dir("then.raw");
    g_autofree char *socket = in_dir("writer");
    g_autofree char *pid_file = in_dir("writer.pid");
    BeStream *stream;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "4M");
    write_pattern(path, "write -P 1 0 1M");
    TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, then);
    TOOL_OK("qemu-img", "snapshot", "-c", "s", path);
    TOOL_OK("qemu-nbd", "--fork", "-t", "-f", "qcow2", "-k", socket, "--pid-file", pid_file, path);
    stream = stream_of(path, "qcow2", "s");
    assert_is(stream, then);
    stream_end(stream);
    tool_stop_server(pid_file);
}

/* faults.md 109: a table that is not one. */
static void test_damaged_snapshot_table(void)
{
    g_autofree char *path = in_dir("damaged.qcow2");
    g_autofree char *bytes = NULL;
    gsize length;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "1M");
    TOOL_OK("qemu-img", "snapshot", "-c", "s", path);
    g_assert_true(g_file_get_contents(path, &bytes, &length, NULL));
    memset(bytes + 64, 0x7f, 8);
    g_assert_true(g_file_set_contents(path, bytes, (gssize)length, NULL));
    assert_no_stream(path, "qcow2", "s", EIO);
    /* More entries than there are bytes; all of them have no name. */
    memset(bytes + 64, 0, 8);
    bytes[64 + 6] = 2;
    memset(bytes + 0x20000, 0, length - 0x20000);
    memset(bytes + 60, 0xff, 4);
    g_assert_true(g_file_set_contents(path, bytes, (gssize)length, NULL));
    assert_no_stream(path, "qcow2", "s", EIO);
}

/* ---- Chains ----------------------------------------------------------------- */

static void test_chain(void)
{
    g_autofree char *base = in_dir("base.raw");
    g_autofree char *middle = in_dir("middle.qcow2");
    g_autofree char *top = in_dir("top.qcow2");
    g_autofree char *whole = in_dir("whole.raw");
    BeStream *stream;
    BeStream *other;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "raw", base, "3000k");
    TOOL_OK("qemu-io", "-f", "raw", "-c", "write -P 7 500k 2M", base);
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle, "2M");
    write_pattern(middle, "write -P 8 100k 300k");
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top, "4M");
    write_pattern(top, "write -P 9 1M 100k");
    write_pattern(top, "write -z 1500k 100k");
    TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, whole);
    stream = stream_of(top, "qcow2", NULL);
    other = stream_of(top, "qcow2", NULL);
    assert_is(stream, whole);
    assert_is(other, whole);
    stream_end(stream);
    be_stream_fail(other, "as when a backup fails");
    /* Without a close; a worker does it. */
    be_stream_unref(other);
}

/* ---- Straight from the files --------------------------------------------------- */

/* Random writes of every sort; @compressed: cluster by cluster, where QEMU can. */
static void scribble(const char *path, gint32 size, gint32 cluster, gboolean compressed)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);

    g_ptr_array_add(argv, g_strdup("qemu-io"));
    g_ptr_array_add(argv, g_strdup("-f"));
    g_ptr_array_add(argv, g_strdup("qcow2"));
    g_ptr_array_add(argv, g_strdup("-d"));
    g_ptr_array_add(argv, g_strdup("unmap"));
    for (guint i = 0; i < 25; i++) {
        gint32 length = g_test_rand_int_range(1, 300) * 512;
        gint32 start = g_test_rand_int_range(0, size / 512 - 300) * 512;
        gint32 pattern = g_test_rand_int_range(1, 255);
        gint32 sort = g_test_rand_int_range(0, 4);
        g_autofree char *write = NULL;

        /* QEMU does not compress into a cluster that is there already. */
        if (compressed && i < 6 && (gint32)(i + 1) * 3 * cluster <= size) {
            start = (gint32)i * 3 * cluster;
            length = cluster;
            write = g_strdup_printf("write -c -P %d", pattern);
        } else {
            write = sort < 2 ? g_strdup_printf("write -P %d", pattern)
                             : g_strdup(sort == 2 ? "write -z" : "discard");
        }
        g_ptr_array_add(argv, g_strdup("-c"));
        g_ptr_array_add(argv, g_strdup_printf("%s %d %d", write, start, length));
    }
    g_ptr_array_add(argv, g_strdup(path));
    g_ptr_array_add(argv, NULL);
    g_assert_cmpint(tool_run((const char *const *)argv->pdata, NULL), ==, 0);
}

static void assert_chain(const char *options, gint32 cluster, guint levels, gboolean compressed)
{
    g_autofree char *base = in_dir("level.raw");
    g_autofree char *whole = in_dir("whole.raw");
    g_autofree char *below = g_strdup(base);
    gint32 size = 0;
    BeStream *stream;

    TOOL_OK("qemu-img", "create", "-q", "-f", "raw", base, "3000k");
    TOOL_OK("qemu-io", "-f", "raw", "-c", "write -P 77 100k 1500k", base);
    for (guint i = 0; i < levels; i++) {
        g_autofree char *name = g_strdup_printf("level%u.qcow2", i);
        g_autofree char *path = in_dir(name);
        /* Larger and smaller than what is below it, and no multiple of a cluster. */
        gint32 wanted = g_test_rand_int_range(3000, 9000) * 512;
        g_autofree char *bytes = g_strdup_printf("%d", wanted);

        size = wanted;
        TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", below, "-F",
                i == 0 ? "raw" : "qcow2", path, bytes);
        scribble(path, size, cluster, compressed && i % 2 == 0);
        g_free(below);
        below = g_steal_pointer(&path);
    }
    TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", "raw", below, whole);
    stream = stream_of(below, "qcow2", NULL);
    assert_is(stream, whole);
    /* Nothing but compressed clusters needs a server; chance may have covered them all. */
    g_assert_cmpuint(sockets(), <=, compressed);
    stream_end(stream);
}

static void test_straight(void)
{
    static const struct {
        const char *options;
        gint32 cluster;
        guint levels;
        gboolean compressed;
    } cases[] = {
        {"cluster_size=512", 512, 2, FALSE},
        {"cluster_size=512", 512, 2, TRUE},
        {"cluster_size=4k", 4096, 10, FALSE},
        {"cluster_size=64k", 65536, 10, FALSE},
        {"cluster_size=64k", 65536, 3, TRUE},
        {"cluster_size=64k,compression_type=zstd", 65536, 2, TRUE},
        {"cluster_size=64k,compat=0.10", 65536, 3, FALSE},
        {"cluster_size=64k,lazy_refcounts=on,refcount_bits=1", 65536, 2, FALSE},
        {"cluster_size=2M", 2 * MIB, 3, FALSE},
        {"cluster_size=64k,extended_l2=on", 65536, 3, FALSE},
        {"cluster_size=2M,extended_l2=on", 2 * MIB, 2, FALSE},
        {"cluster_size=64k,extended_l2=on", 65536, 3, TRUE},
    };

    if (tool_missing(tools)) {
        return;
    }
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_test_message("%s, %u levels", cases[i].options, cases[i].levels);
        assert_chain(cases[i].options, cases[i].cluster, cases[i].levels, cases[i].compressed);
    }
}

/* What is allocated in the tables and not in the file reads as zeroes, and is a hole. */
static void test_preallocated(void)
{
    g_autofree char *path = in_dir("preallocated.qcow2");
    g_autofree char *whole = in_dir("whole.raw");
    BeStream *stream;
    int errnum;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "40M");
    write_pattern(path, "write -P 5 30M 128k");
    TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, whole);
    stream = stream_of(path, "qcow2", NULL);
    g_assert_cmpint(seek(stream, 0, TRUE, &errnum), ==, 30 * MIB);
    g_assert_cmpint(seek(stream, 30 * MIB, FALSE, &errnum), ==, 30 * MIB + 128 * KIB);
    assert_is(stream, whole);
    stream_end(stream);
}

/* A raw disk whose last sector is not whole, as QEMU shows it. */
static void test_raw(void)
{
    g_autofree char *path = in_dir("odd.raw");
    g_autofree char *whole = in_dir("whole.raw");
    g_autofree char *bytes = g_malloc(300000);
    BeStream *stream;

    if (tool_missing(tools)) {
        return;
    }
    memset(bytes, 'r', 300000);
    g_assert_true(g_file_set_contents(path, bytes, 300000, NULL));
    TOOL_OK("qemu-img", "convert", "-f", "raw", "-O", "raw", path, whole);
    stream = stream_of(path, "raw", NULL);
    assert_is(stream, whole);
    g_assert_cmpuint(sockets(), ==, 0);
    stream_end(stream);
}

/* faults.md 109: tables that lead nowhere are QEMU's, and never made-up bytes. */
static void test_damaged_tables(void)
{
    g_autofree char *path = in_dir("lies.qcow2");
    g_autoptr(Call) call = call_new();
    g_autofree char *bytes = NULL;
    gsize length;

    if (tool_missing(tools)) {
        return;
    }
    for (guint round = 0; round < 30; round++) {
        BeStream *stream;
        BeReader *reader;
        guint64 l1;

        TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "1M");
        write_pattern(path, "write -P 5 0 1M");
        g_clear_pointer(&bytes, g_free);
        g_assert_true(g_file_get_contents(path, &bytes, &length, NULL));
        memcpy(&l1, bytes + 40, 8);
        l1 = GUINT64_FROM_BE(l1);
        /* A bit of the L1 entry, or of the entry of the first cluster behind it. */
        if (round % 2) {
            bytes[l1 + round / 2 % 7] ^= (char)(1 << round % 8);
        } else {
            bytes[l1 + 0x10000 + round / 2 % 7] ^= (char)(1 << round % 8);
        }
        g_assert_true(g_file_set_contents(path, bytes, (gssize)length, NULL));
        stream = stream_of(path, "qcow2", NULL);
        reader = be_reader_new(stream);
        if (read_into(reader, call, 0, 4096) == 0) {
            g_autofree char *whole = in_dir("whole.raw");
            g_autofree char *expected = NULL;
            gsize size;

            /* Then QEMU reads it too, and the same. */
            TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, whole);
            g_assert_true(g_file_get_contents(whole, &expected, &size, NULL));
            g_assert_cmpmem(call->bytes, call->result, expected, 4096);
        }
        be_reader_free(reader);
        stream_end(stream);
    }
}

/* Who would write into an image is told that it is being read; so is QEMU. */
static void test_lease(void)
{
    g_autofree char *path = in_dir("leased.qcow2");
    g_autofree char *other_name = in_dir("link");
    g_autoptr(Call) call = call_new();
    g_autoptr(GError) error = NULL;
    BeStream *stream;
    BeReader *reader;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "1M");
    g_assert_cmpint(symlink(path, other_name), ==, 0);
    stream = stream_of(path, "qcow2", NULL);
    reader = be_reader_new(stream);
    g_assert_false(be_lease_blocks(path, NULL));
    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, 0);
    g_assert_true(be_lease_blocks(path, &error));
    g_assert_error(error, BE_ERROR, EBUSY);
    g_assert_true(be_lease_blocks(other_name, NULL));
    g_assert_false(be_lease_blocks("/nowhere", NULL));
    g_assert_cmpint(TOOL("qemu-io", "-f", "qcow2", "-c", "write 0 1k", path), !=, 0);
    be_reader_free(reader);
    stream_end(stream);
    g_assert_false(be_lease_blocks(path, NULL));
    write_pattern(path, "write 0 1k");
}

/* An image that somebody writes to is not read. */
static void test_writer(void)
{
    g_autofree char *path = in_dir("written.raw");
    g_autofree char *socket = in_dir("writer");
    g_autofree char *pid_file = in_dir("writer.pid");
    g_autoptr(Call) call = call_new();
    BeStream *stream;
    BeReader *reader;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "raw", path, "1M");
    TOOL_OK("qemu-nbd", "--fork", "-t", "-f", "raw", "-k", socket, "--pid-file", pid_file, path);
    stream = stream_of(path, "raw", NULL);
    reader = be_reader_new(stream);
    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, EIO);
    g_assert_false(be_lease_blocks(path, NULL));
    tool_stop_server(pid_file);
    g_assert_cmpint(read_into(reader, call, 0, 4096), ==, 0);
    be_reader_free(reader);
    stream_end(stream);
}

static gboolean no_socket(gpointer data G_GNUC_UNUSED)
{
    return sockets() == 0;
}

static void test_nothing_is_left(void)
{
    g_assert_true(tool_wait(no_socket, NULL));
}

int main(int argc, char **argv)
{
    int result;

    g_test_init(&argc, &argv, NULL);
    dir = tool_dir_new();
    g_test_add_func("/image-stream/snapshot", test_snapshot);
    g_test_add_func("/image-stream/snapshot-size", test_snapshot_of_another_size);
    g_test_add_func("/image-stream/snapshot-in-use", test_snapshot_of_an_image_in_use);
    g_test_add_func("/image-stream/snapshot-damaged", test_damaged_snapshot_table);
    g_test_add_func("/image-stream/chain", test_chain);
    g_test_add_func("/image-stream/straight", test_straight);
    g_test_add_func("/image-stream/preallocated", test_preallocated);
    g_test_add_func("/image-stream/raw", test_raw);
    g_test_add_func("/image-stream/damaged-tables", test_damaged_tables);
    g_test_add_func("/image-stream/lease", test_lease);
    g_test_add_func("/image-stream/writer", test_writer);
    g_test_add_func("/image-stream/nothing-left", test_nothing_is_left);
    result = g_test_run();
    tool_dir_remove(dir);
    return result;
}
