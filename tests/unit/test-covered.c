/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-covered.c - the set of bytes that were seen: never more than is true.
 */
#include "backend/covered.h"

static void test_empty(void)
{
    g_autoptr(BeExtents) holes = be_extents_new(BE_EXTENTS_ALLOCATION, 100);
    BeCovered *covered = be_covered_new();

    g_assert_true(be_covered_all(covered, 0, 0, NULL));
    g_assert_false(be_covered_all(covered, 0, 1, NULL));
    g_assert_false(be_covered_all(covered, 0, 100, holes));
    be_extents_append(holes, 60, BE_EXTENT_ZERO);
    g_assert_true(be_covered_all(covered, 10, 60, holes));
    /* What is not known yet is no hole. */
    g_assert_false(be_covered_all(covered, 10, 61, holes));
    be_covered_add(covered, 5, 5);
    g_assert_cmpuint(be_covered_count(covered), ==, 0);
    be_covered_free(covered);
    be_covered_free(NULL);
}

static void test_neighbours_are_one(void)
{
    BeCovered *covered = be_covered_new();

    be_covered_add(covered, 10, 20);
    be_covered_add(covered, 30, 40);
    be_covered_add(covered, 0, 5);
    g_assert_cmpuint(be_covered_count(covered), ==, 3);
    be_covered_add(covered, 20, 30);
    g_assert_cmpuint(be_covered_count(covered), ==, 2);
    g_assert_true(be_covered_all(covered, 10, 40, NULL));
    g_assert_false(be_covered_all(covered, 5, 40, NULL));
    be_covered_add(covered, 0, 100);
    g_assert_cmpuint(be_covered_count(covered), ==, 1);
    be_covered_free(covered);
}

static void test_random(void)
{
    for (guint round = 0; round < 200; round++) {
        enum { SIZE = 300 };
        gboolean model[SIZE] = {FALSE};
        gboolean hole[SIZE] = {FALSE};
        g_autoptr(BeExtents) holes = be_extents_new(BE_EXTENTS_ALLOCATION, SIZE);
        BeCovered *covered = be_covered_new();

        for (guint i = 0; i < SIZE; i++) {
            hole[i] = g_test_rand_int_range(0, 4) == 0;
            be_extents_append(holes, 1, hole[i] ? BE_EXTENT_ZERO : 0);
        }
        for (guint i = 0; i < 40; i++) {
            guint start = (guint)g_test_rand_int_range(0, SIZE);
            guint end = start + (guint)g_test_rand_int_range(0, 20);

            end = MIN(end, SIZE);
            be_covered_add(covered, start, end);
            for (guint at = start; at < end; at++) {
                model[at] = TRUE;
            }
        }
        for (guint start = 0; start < SIZE; start++) {
            gboolean all = TRUE, data = TRUE;

            for (guint end = start; end < SIZE; end++) {
                g_assert_cmpint(be_covered_all(covered, start, end, NULL), ==, all);
                g_assert_cmpint(be_covered_all(covered, start, end, holes), ==, data);
                all = all && model[end];
                data = data && (model[end] || hole[end]);
            }
        }
        be_covered_free(covered);
    }
}

/* Of too many pieces the shorter half goes, whatever their order. */
static void test_shortest_go(void)
{
    BeCovered *covered = be_covered_new();

    for (guint64 i = 0; i <= BE_COVERED_MAX; i++) {
        guint64 length = i % 2 ? 700 : i % 4 ? 600 : 500;

        be_covered_add(covered, i * 1000, i * 1000 + length);
    }
    g_assert_cmpuint(be_covered_count(covered), ==, BE_COVERED_MAX / 2 + 1);
    for (guint64 i = 1; i <= BE_COVERED_MAX; i += 2) {
        g_assert_true(be_covered_all(covered, i * 1000, i * 1000 + 700, NULL));
        g_assert_false(be_covered_all(covered, i * 1000, i * 1000 + 701, NULL));
    }
    be_covered_free(covered);
}

/* Pieces that never touch: the longest are kept, and nothing is made up. */
static void test_bounded(void)
{
    BeCovered *covered = be_covered_new();

    be_covered_add(covered, 0, 1000);
    for (guint64 i = 1; i <= 2 * BE_COVERED_MAX; i++) {
        be_covered_add(covered, i * 10000, i * 10000 + 500);
    }
    g_assert_cmpuint(be_covered_count(covered), <=, BE_COVERED_MAX);
    g_assert_cmpuint(be_covered_count(covered), >=, BE_COVERED_MAX / 2);
    g_assert_true(be_covered_all(covered, 0, 1000, NULL));
    g_assert_false(be_covered_all(covered, 0, 1001, NULL));
    be_covered_add(covered, 0, 3 * BE_COVERED_MAX * G_GUINT64_CONSTANT(10000));
    g_assert_cmpuint(be_covered_count(covered), ==, 1);
    be_covered_free(covered);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/covered/empty", test_empty);
    g_test_add_func("/covered/neighbours-are-one", test_neighbours_are_one);
    g_test_add_func("/covered/random", test_random);
    g_test_add_func("/covered/shortest-go", test_shortest_go);
    g_test_add_func("/covered/bounded", test_bounded);
    return g_test_run();
}
