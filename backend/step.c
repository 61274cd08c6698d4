/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * step.c - the one place that runs and undoes steps; see step.h.  Workers.
 */
#include "backend/step.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#ifdef BE_CRASH_POINTS
/* A list of all points that are passed, for tests that want to know them. */
static void list_point(const char *point)
{
    const char *path = g_getenv("VMSNAPFS_POINTS");
    g_autofree char *line = g_strconcat(point, "\n", NULL);
    int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;

    if (fd >= 0) {
        if (write(fd, line, strlen(line)) < 0) {
            g_warning("cannot write '%s'", path);
        }
        close(fd);
    }
}

void be_crash_point(const char *area, const char *name, const char *when)
{
    const char *wanted = g_getenv("VMSNAPFS_CRASH_AT");
    g_autofree char *point = g_strdup_printf("%s:%s:%s", area, name, when);

    list_point(point);
    if (wanted && g_str_equal(wanted, point)) {
        kill(getpid(), SIGKILL);
    }
}

gboolean be_fail_point(const char *area, const char *name, const char *when, GError **error)
{
    const char *wanted = g_getenv("VMSNAPFS_FAIL_AT");
    g_autofree char *point = g_strdup_printf("%s:%s:%s", area, name, when);

    if (!wanted || !g_str_equal(wanted, point)) {
        return FALSE;
    }
    g_set_error(error, BE_ERROR, EIO, "made to fail at %s", point);
    return TRUE;
}
#endif

static void undo_from(const char *area, const BeStep *steps, gsize last, gpointer work)
{
    for (gsize i = last + 1; i > 0; i--) {
        if (steps[i - 1].undo) {
            steps[i - 1].undo(work);
            be_crash_point(area, steps[i - 1].name, "undone");
        }
    }
}

gboolean be_steps_run(const char *area, const BeStep *steps, gpointer work, BeJob *job,
                      GError **error)
{
    for (gsize i = 0; steps[i].name; i++) {
        gboolean cancelled = be_job_is_cancelled(job);

        if (cancelled) {
            g_set_error(error, BE_ERROR, ECANCELED, "cancelled before '%s'", steps[i].name);
        }
        be_crash_point(area, steps[i].name, "before");
        if (cancelled || be_fail_point(area, steps[i].name, "before", error)
            || !steps[i].run(work, error)
            || be_fail_point(area, steps[i].name, "after", error)) {
            undo_from(area, steps, i, work);
            return FALSE;
        }
        be_crash_point(area, steps[i].name, "after");
    }
    return TRUE;
}
