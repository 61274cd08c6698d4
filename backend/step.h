/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * step.h - actions of more than one step: each step has its undo.
 */
#pragma once

#include "backend/job.h"

/**
 * BeStep: one step of an action; an array ends with an empty row.
 * @undo: takes back what @run did, all of it or the half it got to; harmless
 *   when it did nothing; never fails (what cannot be undone now stays in the
 *   journal).  NULL where there is nothing to take back.
 */
typedef struct {
    const char *name;
    gboolean (*run)(gpointer work, GError **error);
    void (*undo)(gpointer work);
} BeStep;

/**
 * be_steps_run: runs the steps in order.  When one fails, or the job was
 * cancelled before one, it is undone, then all before it, last first.  Blocks
 * as its steps do; on a worker.
 * @area: for the names of the crash points: "backup-begin"
 *
 * Returns: TRUE when all ran; FALSE with the error of the step that failed, or
 *   ECANCELED.
 */
gboolean be_steps_run(const char *area, const BeStep *steps, gpointer work, BeJob *job,
                      GError **error);

/**
 * be_crash_point: kills this process where the environment's
 * VMSNAPFS_CRASH_AT names the point "area:name:when", and appends each point that is
 * passed to the file that VMSNAPFS_POINTS names; compiled in for tests alone.
 */
#ifdef BE_CRASH_POINTS
void be_crash_point(const char *area, const char *name, const char *when);

/**
 * be_fail_point: TRUE with @error set (EIO) where the environment's VMSNAPFS_FAIL_AT
 * names the point: as if the step had failed before it did anything, or after.
 */
gboolean be_fail_point(const char *area, const char *name, const char *when, GError **error);
#else
static inline gboolean be_fail_point(const char *area G_GNUC_UNUSED,
                                     const char *name G_GNUC_UNUSED,
                                     const char *when G_GNUC_UNUSED, GError **error G_GNUC_UNUSED)
{
    return FALSE;
}

static inline void be_crash_point(const char *area G_GNUC_UNUSED, const char *name G_GNUC_UNUSED,
                                  const char *when G_GNUC_UNUSED)
{
}
#endif
