/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mountopt.h - the words behind "-o", from the command line or from fstab.
 *
 * Main thread, before any other exists.  Errors are in the domain
 * G_OPTION_ERROR.
 */
#pragma once

#include "mountd/options.h"

/**
 * vm_mountopt_apply: reads the text behind one "-o" into @options: words
 * separated by commas, where "\," is a comma and "\\" a backslash.
 *
 * Returns: FALSE at the first wrong word; the ones before it have been applied.
 */
gboolean vm_mountopt_apply(VmOptions *options, const char *text, GError **error);

/**
 * vm_mountopt_names: Returns: (array zero-terminated): the names in the table of
 * -o options, for the test that holds table and man page together; free the
 * array with g_free(), the strings are static.
 */
const char **vm_mountopt_names(void);

/**
 * vm_mountopt_help: appends one line for each row of the table.
 */
void vm_mountopt_help(GString *out);
