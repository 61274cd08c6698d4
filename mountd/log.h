/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * log.h - where g_debug() to g_critical() of all parts of the program go.
 *
 * vm_log_init() before the first thread; the rest from any thread.
 */
#pragma once

#include <glib.h>

/**
 * vm_log_init: takes over GLib's log.
 * @target: "stderr", "journal", the path of a file to append to, or NULL:
 *   stderr until vm_log_background(), then the journal where there is one
 * @debug: log domains whose debug messages are wanted, separated by commas
 *   ("fs,backend", with or without "vmsnapfs-" in front), "all", or NULL
 *
 * Messages from "info" upwards are always written.
 *
 * Returns: FALSE when the file cannot be opened (domain G_FILE_ERROR).
 */
gboolean vm_log_init(const char *target, const char *debug, GError **error);

/**
 * vm_log_background: stderr is about to go away; a log without a target of its
 * own goes to the journal from now on.
 */
void vm_log_background(void);

/**
 * vm_log_escape: makes a text safe to print: control characters, also those of
 * the C1 set, and bytes that are no UTF-8 become "\n", "\t" or "\xNN".
 *
 * Returns: a new string; free with g_free().
 */
char *vm_log_escape(const char *text);

/**
 * vm_log_wants_debug: whether debug messages of @domain (NULL: no domain) are
 * written.
 */
gboolean vm_log_wants_debug(const char *domain);

/**
 * vm_complain: prints "PROGRAM: message" to stderr, escaped and without
 * passwords: what a program says before it ends, whatever its log is.
 */
void vm_complain(const char *format, ...) G_GNUC_PRINTF(1, 2);
