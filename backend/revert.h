/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * revert.h - going back to a snapshot: what its files share.
 *
 * libvirt 9.0 reverts to internal snapshots only.  To an external one we go by
 * new overlays on the images that hold its state, so nothing that a snapshot needs
 * is ever written to.  What can fail is tried before the machine is stopped, and
 * its memory is saved until the new one stands.
 *
 * Action workers, one per domain.
 */
#pragma once

#include "backend/job.h"
#include "backend/private.h"
#include "backend/snaptree.h"
#include "backend/xml-edit.h"

/* How far a revert got, as its record says. */
typedef enum {
    REVERT_BEGUN,              /* a crash takes it back */
    REVERT_STOPPING,           /* the machine may be off by us: a crash starts it again */
    REVERT_STANDS,             /* the new state is there: a crash finishes it */
} RevertStage;

/**
 * RevertPlan: what a revert works with; what the record holds is written as it was
 * before the revert.
 */
typedef struct {
    Be *be;
    BeJob *job;                /* borrowed */
    char *uuid;
    char *name;                /* of the snapshot */
    BeRevertTo to;
    gboolean force;
    char *keep;                /* name of the snapshot of what is left, or NULL */

    virDomainPtr domain;
    BeTree *tree;
    BeTreeSnapshot *snapshot;  /* in tree */
    gboolean restores;         /* its memory comes back */
    char *id;                  /* of the record */
    RevertStage stage;
    gboolean was_active;
    gboolean was_paused;
    GPtrArray *overlays;       /* of BeXmlImage: the new tops */
    GPtrArray *bases;          /* of BeXmlImage: what they stand on, in the same order */
    GArray *sizes;             /* of guint64, in the same order */
    GPtrArray *left;           /* of char *: the tops that are left */
    char *old_inactive;        /* XML as it was defined */
    char *old_live;            /* XML of the running machine, or NULL */
    char *old_snapshot;        /* XML of the snapshot as it was */
    char *old_current;         /* XML of the current snapshot, or NULL */
    char *new_inactive;
    char *new_live;            /* for the restore */
    char *saved;               /* path of the memory that is left; NULL: not saved */
    gboolean kept;             /* the snapshot `keep` was made */
} RevertPlan;

RevertPlan *revert_plan_new(Be *be, const char *uuid, const char *name);
void revert_plan_free(gpointer plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RevertPlan, revert_plan_free)

/**
 * revert_check: whether the revert can be done; fills the plan.  Changes nothing.
 */
gboolean revert_check(RevertPlan *plan, GError **error);

/**
 * revert_external: by new overlays.
 */
gboolean revert_external(RevertPlan *plan, GError **error);

/* ---- revert-step.c: each harmless when it was done, or not done, already --------- */

gboolean revert_run_images(gpointer work, GError **error);

/* Whether an image or a snapshot stands on our overlays. */
gboolean revert_is_built_on(RevertPlan *plan, gboolean *ret_built_on, GError **error);
void revert_undo_images(gpointer work);
gboolean revert_run_define(gpointer work, GError **error);
void revert_undo_define(gpointer work);
gboolean revert_run_current(gpointer work, GError **error);
void revert_undo_current(gpointer work);
gboolean revert_run_stop(gpointer work, GError **error);
void revert_undo_stop(gpointer work);
gboolean revert_run_keep(gpointer work, GError **error);
void revert_undo_keep(gpointer work);
gboolean revert_run_start(gpointer work, GError **error);
void revert_undo_start(gpointer work);

/**
 * revert_settle: after the new state stands: thaws, drops what was left, removes
 * the record.  What cannot be removed is told as an event.
 */
void revert_settle(RevertPlan *plan);

/**
 * revert_wants: the state that the domain shall have.
 */
BeRevertTo revert_wants(const RevertPlan *plan);

/* ---- revert-record.c ------------------------------------------------------------- */

gboolean revert_record_write(RevertPlan *plan, RevertStage stage, GError **error);

/**
 * revert_record_drop: the record is no longer needed.
 * revert_record_give_up: it stays, for the next connect.
 */
void revert_record_drop(RevertPlan *plan);
void revert_record_give_up(RevertPlan *plan);
