/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-image-stream.c - the stream of a disk that is held by local images, and
 * the internal snapshots of one, against what qemu-img makes of them.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>

#include "backend/image-stream.h"
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
    tool_stop_server(pid_file, socket);
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
    g_test_add_func("/image-stream/nothing-left", test_nothing_is_left);
    result = g_test_run();
    tool_dir_remove(dir);
    return result;
}
