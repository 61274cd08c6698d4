/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * failures.h - the `error` files: the last 16 failures on each object.
 */
#pragma once

#include "backend/backend.h"
#include "fs/item.h"

/* Objects that lines are kept for; beyond them, those that were silent longest are
 * forgotten. */
#define FS_FAILURES_OBJECTS 4096

typedef struct FsFailures FsFailures;

FsFailures *fs_failures_new(void);
void fs_failures_free(FsFailures *failures);

/**
 * fs_failures_add: one line in the `error` of @item and of every object above
 * it: sequence number, time, pid and uid of the caller, operation, errno name,
 * sentence.  Control characters in @operation and @text are escaped.
 * @item: (nullable): nothing is written for the top of the mount
 * @caller: (nullable): ourselves
 */
void fs_failures_add(FsFailures *failures, FsItem *item, const BeCaller *caller,
                     const char *operation, int errnum, const char *text);

/**
 * fs_failures_add_id: the same for one object known by its identity alone.
 */
void fs_failures_add_id(FsFailures *failures, const char *id, const BeCaller *caller,
                        const char *operation, int errnum, const char *text);

/**
 * fs_failures_print: appends the lines of an object, oldest first.
 */
void fs_failures_print(FsFailures *failures, const char *id, GString *out);

/**
 * fs_failures_drop: forgets the lines of an object that is gone.
 */
void fs_failures_drop(FsFailures *failures, const char *id);

/**
 * fs_errno_name: "EBUSY" for EBUSY; "E123" for one without a name.
 */
const char *fs_errno_name(int errnum);

/**
 * fs_escape_line: @text on one line: control characters and bytes that are not
 * UTF-8 become \xXX, invisible characters that would break or turn the line
 * \uXXXX.
 */
char *fs_escape_line(const char *text);

/**
 * fs_time_text: a real time as ISO 8601 in UTC, "2026-11-23T02:00:00.123Z".
 */
char *fs_time_text(gint64 time_us);
