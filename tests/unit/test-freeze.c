/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-freeze.c - what a freeze means, by what the agent says of its system.
 */
#include "backend/freeze.h"

static void test_consistency(void)
{
    static const struct {
        const char *os_id;
        BeConsistency consistency;
    } rows[] = {
        {"mswindows", BE_CONSISTENCY_APPLICATION},
        {"debian", BE_CONSISTENCY_FILESYSTEM},
        {"windows", BE_CONSISTENCY_FILESYSTEM},
        {"MSWINDOWS", BE_CONSISTENCY_FILESYSTEM},
        {"mswindows ", BE_CONSISTENCY_FILESYSTEM},
        {"", BE_CONSISTENCY_FILESYSTEM},
        {NULL, BE_CONSISTENCY_FILESYSTEM},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_assert_cmpint(be_freeze_consistency_of(rows[i].os_id), ==, rows[i].consistency);
    }
}

static void test_quiesce_words(void)
{
    BeQuiesce quiesce = BE_QUIESCE_DEFAULT;

    g_assert_true(be_quiesce_parse("require", &quiesce));
    g_assert_cmpint(quiesce, ==, BE_QUIESCE_REQUIRE);
    g_assert_false(be_quiesce_parse("Require", &quiesce));
    g_assert_false(be_quiesce_parse("", &quiesce));
    g_assert_cmpint(quiesce, ==, BE_QUIESCE_REQUIRE);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/freeze/consistency", test_consistency);
    g_test_add_func("/freeze/quiesce-words", test_quiesce_words);
    return g_test_run();
}
