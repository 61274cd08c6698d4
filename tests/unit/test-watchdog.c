/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-watchdog.c - what the watchdog promises, on libvirt's test driver: of a guest that it
 * has begun to thaw nobody is told that it is watched.
 */
#include "backend/watchdog.h"

#include <errno.h>

#include "backend/backend.h"

/* The test driver's own machine, which runs, and nobody's. */
#define RUNNING "6695eb01-f6a4-8304-79aa-97f2502e193f"
#define NOBODYS "5e3b0f5a-3c0e-4f5c-9d3f-2b1f0c6a7e11"

static void assert_not_extended(BeWatchdog *watchdog, const char *uuid)
{
    g_autoptr(GError) error = NULL;

    g_assert_false(be_watchdog_extend(watchdog, uuid, 60000, &error));
    g_assert_error(error, BE_ERROR, EHOSTUNREACH);
}

static void test_extend(void)
{
    BeWatchdog *watchdog = be_watchdog_new("test:///default", NULL);
    g_autoptr(GError) error = NULL;

    assert_not_extended(watchdog, RUNNING);
    g_assert_true(be_watchdog_arm(watchdog, RUNNING, 60000, &error));
    g_assert_true(be_watchdog_extend(watchdog, RUNNING, 60000, &error));
    assert_not_extended(watchdog, NOBODYS);
    be_watchdog_disarm(watchdog, RUNNING);
    assert_not_extended(watchdog, RUNNING);
    g_assert_no_error(error);
    be_watchdog_free(watchdog);
}

/* Only just: at the first look the thaw may not have begun, at a later one it is over. */
static void test_time_is_up(void)
{
    BeWatchdog *watchdog = be_watchdog_new("test:///default", NULL);
    gint64 deadline_us = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    g_autoptr(GError) error = NULL;

    g_assert_true(be_watchdog_arm(watchdog, NOBODYS, 0, &error));
    while (be_watchdog_extend(watchdog, NOBODYS, 0, NULL)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
    }
    assert_not_extended(watchdog, NOBODYS);
    /* Nobody is there to be thawed, so it is not tried again: it can be watched anew. */
    while (!be_watchdog_arm(watchdog, NOBODYS, 60000, NULL)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline_us);
    }
    g_assert_true(be_watchdog_extend(watchdog, NOBODYS, 60000, &error));
    be_watchdog_disarm(watchdog, NOBODYS);
    g_assert_no_error(error);
    be_watchdog_free(watchdog);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/watchdog/extend", test_extend);
    g_test_add_func("/watchdog/time-is-up", test_time_is_up);
    return g_test_run();
}
