/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * command.h - one line of a control file, parsed against a verb table.
 */
#pragma once

#include "fs/def.h"

#define FS_COMMAND_MAX 4096

void fs_command_free(FsCommand *command);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(FsCommand, fs_command_free)

/**
 * fs_command_parse:
 * @data: @size bytes as written, at most FS_COMMAND_MAX of them matter
 * @ret_verb: the row of the verb
 * @ret_command: (transfer full): its words and options
 *
 * One line: a verb, words and key=value options, quoted as in a shell; a
 * trailing newline or CRLF is tolerated.  Pure; any thread.
 *
 * Returns: TRUE; with both results NULL for an empty line or a comment, which
 * do nothing.  FALSE: EFBIG (too long), EINVAL (a NUL or a second line, an
 * unknown verb, option or number of words: the message lists what is allowed),
 * EILSEQ (no UTF-8).
 */
gboolean fs_command_parse(const char *data, gsize size, const FsVerb *verbs,
                          const FsVerb **ret_verb, FsCommand **ret_command, GError **error);

/**
 * fs_command_text: Returns: what fs_command_answer() was given, or NULL; owned by
 * @command.  Any thread.
 */
const char *fs_command_text(const FsCommand *command);

/**
 * fs_command_usage: appends one line for each verb.
 */
void fs_command_usage(const FsVerb *verbs, GString *out);
