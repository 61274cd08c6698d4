/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-view.c - the views of a disk, over servers that are slow, fail and die.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "backend/disk.h"
#include "backend/qcow2-layout.h"
#include "backend/view-map.h"
#include "backend/view-qcow2.h"
#include "stream-tool.h"

#define CLUSTER BE_QCOW2_CLUSTER

/* No multiple of a cluster, and more than a few requests. */
#define DISK_SIZE (10 * MIB + 512)
#define DATA_CLUSTERS (10 * MIB / CLUSTER + 1)
#define DATA_START (5 * CLUSTER)

static BeDisk *disk_new(void)
{
    return be_disk_new("vda", DISK_SIZE, DISK_SIZE,
                       be_stream_new_nbd(socket_path, "", DISK_SIZE, DISK_SIZE));
}

static int prepare(BeDisk *disk)
{
    g_autoptr(Call) call = call_new();

    be_disk_full_prepare(disk, call_done, call);
    return call_wait(call);
}

/* ---- Reading ---- */

static void assert_view(BeReader *reader, Call *call, guint64 offset, gsize length)
{
    guint64 end = MIN(offset + length, DATA_START + (guint64)DATA_CLUSTERS * CLUSTER);
    guint64 from = MAX(offset, DATA_START);
    guint64 to = MIN(end, (guint64)DATA_START + DISK_SIZE);

    g_assert_cmpint(read_into(reader, call, offset, length), ==, 0);
    g_assert_cmpint(call->result, ==, (gint64)(end - offset));
    if (offset == 0) {
        g_assert_cmpmem(call->bytes, 4, "QFI\xfb", 4);
    }
    if (from < to) {
        memmove(call->bytes, call->bytes + (from - offset), end - from);
        assert_pattern(call->bytes, from - DATA_START, (gint64)(to - from));
        for (guint64 i = to; i < end; i++) {
            g_assert_cmpint(call->bytes[i - from], ==, 0);
        }
    }
}

static void read_all_ways(const char *arguments)
{
    GPid server = server_start(arguments);
    BeDisk *disk = disk_new();
    g_autoptr(Call) call = call_new();
    guint64 size = (guint64)DATA_START + (guint64)DATA_CLUSTERS * CLUSTER;
    BeReader *reader;

    g_assert_null(be_disk_full(disk));
    g_assert_cmpint(prepare(disk), ==, 0);
    g_assert_cmpint(prepare(disk), ==, 0);
    g_assert_cmpuint(be_stream_size(be_disk_full(disk)), ==, size);
    reader = be_reader_new(be_disk_full(disk));
    for (guint64 offset = 0; offset < size; offset += MIB) {
        assert_view(reader, call, offset, MIB);
    }
    for (guint round = 0; round < 500; round++) {
        guint64 offset = (guint64)g_test_rand_int_range(0, (gint32)size);

        assert_view(reader, call, offset, (gsize)g_test_rand_int_range(1, MIB));
        assert_view(reader, call, offset, 4096);
    }
    assert_view(reader, call, size - 700, 4096);
    g_assert_cmpuint(be_disk_bytes_read(disk), >, size);
    be_reader_free(reader);
    disk_end(disk);
    server_stop(server);
}

static void test_read(void)
{
    read_all_ways("pattern size=10486272");
}

static void test_read_in_small_requests(void)
{
    read_all_ways("--filter=blocksize-policy pattern size=10486272 blocksize-minimum=512 "
                  "blocksize-preferred=4096 blocksize-maximum=65536 blocksize-error-policy=error");
}

/* ---- Faults ---- */

static void test_data_that_cannot_be_read(void)
{
    g_autofree char *trigger = stream_tool_path("view-fails");
    g_autofree char *arguments = g_strdup_printf(
        "--filter=error pattern size=10486272 error-pread=EIO error-pread-rate=100%% "
        "error-pread-file='%s'", trigger);
    GPid server = server_start(arguments);
    BeDisk *disk = disk_new();
    g_autoptr(Call) call = call_new();
    BeReader *reader;

    g_assert_cmpint(prepare(disk), ==, 0);
    reader = be_reader_new(be_disk_full(disk));
    g_assert_true(g_file_set_contents(trigger, "", 0, NULL));
    g_assert_cmpint(read_into(reader, call, DATA_START - 4096, 8192), ==, EIO);
    g_assert_cmpint(read_into(reader, call, DATA_START + MIB, 4096), ==, EIO);
    /* What we make ourselves is there all the same. */
    assert_view(reader, call, 0, 2 * CLUSTER);
    g_assert_cmpint(g_remove(trigger), ==, 0);
    assert_view(reader, call, DATA_START + MIB, 4096);
    be_reader_free(reader);
    disk_end(disk);
    server_stop(server);
}

static void test_closed_under_a_read(void)
{
    GPid server = server_start("--filter=delay pattern size=10486272 delay-read=20");
    BeDisk *disk = disk_new();
    g_autoptr(Call) call = call_new();
    BeReader *reader;
    BeRead *read;
    gint64 start_us;

    g_assert_cmpint(prepare(disk), ==, 0);
    reader = be_reader_new(be_disk_full(disk));
    read = be_reader_read(reader, 0, MIB, read_done, call);
    be_read_unref(read);
    start_us = g_get_monotonic_time();
    be_stream_fail(disk->stream, "the disk is gone");
    be_view_close(disk->full);
    g_assert_cmpint(call_wait(call), ==, EIO);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 5 * G_USEC_PER_SEC);
    g_assert_cmpint(prepare(disk), ==, EIO);
    be_reader_free(reader);
    disk_end(disk);
    server_stop(server);
}

static void test_no_server(void)
{
    BeDisk *disk = disk_new();
    g_autoptr(Call) call = call_new();

    g_assert_cmpint(prepare(disk), ==, EIO);
    g_assert_null(be_disk_full(disk));
    be_stream_map_fetch(disk->stream, call_text_done, call);
    g_assert_cmpint(call_wait(call), ==, EIO);
    be_view_close(disk->full);
    g_assert_cmpint(prepare(disk), ==, EIO);
    disk_end(disk);
}

/* ---- Maps ---- */

static void test_map_of_an_export(void)
{
    GPid server = server_start("pattern size=10486272");
    BeDisk *disk = disk_new();
    g_autoptr(Call) call = call_new();

    be_stream_map_fetch(disk->stream, call_text_done, call);
    g_assert_cmpint(call_wait(call), ==, 0);
    g_assert_cmpstr((char *)call->bytes, ==,
                    "[{ \"start\": 0, \"length\": 10486272, \"depth\": 0, \"present\": true, "
                    "\"zero\": false, \"data\": true, \"offset\": 0}]\n");
    disk_end(disk);
    server_stop(server);
}

static void assert_map(const BeExtents *map, guint64 size, const char *expected)
{
    g_autofree char *text = be_map_text(map, size, NULL);

    g_assert_cmpstr(text, ==, expected);
}

/* What qemu-img 7.2 printed for these. */
static void test_map_text(void)
{
    g_autoptr(BeExtents) none = be_extents_new(BE_EXTENTS_ALLOCATION, 0);
    g_autoptr(BeExtents) all = be_extents_new(BE_EXTENTS_ALLOCATION, 1000100);

    assert_map(none, 0, "[{ \"start\": 0, \"length\": 0, \"depth\": 0, \"present\": false, "
                        "\"zero\": false, \"data\": false}]\n");
    be_extents_append(all, 4096, BE_EXTENT_HOLE);
    be_extents_append(all, 4096, BE_EXTENT_ZERO);
    be_extents_append(all, MIB, BE_EXTENT_HOLE | BE_EXTENT_ZERO);
    assert_map(all, 1000100,
               "[{ \"start\": 0, \"length\": 4096, \"depth\": 0, \"present\": false, "
               "\"zero\": false, \"data\": false},\n"
               "{ \"start\": 4096, \"length\": 4096, \"depth\": 0, \"present\": true, "
               "\"zero\": true, \"data\": true, \"offset\": 4096},\n"
               "{ \"start\": 8192, \"length\": 991908, \"depth\": 0, \"present\": true, "
               "\"zero\": true, \"data\": false, \"offset\": 8192},\n"
               "{ \"start\": 1000100, \"length\": 348, \"depth\": 0, \"present\": true, "
               "\"zero\": true, \"data\": false}]\n");
}

static void test_map_too_long(void)
{
    g_autoptr(BeExtents) map = be_extents_new(BE_EXTENTS_ALLOCATION, 1u << 30);
    g_autoptr(GError) error = NULL;

    while (be_extents_append(map, 512, be_extents_count(map) % 2 ? BE_EXTENT_ZERO : 0)) {
        continue;
    }
    g_assert_null(be_map_text(map, 1u << 30, &error));
    g_assert_cmpint(error->code, ==, EFBIG);
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/view/map-text", test_map_text);
    g_test_add_func("/view/map-too-long", test_map_too_long);
    if (!stream_tool_begin()) {
        return g_test_run();
    }
    g_test_add_func("/view/read", test_read);
    g_test_add_func("/view/read-in-small-requests", test_read_in_small_requests);
    g_test_add_func("/view/data-that-cannot-be-read", test_data_that_cannot_be_read);
    g_test_add_func("/view/closed-under-a-read", test_closed_under_a_read);
    g_test_add_func("/view/no-server", test_no_server);
    g_test_add_func("/view/map-of-an-export", test_map_of_an_export);
    status = g_test_run();
    stream_tool_end();
    return status;
}
