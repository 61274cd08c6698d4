/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * merge-progress.h - how far the action that runs on a domain is, for its `job`.
 *
 * Any thread; never blocks.
 */
#pragma once

#include <glib.h>

/**
 * be_progress_set: replaces what is known of the domain @uuid.
 * @kind: "commit", "delete": a literal
 * @object: "snapshots/NAME"; copied
 * @done, @total: bytes; a total of 0 is not known yet
 */
void be_progress_set(const char *uuid, const char *kind, const char *object, guint64 done,
                     guint64 total);
void be_progress_clear(const char *uuid);

/**
 * be_progress_print: appends "key: value" lines.  Returns: FALSE where nothing is known.
 */
gboolean be_progress_print(const char *uuid, GString *out);
