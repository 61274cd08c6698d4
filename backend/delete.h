/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * delete.h - deleting and committing snapshots: what its files share.
 *
 * An external snapshot goes by writing the one image that stands on it into the
 * image that holds it.  libvirt does that where the tree is one line; where a
 * revert has made branches we do, by block jobs of a running machine or by
 * qemu-img.  An image on which two branches stand stays: both need all of it.
 *
 * Action workers, one per domain.
 */
#pragma once

#include "backend/change.h"
#include "backend/job.h"
#include "backend/paused.h"
#include "backend/private.h"

/* What becomes of the image that holds a disk of the snapshot. */
typedef enum {
    DELETE_KEEPS,              /* something else needs it as it is */
    DELETE_REMOVES,            /* nothing needs it */
    DELETE_MERGES,             /* what stands on it is written into it */
} DeleteFate;

/**
 * DeleteDisk: one disk of the snapshot; paths are of @from into @to.
 */
typedef struct {
    char *target;
    DeleteFate fate;
    char *from;                /* DELETE_MERGES: the overlay, which goes; else NULL */
    char *to;                  /* the base */
    char *format;              /* of the base */
    gboolean block;            /* the base is a block device */
    gboolean in_use;           /* both are in the chain of the domain's disk */
    gboolean top;              /* @from is what the domain writes to */
    gboolean merged;           /* as the record says: only names are left to do */
} DeleteDisk;

typedef struct {
    Be *be;
    BeJob *job;                /* borrowed */
    char *uuid;
    char *name;                /* of the snapshot the user means */
    BeDeleteHow how;
    gboolean commit;
    gboolean hidden;           /* the name is not shown meanwhile */

    virDomainPtr domain;
    BePaused *paused;          /* a machine that was off, held for this */
    gboolean recorded;
    gboolean no_return;        /* a disk is merged: the others follow, whoever cancels */
    GPtrArray *disks;          /* of DeleteDisk: of the snapshot under way */
    gboolean begun;            /* what was done to the snapshot cannot be taken back */
    gboolean forgotten;        /* a snapshot is gone: its files may be left */
    gboolean broken_before;    /* an earlier attempt has begun already */
    GArray *stamps;            /* delete_stamps_new(): the images that are written into, before */
    GPtrArray *drops;          /* of char *: its images that go once it is forgotten */
    char *memory;              /* its memory's file, which goes then; or NULL */
} DeletePlan;

DeletePlan *delete_plan_new(Be *be, const char *uuid, const char *name);
void delete_plan_free(gpointer plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DeletePlan, delete_plan_free)

void delete_disk_free(gpointer disk);

/* ---- delete-fate.c ---- */

/**
 * delete_decide: fills plan->disks for an external snapshot.
 * Returns: FALSE with the reason where data could be lost: EOPNOTSUPP, EBUSY, EIO.
 */
gboolean delete_decide(DeletePlan *plan, const BeTree *tree, const BeTreeSnapshot *snapshot,
                       GError **error);

/**
 * delete_is_ours_alone: EBUSY where another domain stands on an image of a merge.
 */
gboolean delete_is_ours_alone(const DeletePlan *plan, const BeTree *tree, const DeleteDisk *disk,
                              GError **error);

/**
 * delete_is_libvirts: whether libvirt's own deletion does all that is to be done, and
 * nothing else.
 */
gboolean delete_is_libvirts(const DeletePlan *plan, const BeTree *tree,
                            const BeTreeSnapshot *snapshot);

/* ---- delete-whole.c ---- */

GArray *delete_stamps_new(void);

/**
 * delete_look: what the images that will be written into are like, and whether the
 * snapshot is whole.
 */
void delete_look(DeletePlan *plan, const char *name);

/**
 * delete_begin: notes the snapshot as broken, before the first byte is written and when
 * the record is there.
 */
gboolean delete_begin(DeletePlan *plan, const char *name, GError **error);

/**
 * delete_take_back: after a failure: where no image was written to the snapshot is whole
 * still, and the note goes.  Else @error says what became of it.
 */
void delete_take_back(DeletePlan *plan, const char *name, GError **error);

/* ---- merge.c ---- */

/**
 * delete_merge: writes disk->from into disk->to, by a block job where the domain has
 * them open.  Shows its progress in `job`; ECANCELED before the point of no return.
 */
gboolean delete_merge(DeletePlan *plan, const DeleteDisk *disk, GError **error);

/**
 * delete_switch: after the merge: whatever names disk->from names disk->to.  Then
 * removes disk->from.  Harmless when repeated.
 */
gboolean delete_switch(DeletePlan *plan, const DeleteDisk *disk, GError **error);

/**
 * delete_stop_job: ends the block job that an earlier process has begun on a disk.
 */
void delete_stop_job(DeletePlan *plan, const char *target);

/* ---- delete-record.c ---- */

gboolean delete_record_write(DeletePlan *plan, const char *name, GError **error);

/**
 * delete_record_end: removes the record; where a merged image is still named somewhere,
 * or a failure has left the snapshot half deleted, it stays for the next start.
 * @good: all was done
 */
void delete_record_end(DeletePlan *plan, gboolean good);

/**
 * delete_settle_pending: finishes what an earlier attempt has merged and not renamed.
 */
gboolean delete_settle_pending(DeletePlan *plan, GError **error);

/* ---- delete.c ---- */

/**
 * delete_one: the external snapshot @name with all that belongs to it; again, where
 * an earlier attempt ended in the middle.
 */
gboolean delete_one(DeletePlan *plan, const char *name, GError **error);

/**
 * delete_clear: removes what held the disks and the memory of a snapshot that is gone.
 */
gboolean delete_clear(DeletePlan *plan, GError **error);

/**
 * delete_let_go: turns a machine off that was started for this.
 */
gboolean delete_let_go(DeletePlan *plan, GError **error);
