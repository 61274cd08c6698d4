/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot-plan.h - a snapshot that is being made, from the request to the list.
 *
 * Private to snapshot-create.c (which disks, what is refused), snapshot-files.c
 * (names and left-overs), snapshot-steps.c (the steps) and snapshot-recover.c (what
 * a crash left).
 */
#pragma once

#include "backend/job.h"
#include "backend/owner.h"
#include "backend/paused.h"
#include "backend/quiesce.h"
#include "backend/xml.h"

typedef struct {
    Be *be;
    BeJob *job;                /* borrowed */
    char *uuid;
    char *name;
    char **only;               /* targets, or NULL */
    BeSnapshotOptions asked;   /* without its description, which `wanted` has */
    BeQuiesce quiesce;         /* what was asked for, then what is done */
    BeCaller caller;
    BeXmlSnapshot *wanted;     /* what libvirt is asked for */

    virDomainPtr domain;
    BeXmlDomain *xml;
    gboolean active;           /* it ran, or was paused, when we came */
    gboolean running;
    gboolean has_checkpoints;
    char *record_id;
    BePaused *held;            /* it was off, and is started paused for this */
    BeWindow window;
    gboolean uncertain;        /* libvirt may have made it without our knowing */
} SnapshotPlan;

/**
 * snapshot_make: the steps, each with its undo.  Action worker.
 */
gboolean snapshot_make(SnapshotPlan *plan, GError **error);

/* ---- snapshot-files.c -------------------------------------------------------------- */

/**
 * snapshot_name_files: chooses the files that the snapshot makes, beside the images:
 * of `wanted` the paths of overlays and memory.  None of them exists.
 * Returns: FALSE: EEXIST, ENOSPC, or the errno of a system call.
 */
gboolean snapshot_name_files(SnapshotPlan *plan, GError **error);

/**
 * snapshot_protect_files: takes the rights of all others from the overlays.
 */
void snapshot_protect_files(const BeXmlSnapshot *wanted);

/**
 * snapshot_remove_files: removes what was left of a snapshot that was not made;
 * never a file that the machine or another snapshot refers to.  Blocks; workers.
 */
void snapshot_remove_files(virDomainPtr domain, const BeXmlSnapshot *wanted);

/* ---- snapshot-recover.c ------------------------------------------------------------ */

/**
 * snapshot_record_write: the intent: what is about to be made, and where.
 * snapshot_record_remove: it is over.
 */
gboolean snapshot_record_write(const SnapshotPlan *plan, GError **error);
void snapshot_record_remove(const SnapshotPlan *plan);

/**
 * snapshot_leave: the host may have made it or not, and cannot be asked now:
 * be_snapshots_recover() will.
 */
void snapshot_leave(SnapshotPlan *plan);

/**
 * SnapshotOutcome: what came of a snapshot of which only the intent is known.
 */
typedef enum {
    SNAPSHOT_MADE,             /* it is there: it stays */
    SNAPSHOT_NOT_MADE,         /* what was left of it is removed */
    SNAPSHOT_UNKNOWN,          /* the host does not answer, or is still at it */
} SnapshotOutcome;

/**
 * snapshot_settle: looks whether libvirt has the snapshot, and removes the files of
 * one it does not have.  Blocks; workers.
 */
SnapshotOutcome snapshot_settle(virDomainPtr domain, const BeXmlSnapshot *wanted);

/**
 * snapshot_finish: what is left to do of one that libvirt has made: the modes of its
 * files, and whose it is.  What fails is logged.  Blocks; workers.
 */
void snapshot_finish(Be *be, virDomainPtr domain, const char *uuid, const BeXmlSnapshot *wanted,
                     const BeOwner *owner);
