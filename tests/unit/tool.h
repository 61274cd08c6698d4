/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * tool.h - running real tools from a unit test, and a directory to do it in.
 *
 * Main thread of a test.
 */
#pragma once

#include <glib.h>

/**
 * tool_missing: skips the running test when one of the tools is not installed.
 * @tools: NULL-terminated
 */
gboolean tool_missing(const char *const *tools);

/**
 * tool_run: runs a program found by PATH and waits for it.
 * @ret_output: standard output and error together, or NULL to drop them
 *
 * Returns: its exit code, 128 + N when signal N ended it.
 */
int tool_run(const char *const *argv, char **ret_output);

/**
 * TOOL, TOOL_OK: tool_run() with the words of a command; the second one must
 * succeed.
 */
#define TOOL(...) tool_run((const char *const[]){__VA_ARGS__, NULL}, NULL)
#define TOOL_OK(...) g_assert_cmpint(TOOL(__VA_ARGS__), ==, 0)

/**
 * tool_dir_new: Returns: a new directory; the working directory stays.
 */
char *tool_dir_new(void);

/**
 * tool_dir_remove: removes it with all that is in it, and frees the name.
 */
void tool_dir_remove(char *dir);

/**
 * tool_stop_server: ends a server of QEMU's by its pid file, and waits until it has let
 * go of its images.
 */
void tool_stop_server(const char *pid_file);

/**
 * tool_wait: waits until @condition says TRUE, at most 60 s.
 * Returns: whether it did.
 */
gboolean tool_wait(gboolean (*condition)(gpointer data), gpointer data);
