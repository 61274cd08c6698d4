/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-extents.c - allocation maps, the growing ones and the lying ones.
 */
#include "backend/extents.h"

#define MIB (G_GUINT64_CONSTANT(1) << 20)
#define HOLE (BE_EXTENT_HOLE | BE_EXTENT_ZERO)

static void assert_next(BeExtents *extents, guint64 offset, gboolean data, BeNext expected,
                        guint64 expected_offset)
{
    guint64 offset_found = 0;

    g_assert_cmpint(be_extents_next(extents, offset, data, &offset_found), ==, expected);
    if (expected != BE_NEXT_NONE) {
        g_assert_cmpuint(offset_found, ==, expected_offset);
    }
}

/* data [0, 1M), hole [1M, 3M), data [3M, 4M), hole [4M, 6M) */
static BeExtents *new_sample(void)
{
    BeExtents *extents = be_extents_new(BE_EXTENTS_ALLOCATION, 6 * MIB);

    g_assert_true(be_extents_append(extents, MIB, 0));
    g_assert_true(be_extents_append(extents, 2 * MIB, HOLE));
    g_assert_true(be_extents_append(extents, MIB, 0));
    g_assert_true(be_extents_append(extents, 2 * MIB, HOLE));
    return extents;
}

static void test_seek_data_and_hole(void)
{
    g_autoptr(BeExtents) extents = new_sample();

    g_assert_true(be_extents_complete(extents));
    g_assert_cmpuint(be_extents_data_bytes(extents), ==, 2 * MIB);
    assert_next(extents, 0, TRUE, BE_NEXT_FOUND, 0);
    assert_next(extents, 5, TRUE, BE_NEXT_FOUND, 5);
    assert_next(extents, 0, FALSE, BE_NEXT_FOUND, MIB);
    assert_next(extents, MIB - 1, FALSE, BE_NEXT_FOUND, MIB);
    assert_next(extents, MIB, TRUE, BE_NEXT_FOUND, 3 * MIB);
    assert_next(extents, 2 * MIB, FALSE, BE_NEXT_FOUND, 2 * MIB);
    assert_next(extents, 4 * MIB, TRUE, BE_NEXT_NONE, 0);
    assert_next(extents, 6 * MIB - 1, FALSE, BE_NEXT_FOUND, 6 * MIB - 1);
}

static void test_seek_at_end_finds_nothing(void)
{
    g_autoptr(BeExtents) extents = new_sample();

    assert_next(extents, 6 * MIB, TRUE, BE_NEXT_NONE, 0);
    assert_next(extents, 6 * MIB, FALSE, BE_NEXT_NONE, 0);
    assert_next(extents, G_MAXUINT64, FALSE, BE_NEXT_NONE, 0);
}

static void test_end_is_a_hole(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, MIB);

    g_assert_true(be_extents_append(extents, MIB, 0));
    assert_next(extents, 0, FALSE, BE_NEXT_FOUND, MIB);
}

static void test_growing_map_says_unknown(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, 4 * MIB);
    BeExtent extent;

    assert_next(extents, 0, TRUE, BE_NEXT_UNKNOWN, 0);
    g_assert_false(be_extents_lookup(extents, 0, &extent));
    g_assert_true(be_extents_append(extents, MIB, 0));
    assert_next(extents, 0, TRUE, BE_NEXT_FOUND, 0);
    assert_next(extents, 0, FALSE, BE_NEXT_UNKNOWN, MIB);
    assert_next(extents, 3 * MIB, FALSE, BE_NEXT_UNKNOWN, 3 * MIB);
    g_assert_true(be_extents_append(extents, MIB, HOLE));
    assert_next(extents, MIB, TRUE, BE_NEXT_UNKNOWN, 2 * MIB);
    g_assert_false(be_extents_complete(extents));
}

static void test_equal_neighbours_are_merged(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, 100 * MIB);
    BeExtent extent;

    for (int i = 0; i < 50; i++) {
        g_assert_true(be_extents_append(extents, MIB, 0));
    }
    for (int i = 0; i < 50; i++) {
        g_assert_true(be_extents_append(extents, MIB, HOLE));
    }
    g_assert_cmpuint(be_extents_count(extents), ==, 2);
    g_assert_true(be_extents_lookup(extents, 70 * MIB, &extent));
    g_assert_cmpuint(extent.start, ==, 50 * MIB);
    g_assert_cmpuint(extent.length, ==, 50 * MIB);
    g_assert_cmpuint(extent.flags, ==, HOLE);
}

static void test_hole_without_zero_is_data(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, 2 * MIB);

    g_assert_true(be_extents_append(extents, MIB, BE_EXTENT_HOLE));
    g_assert_true(be_extents_append(extents, MIB, BE_EXTENT_ZERO));
    assert_next(extents, 0, TRUE, BE_NEXT_FOUND, 0);
    assert_next(extents, 0, FALSE, BE_NEXT_FOUND, MIB);
    g_assert_cmpuint(be_extents_data_bytes(extents), ==, MIB);
}

static void test_dirty_bitmap(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_DIRTY, 3 * MIB);

    g_assert_true(be_extents_append(extents, MIB, 0));
    g_assert_true(be_extents_append(extents, MIB, BE_EXTENT_DIRTY));
    g_assert_true(be_extents_append(extents, MIB, 0));
    assert_next(extents, 0, TRUE, BE_NEXT_FOUND, MIB);
    assert_next(extents, MIB, FALSE, BE_NEXT_FOUND, 2 * MIB);
    g_assert_cmpuint(be_extents_data_bytes(extents), ==, MIB);
}

static void test_lies_of_a_server(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, MIB);
    BeExtent extent;

    g_assert_false(be_extents_append(extents, 0, 0));
    g_assert_cmpuint(be_extents_end(extents), ==, 0);
    g_assert_true(be_extents_append(extents, 4096, 0xfffffffcu));
    g_assert_true(be_extents_append(extents, G_MAXUINT64, HOLE));
    g_assert_true(be_extents_complete(extents));
    g_assert_false(be_extents_append(extents, 1, 0));
    g_assert_true(be_extents_lookup(extents, MIB - 1, &extent));
    g_assert_cmpuint(extent.start, ==, 4096);
    g_assert_cmpuint(extent.length, ==, MIB - 4096);
    g_assert_false(be_extents_lookup(extents, MIB, &extent));
}

static void test_empty_disk(void)
{
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, 0);

    g_assert_true(be_extents_complete(extents));
    g_assert_false(be_extents_append(extents, 1, 0));
    assert_next(extents, 0, FALSE, BE_NEXT_NONE, 0);
}

/* A disk in splinters must not take all memory: what does not fit is data. */
static void test_count_is_bounded(void)
{
    guint64 size = (guint64)BE_EXTENTS_COUNT_MAX * 2 * 512;
    g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, size);
    guint64 steps = 0;

    while (be_extents_append(extents, 512, steps % 2 ? HOLE : 0)) {
        steps++;
    }
    g_assert_true(be_extents_complete(extents));
    g_assert_cmpuint(be_extents_count(extents), <=, BE_EXTENTS_COUNT_MAX);
    assert_next(extents, size - 1, TRUE, BE_NEXT_FOUND, size - 1);
    assert_next(extents, 512, TRUE, BE_NEXT_FOUND, 1024);
}

/* Against a plain array, one byte for each block. */
static void test_random_lists_agree_with_model(void)
{
    for (int round = 0; round < 200; round++) {
        guint blocks = (guint)g_test_rand_int_range(1, 300);
        g_autofree guint8 *model = g_malloc(blocks);
        g_autoptr(BeExtents) extents = be_extents_new(BE_EXTENTS_ALLOCATION, blocks);
        guint at = 0;

        while (at < blocks) {
            guint length = (guint)g_test_rand_int_range(1, 20);
            guint8 flags = (guint8)g_test_rand_int_range(0, 4);

            g_assert_true(be_extents_append(extents, length, flags));
            for (; length > 0 && at < blocks; length--) {
                model[at++] = flags;
            }
        }
        for (guint i = 0; i < blocks; i++) {
            guint data = i;
            guint hole = i;
            BeExtent extent;

            while (data < blocks && (model[data] & BE_EXTENT_ZERO)) {
                data++;
            }
            while (hole < blocks && !(model[hole] & BE_EXTENT_ZERO)) {
                hole++;
            }
            assert_next(extents, i, TRUE, data < blocks ? BE_NEXT_FOUND : BE_NEXT_NONE, data);
            assert_next(extents, i, FALSE, BE_NEXT_FOUND, hole);
            g_assert_true(be_extents_lookup(extents, i, &extent));
            g_assert_cmpuint(extent.flags, ==, model[i]);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/extents/seek-data-and-hole", test_seek_data_and_hole);
    g_test_add_func("/extents/seek-at-end-finds-nothing", test_seek_at_end_finds_nothing);
    g_test_add_func("/extents/end-is-a-hole", test_end_is_a_hole);
    g_test_add_func("/extents/growing-map-says-unknown", test_growing_map_says_unknown);
    g_test_add_func("/extents/equal-neighbours-are-merged", test_equal_neighbours_are_merged);
    g_test_add_func("/extents/hole-without-zero-is-data", test_hole_without_zero_is_data);
    g_test_add_func("/extents/dirty-bitmap", test_dirty_bitmap);
    g_test_add_func("/extents/lies-of-a-server", test_lies_of_a_server);
    g_test_add_func("/extents/empty-disk", test_empty_disk);
    g_test_add_func("/extents/count-is-bounded", test_count_is_bounded);
    g_test_add_func("/extents/random-lists-agree-with-model", test_random_lists_agree_with_model);
    return g_test_run();
}
