/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-qcow2-layout.c - libFuzzer target: the tables of a computed qcow2 image
 * describe each of its clusters once, and what they say is where find() finds it.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "backend/qcow2-layout.h"

#define CLUSTER BE_QCOW2_CLUSTER
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

static void use(GByteArray *used, guint64 offset)
{
    g_assert_cmpuint(offset % CLUSTER, ==, 0);
    g_assert_cmpuint(offset / CLUSTER, <, used->len);
    used->data[offset / CLUSTER]++;
}

static void check_data(const BeQcow2Layout *layout, const BeExtents *extents, guint64 disk_offset,
                       guint64 offset)
{
    guint64 located, hit = 0;
    BeQcow2Piece piece;

    g_assert_true(be_qcow2_layout_find(layout, offset, &piece));
    g_assert_cmpint(piece.kind, ==, BE_QCOW2_DATA);
    g_assert_cmpuint(piece.disk_offset, ==, disk_offset);
    g_assert_true(be_qcow2_layout_locate(layout, disk_offset, &located));
    g_assert_cmpuint(located, ==, offset);
    g_assert_cmpint(be_extents_next(extents, disk_offset, TRUE, &hit), ==, BE_NEXT_FOUND);
    g_assert_cmpuint(hit, <, disk_offset + CLUSTER);
}

static void check_hole(const BeQcow2Layout *layout, const BeExtents *extents, guint64 disk_offset)
{
    guint64 located, hit = G_MAXUINT64;

    g_assert_false(be_qcow2_layout_locate(layout, disk_offset, &located));
    be_extents_next(extents, disk_offset, TRUE, &hit);
    g_assert_cmpuint(hit, >=, disk_offset + CLUSTER);
}

static void check_tables(const BeQcow2Layout *layout, const BeExtents *extents,
                         const guint8 *image, guint64 disk_size, GByteArray *used)
{
    guint64 l1 = entry(image, 40);
    guint64 table = 0;

    for (guint64 disk = 0; disk < disk_size; disk += CLUSTER) {
        guint64 index = disk / CLUSTER;
        guint64 data = 0;

        g_assert_cmpuint(index / 8192, <, word(image, 36));
        table = entry(image, l1 + index / 8192 * 8) & OFFSET_MASK;
        if (table && index % 8192 == 0) {
            use(used, table);
        }
        if (table) {
            data = entry(image, table + index % 8192 * 8) & OFFSET_MASK;
        }
        if (data) {
            use(used, data);
            check_data(layout, extents, disk, data);
        } else {
            check_hole(layout, extents, disk);
        }
    }
}

static void check_refcounts(const guint8 *image, GByteArray *used)
{
    guint64 reftable = entry(image, 48);

    use(used, 0);
    for (guint32 i = 0; i < word(image, 56); i++) {
        use(used, reftable + (guint64)i * CLUSTER);
    }
    for (guint64 i = 0; i * 8 < (guint64)word(image, 56) * CLUSTER; i++) {
        guint64 block = entry(image, reftable + i * 8);

        if (block) {
            use(used, block);
        }
        for (guint64 c = 0; block && c < CLUSTER / 2; c++) {
            guint64 cluster = i * (CLUSTER / 2) + c;

            g_assert_cmpuint(image[block + c * 2], ==, 0);
            g_assert_cmpuint(image[block + c * 2 + 1], ==, cluster < used->len);
        }
    }
    for (guint32 i = 0; i * 8192 < word(image, 36); i++) {
        use(used, entry(image, 40) + (guint64)i * CLUSTER);
    }
    for (guint i = 0; i < used->len; i++) {
        g_assert_cmpuint(used->data[i], ==, 1);
    }
}

static void check_file(const BeQcow2Layout *layout, const BeExtents *extents, guint64 disk_size)
{
    g_autoptr(GByteArray) used = g_byte_array_new();
    guint64 size = be_qcow2_layout_file_size(layout);
    g_autofree guint8 *image = NULL;
    guint64 offset = 0;
    BeQcow2Piece piece;

    g_assert_cmpuint(size % CLUSTER, ==, 0);
    g_assert_true(be_qcow2_layout_find(layout, 0, &piece));
    g_assert_cmpint(piece.kind, ==, BE_QCOW2_METADATA);
    image = g_malloc(piece.length);
    be_qcow2_layout_fill(layout, 0, piece.length, image);
    for (; be_qcow2_layout_find(layout, offset, &piece); offset += piece.length) {
        g_assert_cmpuint(piece.length, >, 0);
    }
    g_assert_cmpuint(offset, ==, size);
    g_byte_array_set_size(used, (guint)(size / CLUSTER));
    memset(used->data, 0, used->len);
    check_tables(layout, extents, image, disk_size, used);
    check_refcounts(image, used);
}

/* First the size of the disk, then extents: one byte of flags and scale, one of length. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(BeExtents) extents = NULL;
    g_autoptr(BeQcow2Layout) layout = NULL;
    guint64 disk_size = 0;

    if (size < 5) {
        return 0;
    }
    memcpy(&disk_size, data, 4);
    disk_size = disk_size >> data[4] % 32;
    extents = be_extents_new(BE_EXTENTS_ALLOCATION, disk_size);
    for (size_t i = 5; i + 1 < size; i += 2) {
        be_extents_append(extents, (guint64)(data[i + 1] + 1) << (data[i] >> 2) % 25, data[i] & 3);
    }
    be_extents_append(extents, DISK_MAX, BE_EXTENT_HOLE | BE_EXTENT_ZERO);
    layout = be_qcow2_layout_new(extents, disk_size, NULL);
    check_file(layout, extents, disk_size);
    return 0;
}
