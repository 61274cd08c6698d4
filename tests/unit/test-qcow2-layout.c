/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-qcow2-layout.c - computed qcow2 images: QEMU finds nothing wrong with them.
 */
#include "backend/qcow2-layout.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

#define KIB 1024u
#define MIB (G_GUINT64_CONSTANT(1) << 20)
#define CLUSTER BE_QCOW2_CLUSTER
#define ZERO (BE_EXTENT_HOLE | BE_EXTENT_ZERO)

static const char *const qemu_img[] = {"qemu-img", NULL};

/* ---- Images as files ---- */

/* The byte of the disk at @offset, in data. */
static guint8 disk_byte(guint64 offset)
{
    return (guint8)(1 + (offset * 2654435761u >> 13) % 251);
}

static void write_at(int fd, const void *buffer, gsize length, guint64 offset)
{
    g_assert_cmpint(pwrite(fd, buffer, length, (off_t)offset), ==, (gssize)length);
}

static void write_disk_bytes(int fd, guint64 disk_offset, guint64 length, guint64 offset,
                             const BeExtents *extents)
{
    while (length > 0) {
        guint8 buffer[4096];
        gsize part = MIN(length, sizeof(buffer));
        BeExtent extent;

        g_assert_true(be_extents_lookup(extents, disk_offset, &extent));
        part = MIN(part, extent.start + extent.length - disk_offset);
        for (gsize i = 0; i < part; i++) {
            buffer[i] = extent.flags & BE_EXTENT_ZERO ? 0 : disk_byte(disk_offset + i);
        }
        write_at(fd, buffer, part, offset);
        disk_offset += part;
        offset += part;
        length -= part;
    }
}

static void write_raw(const char *path, const BeExtents *extents, guint64 size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, (off_t)size), ==, 0);
    for (guint i = 0; i < be_extents_count(extents); i++) {
        BeExtent extent;

        be_extents_get(extents, i, &extent);
        if (!(extent.flags & BE_EXTENT_ZERO)) {
            write_disk_bytes(fd, extent.start, extent.length, extent.start, extents);
        }
    }
    g_assert_cmpint(close(fd), ==, 0);
}

static void write_qcow2(const char *path, const BeQcow2Layout *layout, const BeExtents *extents)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    guint64 offset = 0;
    BeQcow2Piece piece;

    g_assert_cmpint(fd, >=, 0);
    while (be_qcow2_layout_find(layout, offset, &piece)) {
        g_autofree void *buffer = NULL;

        switch (piece.kind) {
        case BE_QCOW2_METADATA:
            buffer = g_malloc(piece.length);
            be_qcow2_layout_fill(layout, offset, piece.length, buffer);
            write_at(fd, buffer, piece.length, offset);
            break;
        case BE_QCOW2_DATA:
            write_disk_bytes(fd, piece.disk_offset, piece.length, offset, extents);
            break;
        case BE_QCOW2_PADDING:
            break;
        }
        offset += piece.length;
    }
    g_assert_cmpuint(offset, ==, be_qcow2_layout_file_size(layout));
    g_assert_cmpint(ftruncate(fd, (off_t)offset), ==, 0);
    g_assert_cmpint(close(fd), ==, 0);
}

/* QEMU rounds a size up to sectors, and what a layout is given is such a size. */
static void assert_sound(const BeExtents *extents, guint64 size)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BeQcow2Layout) layout = be_qcow2_layout_new(extents, size, &error);
    char *dir = tool_dir_new();
    g_autofree char *raw = g_build_filename(dir, "disk.raw", NULL);
    g_autofree char *qcow2 = g_build_filename(dir, "disk.qcow2", NULL);
    g_autofree char *text = NULL;

    g_assert_no_error(error);
    write_raw(raw, extents, size);
    write_qcow2(qcow2, layout, extents);
    /* Leaks are 3, errors 2. */
    if (tool_run((const char *const[]){"qemu-img", "check", "-f", "qcow2", qcow2, NULL}, &text)) {
        g_error("qemu-img check: %s", text);
    }
    TOOL_OK("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, raw);
    tool_dir_remove(dir);
}

/* ---- Layouts of all sorts ---- */

static void test_empty_and_full(void)
{
    static const guint64 sizes[] = {512, 4 * KIB, CLUSTER - 512, CLUSTER, CLUSTER + 512,
                                    10 * MIB, 10 * MIB + 512};

    if (tool_missing(qemu_img)) {
        return;
    }
    for (guint i = 0; i < G_N_ELEMENTS(sizes); i++) {
        for (guint full = 0; full < 2; full++) {
            g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, sizes[i]);

            be_extents_append(extents, sizes[i], full ? 0 : ZERO);
            assert_sound(extents, sizes[i]);
        }
    }
}

static void test_disk_of_no_bytes(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, 0);
    g_autoptr(BeQcow2Layout) layout = be_qcow2_layout_new(extents, 0, NULL);

    g_assert_cmpuint(be_qcow2_layout_file_size(layout), ==, 3 * CLUSTER);
    if (!tool_missing(qemu_img)) {
        assert_sound(extents, 0);
    }
}

/* More than one L2 table, some of them left out, and a hole over several. */
static void test_many_tables(void)
{
    guint64 size = 5000 * MIB;
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, size);

    if (tool_missing(qemu_img)) {
        return;
    }
    be_extents_append(extents, 512 * MIB - 3 * KIB, ZERO);
    be_extents_append(extents, 7 * KIB, 0);
    be_extents_append(extents, 2000 * MIB, BE_EXTENT_ZERO);
    be_extents_append(extents, 1, BE_EXTENT_HOLE);
    be_extents_append(extents, 1500 * MIB, ZERO);
    be_extents_append(extents, 300 * KIB, 0);
    be_extents_append(extents, size, ZERO);
    assert_sound(extents, size);
}

static void test_random(void)
{
    if (tool_missing(qemu_img)) {
        return;
    }
    for (guint round = 0; round < 25; round++) {
        guint64 size = (guint64)g_test_rand_int_range(1, 20000) * 512;
        guint scale = 1u << g_test_rand_int_range(9, 20);
        g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, size);

        while (!be_extents_complete(extents)) {
            be_extents_append(extents, (guint64)g_test_rand_int_range(1, (gint32)scale),
                              (guint32)g_test_rand_int_range(0, 4));
        }
        assert_sound(extents, size);
    }
}

/* ---- Increments ---- */

/* The base is what the disk is where nothing changed, and something else elsewhere. */
static void write_base(const char *path, const BeExtents *map, const BeExtents *dirty,
                       guint64 size)
{
    g_autofree guint8 *other = g_malloc(MIB);
    int fd;

    memset(other, 0x55, MIB);
    write_raw(path, map, size);
    fd = open(path, O_WRONLY);
    g_assert_cmpint(fd, >=, 0);
    for (guint i = 0; i < be_extents_count(dirty); i++) {
        BeExtent extent;

        be_extents_get(dirty, i, &extent);
        for (guint64 at = 0; (extent.flags & BE_EXTENT_DIRTY) && at < extent.length; at += MIB) {
            write_at(fd, other, MIN(MIB, extent.length - at), extent.start + at);
        }
    }
    g_assert_cmpint(close(fd), ==, 0);
}

static BeQcow2Layout *increment_of(const BeExtents *map, const BeExtents *dirty, guint64 size)
{
    BeQcow2Increment increment = {.map = map, .dirty = dirty, .size = size, .block_min = 1,
                                  .backing_name = "base.raw", .backing_format = "raw"};
    g_autoptr(GError) error = NULL;
    BeQcow2Layout *layout = be_qcow2_layout_new_incremental(&increment, &error);

    g_assert_no_error(error);
    return layout;
}

static void assert_increment_sound(const BeExtents *map, const BeExtents *dirty, guint64 size)
{
    g_autoptr(BeQcow2Layout) layout = increment_of(map, dirty, size);
    char *dir = tool_dir_new();
    g_autofree char *base = g_build_filename(dir, "base.raw", NULL);
    g_autofree char *raw = g_build_filename(dir, "disk.raw", NULL);
    g_autofree char *qcow2 = g_build_filename(dir, "disk.qcow2", NULL);
    g_autofree char *text = NULL;

    write_base(base, map, dirty, size);
    write_raw(raw, map, size);
    write_qcow2(qcow2, layout, map);
    if (tool_run((const char *const[]){"qemu-img", "check", "-f", "qcow2", qcow2, NULL}, &text)) {
        g_error("qemu-img check: %s", text);
    }
    TOOL_OK("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, raw);
    /* The backing file is named as QEMU names it, and can be done without. */
    TOOL_OK("qemu-img", "rebase", "-f", "qcow2", "-b", "", qcow2);
    TOOL_OK("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, raw);
    tool_dir_remove(dir);
}

static void test_increments_at_random(void)
{
    if (tool_missing(qemu_img)) {
        return;
    }
    for (guint round = 0; round < 12; round++) {
        guint64 size = (guint64)g_test_rand_int_range(1, 20000) * 512;
        guint32 granularity = 512u << g_test_rand_int_range(0, 8);
        gint32 scale = 1 << g_test_rand_int_range(9, 20);
        g_autoptr(BeExtents) map = be_extents_new(BE_EXTENTS_ALLOCATION, size);
        g_autoptr(BeExtents) dirty = be_extents_new(BE_EXTENTS_DIRTY, size);

        while (!be_extents_complete(map)) {
            be_extents_append(map, (guint64)g_test_rand_int_range(1, scale),
                              (guint32)g_test_rand_int_range(0, 4));
        }
        while (!be_extents_complete(dirty)) {
            be_extents_append(dirty, (guint64)g_test_rand_int_range(1, 9) * granularity,
                              (guint32)g_test_rand_int_range(0, 2));
        }
        assert_increment_sound(map, dirty, size);
    }
}

static void test_increment_of_nothing(void)
{
    g_autoptr(BeExtents) map = be_extents_new(BE_EXTENTS_ALLOCATION, 10 * MIB);
    g_autoptr(BeExtents) dirty = be_extents_new(BE_EXTENTS_DIRTY, 10 * MIB);
    g_autoptr(BeQcow2Layout) layout = NULL;
    guint64 start, end;

    be_extents_append(map, 10 * MIB, 0);
    be_extents_append(dirty, 10 * MIB, 0);
    layout = increment_of(map, dirty, 10 * MIB);
    g_assert_cmpuint(be_qcow2_layout_file_size(layout), <=, 64 * KIB);
    be_qcow2_layout_essence(layout, &start, &end);
    g_assert_cmpuint(start, ==, 0);
    g_assert_cmpuint(end, ==, be_qcow2_layout_file_size(layout));
    if (!tool_missing(qemu_img)) {
        assert_increment_sound(map, dirty, 10 * MIB);
    }
}

/* Whatever the bitmap's granularity and however far apart: 1.2 times at most. */
static void test_increments_are_small(void)
{
    guint64 size = 64 * 1024 * MIB;

    for (guint32 granularity = 4 * KIB; granularity <= 64 * KIB; granularity *= 2) {
        for (guint64 step = granularity * 2; step <= 1024 * MIB; step *= 8) {
            g_autoptr(BeExtents) map = be_extents_new(BE_EXTENTS_ALLOCATION, size);
            g_autoptr(BeExtents) dirty = be_extents_new(BE_EXTENTS_DIRTY, size);
            g_autoptr(BeQcow2Layout) layout = NULL;
            guint64 bytes;

            be_extents_append(map, size, 0);
            while (be_extents_append(dirty, granularity, BE_EXTENT_DIRTY)
                   && be_extents_append(dirty, step - granularity, 0)
                   && be_extents_end(dirty) < MAX(size / 8, 32 * step)) {
                continue;
            }
            be_extents_append(dirty, size, 0);
            bytes = be_extents_data_bytes(dirty);
            layout = increment_of(map, dirty, size);
            g_test_message("%u every %" G_GUINT64_FORMAT ": %" G_GUINT64_FORMAT " in %"
                           G_GUINT64_FORMAT " bytes, clusters of %u", granularity, step, bytes,
                           be_qcow2_layout_file_size(layout), be_qcow2_layout_cluster(layout));
            /* The least the format wants: a table of 4 KiB for 2 MiB with a change in it. */
            if (4 * KIB <= granularity * MAX(2 * MIB / step, 1) * 15 / 100) {
                g_assert_cmpuint(be_qcow2_layout_file_size(layout), <=,
                                 bytes + bytes / 5 + 320 * KIB);
            }
        }
    }
}

static void test_backing_names(void)
{
    g_autoptr(BeExtents) map = be_extents_new(BE_EXTENTS_ALLOCATION, MIB);
    g_autoptr(BeExtents) dirty = be_extents_new(BE_EXTENTS_DIRTY, MIB);
    g_autofree char *longest = g_strnfill(BE_QCOW2_BACKING_NAME_MAX, 'n');
    g_autofree char *longer = g_strnfill(BE_QCOW2_BACKING_NAME_MAX + 1, 'n');
    const struct {
        const char *name;
        const char *format;
        int errnum;
    } cases[] = {
        {longest, "qcow2", 0},   {longer, "qcow2", ENAMETOOLONG}, {"", "raw", EINVAL},
        {"base", "vmdk", EINVAL},
    };

    be_extents_append(map, MIB, 0);
    be_extents_append(dirty, MIB, 0);
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        BeQcow2Increment increment = {.map = map, .dirty = dirty, .size = MIB, .block_min = 1,
                                      .backing_name = cases[i].name,
                                      .backing_format = cases[i].format};
        g_autoptr(GError) error = NULL;
        g_autoptr(BeQcow2Layout) layout = be_qcow2_layout_new_incremental(&increment, &error);
        guint8 header[4096];

        g_assert_cmpint(error ? error->code : 0, ==, cases[i].errnum);
        if (layout) {
            be_qcow2_layout_fill(layout, 0, sizeof(header), header);
            g_assert_nonnull(memmem(header, sizeof(header), longest, strlen(longest)));
        }
    }
}

/* ---- Without QEMU ---- */

static void test_refcounts_count_themselves(void)
{
    guint64 size = BE_QCOW2_DISK_MAX;
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, size);
    g_autoptr(BeQcow2Layout) layout = NULL;
    guint64 clusters, offset;

    be_extents_append(extents, size, 0);
    layout = be_qcow2_layout_new(extents, size, NULL);
    clusters = be_qcow2_layout_file_size(layout) / CLUSTER;
    g_assert_cmpuint(clusters, >, size / CLUSTER);
    g_assert_true(be_qcow2_layout_locate(layout, 0, &offset));
    /* Header, L1 and L2 tables, refcounts: nothing else, and enough refcounts. */
    g_assert_cmpuint(offset / CLUSTER, <=,
                     1 + size / CLUSTER / 8192 + size / CLUSTER / 8192 / 8192
                         + clusters / 32768 + 1 + clusters / 32768 / 8192 + 1);
    g_assert_true(be_qcow2_layout_locate(layout, size - 1, &offset));
    g_assert_cmpuint(offset, ==, clusters * CLUSTER - 1);
}

static void test_too_large(void)
{
    g_autoptr(BeExtents) extents =
        be_extents_new(BE_EXTENTS_ALLOCATION, BE_QCOW2_DISK_MAX + 512);
    g_autoptr(GError) error = NULL;

    be_extents_append(extents, BE_QCOW2_DISK_MAX + 512, ZERO);
    g_assert_null(be_qcow2_layout_new(extents, BE_QCOW2_DISK_MAX + 512, &error));
    g_assert_cmpint(error->code, ==, EFBIG);
}

static void test_fill_of_any_range(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, 5000 * MIB);
    g_autoptr(BeQcow2Layout) layout = NULL;
    g_autofree guint8 *whole = NULL;
    BeQcow2Piece piece;

    while (be_extents_append(extents, 77 * MIB, be_extents_count(extents) % 2 ? ZERO : 0)) {
        continue;
    }
    layout = be_qcow2_layout_new(extents, 5000 * MIB, NULL);
    g_assert_true(be_qcow2_layout_find(layout, 0, &piece));
    whole = g_malloc(piece.length);
    be_qcow2_layout_fill(layout, 0, piece.length, whole);
    for (guint round = 0; round < 1000; round++) {
        guint64 offset = (guint64)g_test_rand_int_range(0, (gint32)piece.length - 1);
        gsize length =
            (gsize)g_test_rand_int_range(1, (gint32)MIN(piece.length - offset, 300 * KIB) + 1);
        g_autofree guint8 *part = g_malloc(length);

        be_qcow2_layout_fill(layout, offset, length, part);
        g_assert_cmpmem(part, length, whole + offset, length);
    }
}

/* A disk of 16 TiB with a million extents. */
static void test_large_and_fragmented(void)
{
    guint64 size = G_GUINT64_CONSTANT(1) << 44;
    guint64 step = size / 1000000 / 512 * 512;
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, size);
    g_autoptr(BeQcow2Layout) layout = NULL;
    guint64 offset, found;
    BeQcow2Piece piece;

    while (be_extents_append(extents, step, be_extents_count(extents) % 2 ? ZERO : 0)) {
        continue;
    }
    layout = be_qcow2_layout_new(extents, size, NULL);
    for (guint round = 0; round < 10000; round++) {
        guint64 disk = (guint64)g_test_rand_int_range(0, 500000) * 2 * step
                       + (guint64)g_test_rand_int_range(0, (gint32)step);

        g_assert_true(be_qcow2_layout_locate(layout, disk, &offset));
        g_assert_true(be_qcow2_layout_find(layout, offset, &piece));
        g_assert_cmpint(piece.kind, ==, BE_QCOW2_DATA);
        found = piece.disk_offset;
        g_assert_cmpuint(found, ==, disk);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qcow2-layout/empty-and-full", test_empty_and_full);
    g_test_add_func("/qcow2-layout/disk-of-no-bytes", test_disk_of_no_bytes);
    g_test_add_func("/qcow2-layout/many-tables", test_many_tables);
    g_test_add_func("/qcow2-layout/random", test_random);
    g_test_add_func("/qcow2-layout/increments-at-random", test_increments_at_random);
    g_test_add_func("/qcow2-layout/increment-of-nothing", test_increment_of_nothing);
    g_test_add_func("/qcow2-layout/increments-are-small", test_increments_are_small);
    g_test_add_func("/qcow2-layout/backing-names", test_backing_names);
    g_test_add_func("/qcow2-layout/refcounts-count-themselves", test_refcounts_count_themselves);
    g_test_add_func("/qcow2-layout/too-large", test_too_large);
    g_test_add_func("/qcow2-layout/fill-of-any-range", test_fill_of_any_range);
    g_test_add_func("/qcow2-layout/large-and-fragmented", test_large_and_fragmented);
    return g_test_run();
}
