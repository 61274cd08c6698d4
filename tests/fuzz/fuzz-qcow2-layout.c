/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-qcow2-layout.c - libFuzzer target: the tables of a computed qcow2 image
 * describe each of its clusters once, and what they say is where find() finds it.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "backend/qcow2-layout.h"

#define OFFSET_MASK G_GUINT64_CONSTANT(0x00fffffffffffe00)

/* So that an image of it can be held against its tables in no time. */
#define DISK_MAX (G_GUINT64_CONSTANT(1) << 32)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static guint64 entry(const guint8 *image, guint64 offset)
{
    guint64 value;

    memcpy(&value, image + offset, sizeof(value));
    return GUINT64_FROM_BE(value);
}

static guint32 word(const guint8 *image, guint64 offset)
{
    guint32 value;

    memcpy(&value, image + offset, sizeof(value));
    return GUINT32_FROM_BE(value);
}

/* Bytes of a cluster, as the header says. */
static guint64 cluster_of(const guint8 *image)
{
    return G_GUINT64_CONSTANT(1) << word(image, 20);
}

static void use(GByteArray *used, const guint8 *image, guint64 offset)
{
    g_assert_cmpuint(offset % cluster_of(image), ==, 0);
    g_assert_cmpuint(offset / cluster_of(image), <, used->len);
    used->data[offset / cluster_of(image)]++;
}

/* Whether any byte of a cluster is data (or dirty, by the sort of the list). */
static gboolean any(const BeExtents *extents, guint64 disk_offset, guint64 cluster)
{
    guint64 hit = 0;

    return be_extents_next(extents, disk_offset, TRUE, &hit) == BE_NEXT_FOUND
           && hit < disk_offset + cluster;
}

static void check_data(const BeQcow2Layout *layout, guint64 disk_offset, guint64 offset)
{
    guint64 located;
    BeQcow2Piece piece;

    g_assert_true(be_qcow2_layout_find(layout, offset, &piece));
    g_assert_cmpint(piece.kind, ==, BE_QCOW2_DATA);
    g_assert_cmpuint(piece.disk_offset, ==, disk_offset);
    g_assert_true(be_qcow2_layout_locate(layout, disk_offset, &located));
    g_assert_cmpuint(located, ==, offset);
}

/* @entry: of the L2 table.  Without @dirty the whole disk changed, from zeroes. */
static void check_cluster(const BeQcow2Layout *layout, const BeExtents *map,
                          const BeExtents *dirty, guint64 disk, guint64 l2_entry)
{
    guint64 cluster = be_qcow2_layout_cluster(layout);
    guint64 located;

    if (dirty && !any(dirty, disk, cluster)) {
        g_assert_cmpuint(l2_entry, ==, 0);
    } else if (!any(map, disk, cluster)) {
        g_assert_cmpuint(l2_entry, ==, dirty ? 1 : 0);
    } else {
        g_assert_cmpuint(l2_entry >> 63, ==, 1);
        check_data(layout, disk, l2_entry & OFFSET_MASK);
        return;
    }
    g_assert_false(be_qcow2_layout_locate(layout, disk, &located));
}

static void check_tables(const BeQcow2Layout *layout, const BeExtents *map,
                         const BeExtents *dirty, const guint8 *image, guint64 disk_size,
                         GByteArray *used)
{
    guint64 cluster = cluster_of(image);
    guint64 per_table = cluster / 8;
    guint64 l1 = entry(image, 40);

    for (guint64 disk = 0; disk < disk_size; disk += cluster) {
        guint64 index = disk / cluster;
        guint64 l2_entry = 0;
        guint64 table;

        g_assert_cmpuint(index / per_table, <, word(image, 36));
        table = entry(image, l1 + index / per_table * 8) & OFFSET_MASK;
        if (table && index % per_table == 0) {
            use(used, image, table);
        }
        if (table) {
            l2_entry = entry(image, table + index % per_table * 8);
        }
        if (l2_entry & OFFSET_MASK) {
            use(used, image, l2_entry & OFFSET_MASK);
        }
        check_cluster(layout, map, dirty, disk, l2_entry);
    }
}

static void check_refcounts(const guint8 *image, GByteArray *used)
{
    guint64 cluster = cluster_of(image);
    guint64 reftable = entry(image, 48);

    use(used, image, 0);
    for (guint32 i = 0; i < word(image, 56); i++) {
        use(used, image, reftable + i * cluster);
    }
    for (guint64 i = 0; i * 8 < word(image, 56) * cluster; i++) {
        guint64 block = entry(image, reftable + i * 8);

        if (block) {
            use(used, image, block);
        }
        for (guint64 c = 0; block && c < cluster / 2; c++) {
            g_assert_cmpuint(image[block + c * 2], ==, 0);
            g_assert_cmpuint(image[block + c * 2 + 1], ==, i * (cluster / 2) + c < used->len);
        }
    }
    for (guint32 i = 0; i * (cluster / 8) < word(image, 36); i++) {
        use(used, image, entry(image, 40) + i * cluster);
    }
    for (guint i = 0; i < used->len; i++) {
        g_assert_cmpuint(used->data[i], ==, 1);
    }
}

static void check_file(const BeQcow2Layout *layout, const BeExtents *map, const BeExtents *dirty,
                       guint64 disk_size)
{
    g_autoptr(GByteArray) used = g_byte_array_new();
    guint64 cluster = be_qcow2_layout_cluster(layout);
    guint64 size = be_qcow2_layout_file_size(layout);
    g_autofree guint8 *image = NULL;
    guint64 offset = 0;
    BeQcow2Piece piece;

    g_assert_cmpuint(size % cluster, ==, 0);
    g_assert_true(be_qcow2_layout_find(layout, 0, &piece));
    g_assert_cmpint(piece.kind, ==, BE_QCOW2_METADATA);
    image = g_malloc(piece.length);
    be_qcow2_layout_fill(layout, 0, piece.length, image);
    g_assert_cmpuint(cluster_of(image), ==, cluster);
    for (; be_qcow2_layout_find(layout, offset, &piece); offset += piece.length) {
        g_assert_cmpuint(piece.length, >, 0);
    }
    g_assert_cmpuint(offset, ==, size);
    g_byte_array_set_size(used, (guint)(size / cluster));
    memset(used->data, 0, used->len);
    check_tables(layout, map, dirty, image, disk_size, used);
    check_refcounts(image, used);
}

/* One byte of flags and scale, one of length; the bit 7 of the flags says which list. */
static void fill_lists(const uint8_t *data, size_t size, BeExtents *map, BeExtents *dirty)
{
    for (size_t i = 0; i + 1 < size; i += 2) {
        be_extents_append(data[i] & 0x80 ? dirty : map,
                          (guint64)(data[i + 1] + 1) << (data[i] >> 2 & 31) % 25, data[i] & 3);
    }
    be_extents_append(map, DISK_MAX, BE_EXTENT_HOLE | BE_EXTENT_ZERO);
    be_extents_append(dirty, DISK_MAX, 0);
}

/* First the size of the disk, then extents. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(BeExtents) map = NULL;
    g_autoptr(BeExtents) dirty = NULL;
    g_autoptr(BeQcow2Layout) full = NULL;
    g_autoptr(BeQcow2Layout) incremental = NULL;
    guint64 disk_size = 0;

    if (size < 5) {
        return 0;
    }
    memcpy(&disk_size, data, 4);
    disk_size = disk_size >> data[4] % 32;
    map = be_extents_new(BE_EXTENTS_ALLOCATION, disk_size);
    dirty = be_extents_new(BE_EXTENTS_DIRTY, disk_size);
    fill_lists(data + 5, size - 5, map, dirty);
    full = be_qcow2_layout_new(map, disk_size, NULL);
    check_file(full, map, NULL, disk_size);
    incremental = be_qcow2_layout_new_incremental(
        &(BeQcow2Increment){.map = map, .dirty = dirty, .size = disk_size,
                            .block_min = 512u << data[4] / 32, .backing_name = "../b/vda.qcow2",
                            .backing_format = "qcow2"},
        NULL);
    check_file(incremental, map, dirty, disk_size);
    return 0;
}
