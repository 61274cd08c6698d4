/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-meter.c - bytes a second, at made-up times.
 */
#include "backend/meter.h"

#define S G_USEC_PER_SEC

static void test_mean(void)
{
    BeMeter meter = {0};

    g_assert_cmpuint(be_meter_rate(&meter, 100 * S), ==, 0);
    for (gint64 at = 100 * S; at < 110 * S; at += S / 10) {
        be_meter_add(&meter, at, 100);
    }
    g_assert_cmpuint(be_meter_rate(&meter, 110 * S), ==, 1000);
    /* A second that is not over does not count. */
    be_meter_add(&meter, 110 * S, 1000000);
    g_assert_cmpuint(be_meter_rate(&meter, 110 * S + 1), ==, 1000);
    g_assert_cmpuint(be_meter_rate(&meter, 111 * S), ==, (1000000 + 4000) / 5);
}

static void test_idle(void)
{
    BeMeter meter = {0};

    be_meter_add(&meter, 50 * S, 5000);
    g_assert_cmpuint(be_meter_rate(&meter, 55 * S), ==, 1000);
    g_assert_cmpuint(be_meter_rate(&meter, 56 * S), ==, 0);
    g_assert_cmpuint(be_meter_rate(&meter, 56 * S + 3600 * (gint64)S), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/meter/mean", test_mean);
    g_test_add_func("/meter/idle", test_idle);
    return g_test_run();
}
