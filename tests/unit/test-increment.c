/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-increment.c - what changed on a disk, over the persistent bitmap of a real
 * image: the incremental qcow2 file, its map, and whether they were read.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-glib/json-glib.h>
#include <string.h>
#include <unistd.h>

#include "backend/disk.h"
#include "backend/image-stream.h"
#include "stream-tool.h"
#include "tool.h"

static const char *const tools[] = {"qemu-img", "qemu-io", "qemu-nbd", NULL};

static char *dir;

static char *in_dir(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

static void write_pattern(const char *path, const char *command)
{
    TOOL_OK("qemu-io", "-f", "qcow2", "-d", "unmap", "-c", command, path);
}

/* A disk of 20 MiB with data, a copy of it as it was at the bitmap, then changes. */
static char *make_image(const char *name, const char *options, const char *base, const char *format)
{
    char *path = in_dir(name);

    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "20M");
    write_pattern(path, "write -P 1 0 12M");
    TOOL_OK("qemu-img", "convert", "-f", "qcow2", "-O", format, path, base);
    TOOL_OK("qemu-img", "bitmap", "--add", "-g", "64k", path, "b-1");
    write_pattern(path, "write -P 2 1M 100k");
    write_pattern(path, "write -P 3 15M 1");
    write_pattern(path, "write -z 4M 1M");
    write_pattern(path, "discard 6M 256k");
    write_pattern(path, "write -P 0 8M 64k");
    write_pattern(path, "write -P 4 20479k 1k");
    return path;
}

static BeDisk *disk_of(const char *path, const char *bitmap, const char *base, const char *format)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) chain = be_image_chain_inspect(path, "qcow2", &error);
    BeImageSource source = {.chain = chain, .directory = dir, .bitmap = bitmap};
    BeDisk *disk;

    g_assert_no_error(error);
    disk = be_disk_new("vda", be_image_chain_size(chain), be_image_chain_allocated(chain),
                       be_stream_new_image(&source, &error));
    g_assert_no_error(error);
    if (base) {
        be_disk_set_backing(disk, base, format);
    }
    return disk;
}

static int prepare(BeDisk *disk)
{
    g_autoptr(Call) call = call_new();

    be_disk_incremental_prepare(disk, call_done, call);
    return call_wait(call);
}

/* Reads from @from to @to into a file. */
static void copy(BeStream *stream, const char *path, guint64 from, guint64 to)
{
    g_autoptr(Call) call = call_new();
    BeReader *reader = be_reader_new(stream);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);

    g_assert_cmpint(fd, >=, 0);
    for (guint64 at = from; at < to; at += (guint64)call->result) {
        g_assert_cmpint(read_into(reader, call, at, MIN(128 * KIB, to - at)), ==, 0);
        g_assert_cmpint(call->result, >, 0);
        g_assert_cmpint(pwrite(fd, call->bytes, (gsize)call->result, (off_t)at), ==, call->result);
    }
    g_assert_cmpint(close(fd), ==, 0);
    be_reader_free(reader);
}

/* ---- The file ------------------------------------------------------------- */

static void assert_increment(const char *options, const char *format, guint64 size_max)
{
    g_autofree char *base_name = g_strconcat("base.", format, NULL);
    g_autofree char *base = in_dir(base_name);
    g_autofree char *path = make_image("disk.qcow2", options, base, format);
    g_autofree char *increment = in_dir("increment.qcow2");
    BeDisk *disk = disk_of(path, "b-1", base_name, format);
    guint64 size;

    g_assert_null(be_disk_incremental(disk));
    g_assert_cmpint(prepare(disk), ==, 0);
    g_assert_cmpint(prepare(disk), ==, 0);
    size = be_stream_size(be_disk_incremental(disk));
    g_assert_cmpuint(size, <=, size_max);
    copy(be_disk_incremental(disk), increment, 0, size);
    TOOL_OK("qemu-img", "check", "-f", "qcow2", increment);
    TOOL_OK("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", increment, path);
    TOOL_OK("qemu-img", "rebase", "-f", "qcow2", "-b", "", increment);
    TOOL_OK("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", increment, path);
    disk_end(disk);
    TOOL_OK("rm", path, base, increment);
}

static void test_file(void)
{
    if (tool_missing(tools)) {
        return;
    }
    /* 64 KiB twice for the 100 KiB, once for each of three others. */
    assert_increment("cluster_size=64k", "qcow2", 5 * 64 * KIB * 12 / 10);
    assert_increment("cluster_size=4k", "raw", 5 * 64 * KIB * 12 / 10);
    /* QEMU writes zeroes into a part of such a cluster. */
    assert_increment("cluster_size=2M", "qcow2", (5 + 16 + 4) * 64 * KIB * 12 / 10);
}

/* A disk without a base, as on the first day. */
static void test_no_base(void)
{
    g_autofree char *base = in_dir("base.raw");
    g_autofree char *path = NULL;
    g_autofree char *full = in_dir("full.qcow2");
    BeDisk *disk;

    if (tool_missing(tools)) {
        return;
    }
    path = make_image("disk.qcow2", "cluster_size=64k", base, "raw");
    disk = disk_of(path, NULL, NULL, NULL);
    g_assert_cmpint(prepare(disk), ==, 0);
    g_assert_true(be_disk_incremental(disk) == be_disk_full(disk));
    copy(be_disk_incremental(disk), full, 0, be_stream_size(be_disk_incremental(disk)));
    TOOL_OK("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", full, path);
    disk_end(disk);
    TOOL_OK("rm", path, base, full);
}

/* A base, and a server that knows nothing of the bitmap: no increment is made up. */
static void test_no_bitmap(void)
{
    g_autofree char *base = in_dir("base.raw");
    g_autofree char *path = NULL;
    g_autoptr(Call) call = call_new();
    BeDisk *disk;

    if (tool_missing(tools)) {
        return;
    }
    path = make_image("disk.qcow2", "cluster_size=64k", base, "raw");
    disk = disk_of(path, NULL, "base.raw", "raw");
    g_assert_cmpint(prepare(disk), ==, EUCLEAN);
    g_assert_null(be_disk_incremental(disk));
    be_disk_dirty_map_fetch(disk, call_text_done, call);
    g_assert_cmpint(call_wait(call), ==, EUCLEAN);
    disk_end(disk);
    disk = disk_of(path, "another", "base.raw", "raw");
    g_assert_cmpint(prepare(disk), ==, EIO);
    disk_end(disk);
    TOOL_OK("rm", path, base);
}

/* ---- The map -------------------------------------------------------------- */

static gint64 number(JsonArray *map, guint i, const char *name)
{
    return json_object_get_int_member(json_array_get_object_element(map, i), name);
}

static gboolean truth(JsonArray *map, guint i, const char *name)
{
    return json_object_get_boolean_member(json_array_get_object_element(map, i), name);
}

/* Whether all of it is @dirty and @zero as told. */
static void assert_range(JsonArray *map, gint64 start, gint64 length, gboolean dirty, gboolean zero)
{
    for (guint i = 0; i < json_array_get_length(map); i++) {
        gint64 from = MAX(start, number(map, i, "start"));
        gint64 to = MIN(start + length, number(map, i, "start") + number(map, i, "length"));

        if (from < to) {
            g_assert_cmpint(truth(map, i, "dirty"), ==, dirty);
            g_assert_cmpint(truth(map, i, "zero"), ==, zero);
        }
    }
}

static void test_map(void)
{
    g_autofree char *base = in_dir("base.raw");
    g_autofree char *path = NULL;
    g_autoptr(Call) call = call_new();
    g_autoptr(JsonNode) root = NULL;
    JsonArray *map;
    gint64 at = 0;
    BeDisk *disk;

    if (tool_missing(tools)) {
        return;
    }
    path = make_image("disk.qcow2", "cluster_size=64k", base, "raw");
    disk = disk_of(path, "b-1", "base.raw", "raw");
    be_disk_dirty_map_fetch(disk, call_text_done, call);
    g_assert_cmpint(call_wait(call), ==, 0);
    root = json_from_string((char *)call->bytes, NULL);
    map = json_node_get_array(root);
    for (guint i = 0; i < json_array_get_length(map); i++) {
        g_assert_cmpint(number(map, i, "start"), ==, at);
        at += number(map, i, "length");
    }
    g_assert_cmpint(at, ==, 20 * MIB);
    assert_range(map, 0, MIB, FALSE, FALSE);
    assert_range(map, MIB, 128 * KIB, TRUE, FALSE);
    assert_range(map, MIB + 128 * KIB, 2 * MIB, FALSE, FALSE);
    assert_range(map, 4 * MIB, MIB, TRUE, TRUE);
    assert_range(map, 6 * MIB, 256 * KIB, TRUE, TRUE);
    assert_range(map, 8 * MIB, 64 * KIB, TRUE, FALSE);
    assert_range(map, 12 * MIB, 3 * MIB, FALSE, TRUE);
    assert_range(map, 15 * MIB, 64 * KIB, TRUE, FALSE);
    disk_end(disk);
    TOOL_OK("rm", path, base);
}

/* ---- Taken ---------------------------------------------------------------- */

static void assert_taken(BeStream *stream, BeDisk *disk)
{
    g_autofree char *sink = in_dir("sink");
    guint64 size = be_stream_size(stream);

    copy(stream, sink, 0, size - 128 * KIB);
    g_assert_false(be_stream_was_read_whole(stream));
    g_assert_false(be_disk_was_taken(disk));
    copy(stream, sink, size - 128 * KIB, size);
    g_assert_true(be_stream_was_read_whole(stream));
    g_assert_true(be_disk_was_taken(disk));
    TOOL_OK("rm", sink);
}

static BeStream *full_of(BeDisk *disk)
{
    g_autoptr(Call) call = call_new();

    be_disk_full_prepare(disk, call_done, call);
    g_assert_cmpint(call_wait(call), ==, 0);
    return be_disk_full(disk);
}

static void test_taken(void)
{
    g_autofree char *base = in_dir("base.raw");
    g_autofree char *path = NULL;

    if (tool_missing(tools)) {
        return;
    }
    path = make_image("disk.qcow2", "cluster_size=64k", base, "raw");
    for (guint i = 0; i < 3; i++) {
        BeDisk *disk = disk_of(path, "b-1", "base.raw", "raw");

        g_assert_cmpint(prepare(disk), ==, 0);
        g_assert_false(be_disk_was_taken(disk));
        assert_taken(i == 0   ? disk->stream
                     : i == 1 ? be_disk_incremental(disk)
                              : full_of(disk),
                     disk);
        be_disk_close(disk);
        g_assert_true(be_disk_was_taken(disk));
        be_disk_free(disk);
    }
    TOOL_OK("rm", path, base);
}

/* As cp reads: what SEEK_DATA finds, and no hole. */
static void test_taken_without_holes(void)
{
    g_autofree char *base = in_dir("base.raw");
    g_autofree char *sink = in_dir("sink");
    g_autofree char *path = NULL;
    gint64 data = 0, hole = 0;
    BeDisk *disk;
    int errnum;

    if (tool_missing(tools)) {
        return;
    }
    path = make_image("disk.qcow2", "cluster_size=64k", base, "raw");
    disk = disk_of(path, "b-1", "base.raw", "raw");
    while ((data = seek(disk->stream, (guint64)hole, TRUE, &errnum)) >= 0) {
        g_assert_false(be_disk_was_taken(disk));
        hole = seek(disk->stream, (guint64)data, FALSE, &errnum);
        copy(disk->stream, sink, (guint64)data, (guint64)hole);
    }
    g_assert_cmpint(errnum, ==, ENXIO);
    g_assert_cmpuint(be_stream_bytes_read(disk->stream), <, 13 * MIB);
    g_assert_true(be_disk_was_taken(disk));
    disk_end(disk);
    TOOL_OK("rm", path, base, sink);
}

/* An image of nothing: looked at is not taken, opened is. */
static void test_taken_of_an_empty_disk(void)
{
    g_autofree char *path = in_dir("empty.qcow2");
    g_autoptr(Call) call = call_new();
    BeDisk *disk;

    if (tool_missing(tools)) {
        return;
    }
    TOOL_OK("qemu-img", "create", "-q", "-f", "qcow2", path, "20M");
    disk = disk_of(path, NULL, NULL, NULL);
    be_stream_map_fetch(disk->stream, call_text_done, call);
    g_assert_cmpint(call_wait(call), ==, 0);
    g_assert_false(be_disk_was_taken(disk));
    be_reader_free(be_reader_new(disk->stream));
    g_assert_true(be_disk_was_taken(disk));
    disk_end(disk);
    TOOL_OK("rm", path);
}

int main(int argc, char **argv)
{
    int result;

    g_test_init(&argc, &argv, NULL);
    dir = tool_dir_new();
    g_test_add_func("/increment/file", test_file);
    g_test_add_func("/increment/no-base", test_no_base);
    g_test_add_func("/increment/no-bitmap", test_no_bitmap);
    g_test_add_func("/increment/map", test_map);
    g_test_add_func("/increment/taken", test_taken);
    g_test_add_func("/increment/taken-without-holes", test_taken_without_holes);
    g_test_add_func("/increment/taken-of-an-empty-disk", test_taken_of_an_empty_disk);
    result = g_test_run();
    tool_dir_remove(dir);
    return result;
}
