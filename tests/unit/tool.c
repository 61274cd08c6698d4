/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * tool.c - running real tools from a unit test; see tool.h.
 *
 * Main thread of a test.
 */
#include "tool.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>

enum { WAIT_SECONDS = 60, POLL_US = 5000 };

gboolean tool_missing(const char *const *tools)
{
    for (size_t i = 0; tools[i]; i++) {
        g_autofree char *path = g_find_program_in_path(tools[i]);

        if (!path) {
            g_test_skip_printf("%s is not installed", tools[i]);
            return TRUE;
        }
    }
    return FALSE;
}

int tool_run(const char *const *argv, char **ret_output)
{
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    g_autofree char *line = g_strjoinv(" ", (char **)argv);
    g_autoptr(GError) error = NULL;
    int status = 0;
    int code = 0;

    g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &err, &status,
                 &error);
    g_assert_no_error(error);
    code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    g_test_message("%s: %d %s%s", line, code, out, err);
    if (ret_output) {
        *ret_output = g_strconcat(out, err, NULL);
    }
    return code;
}

char *tool_dir_new(void)
{
    g_autoptr(GError) error = NULL;
    char *dir = g_dir_make_tmp("unit-XXXXXX", &error);

    g_assert_no_error(error);
    return dir;
}

void tool_dir_remove(char *dir)
{
    TOOL_OK("rm", "-rf", "--", dir);
    g_free(dir);
}

/*
 * A zombie has let go of its images, and who reaps it is not our matter; but the first
 * thread may be one while others are still there, and the files with them.
 */
static gboolean is_over(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *stat = NULL;
    g_auto(GStrv) fields = NULL;
    const char *end;

    if (!g_file_get_contents(path, &stat, NULL, NULL)) {
        return TRUE;
    }
    end = strrchr(stat, ')');
    g_assert_nonnull(end);
    /* From the third on: the state, and the number of threads. */
    fields = g_strsplit(end + 2, " ", -1);
    g_assert_cmpuint(g_strv_length(fields), >, 17);
    return strchr("ZX", fields[0][0]) && g_ascii_strtoll(fields[17], NULL, 10) <= 1;
}

/*
 * qemu-nbd loses a SIGTERM that comes between its pid file and its main loop
 * (it sets its state to "running" after both), so one is not enough.
 */
static gboolean has_ended(gpointer data)
{
    pid_t pid = *(const pid_t *)data;

    if (is_over(pid)) {
        return TRUE;
    }
    kill(pid, SIGTERM);
    return FALSE;
}

void tool_stop_server(const char *pid_file)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;
    pid_t pid;

    g_file_get_contents(pid_file, &text, NULL, &error);
    g_assert_no_error(error);
    pid = (pid_t)g_ascii_strtoll(text, NULL, 10);
    g_assert_cmpint(pid, >, 1);
    g_assert_true(tool_wait(has_ended, &pid));
}

gboolean tool_wait(gboolean (*condition)(gpointer data), gpointer data)
{
    gint64 deadline_us = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;

    while (!condition(data)) {
        if (g_get_monotonic_time() > deadline_us) {
            return FALSE;
        }
        g_usleep(POLL_US);
    }
    return TRUE;
}
