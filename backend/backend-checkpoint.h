/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backend-checkpoint.h - the part of backend.h about checkpoints: since when
 * libvirt knows what has changed on the disks of a domain.
 *
 * To be had by including backend.h, whose rules on threads and errors hold here.
 */
#pragma once

#include "backend/backend-objects.h"

/**
 * BeCheckpoint: one checkpoint of a domain, as libvirt describes it; immutable.
 */
typedef struct {
    BeObject object;           /* first: a BeObject of the kind BE_CHECKPOINTS is one of these */
    char **targets;            /* of the disks that have a bitmap of it, NULL-terminated */
} BeCheckpoint;

/**
 * be_checkpoint_xml_fetch, be_checkpoint_domain_xml_fetch: the checkpoint's XML as
 * `virsh checkpoint-dumpxml` prints it, and the <domain> in it.  Query jobs.
 * ENOENT, also when another checkpoint has that name now; EHOSTUNREACH, ETIMEDOUT.
 */
void be_checkpoint_xml_fetch(Be *be, BeCheckpoint *checkpoint, BeTextDone done, gpointer user);
void be_checkpoint_domain_xml_fetch(Be *be, BeCheckpoint *checkpoint, BeTextDone done,
                                    gpointer user);

/**
 * be_checkpoint_valid_fetch: "yes", or why an incremental backup cannot start from
 * it.  Query job; errors as above.
 */
void be_checkpoint_valid_fetch(Be *be, BeCheckpoint *checkpoint, BeTextDone done, gpointer user);

/**
 * be_checkpoint_changed_fetch: how many bytes of a disk were written to since, as
 * text; "unknown" where nobody can say now: the domain is off, a job runs in it, the
 * bitmap is broken.  Query job; errors as above.
 * (libvirt: VIR_DOMAIN_CHECKPOINT_XML_SIZE)
 */
void be_checkpoint_changed_fetch(Be *be, BeCheckpoint *checkpoint, const char *target,
                                 BeTextDone done, gpointer user);

typedef struct {
    const char *const *only;   /* targets, NULL-terminated, or NULL: all that can hold one */
    const char *description;   /* or NULL */
    BeQuiesce quiesce;
} BeCheckpointOptions;

/**
 * be_checkpoint_create: a checkpoint of a running domain that belongs to no backup.
 * @options: copied; NULL: defaults
 *
 * EINVAL (a name that libvirt does not take), EEXIST, EOPNOTSUPP (the domain is off,
 * no disk can hold one), EBUSY at once when a job is in the way, ENOENT, EROFS...
 * (libvirt: virDomainCheckpointCreateXML)
 */
BeJob *be_checkpoint_create(Be *be, const char *uuid, const char *name,
                            const BeCheckpointOptions *options, const BeCaller *caller,
                            BeDone done, gpointer user);

typedef enum {
    BE_CHECKPOINT_ALONE,       /* what changed since it counts to its parent, as before */
    BE_CHECKPOINT_CHILDREN,    /* it and all that were made after it */
    BE_CHECKPOINT_METADATA,    /* libvirt forgets it; its bitmaps stay in the images */
} BeCheckpointRemoval;

/**
 * be_checkpoint_delete: also one whose bitmaps are broken or missing, and of a
 * domain that is off.
 *
 * EPERM for one that another program made; EBUSY at once when a job is in the way;
 * ENOENT, EROFS...  (libvirt: virDomainCheckpointDelete; QEMU: qemu-img bitmap)
 */
BeJob *be_checkpoint_delete(Be *be, BeCheckpoint *checkpoint, BeCheckpointRemoval how,
                            BeDone done, gpointer user);

/**
 * BePrune: which checkpoints of a domain stay; see be_retention_plan(), whose days are
 * those of the host's time zone.
 */
typedef struct {
    guint last;
    guint daily;
    guint weekly;
    guint monthly;
    const char *chain;         /* only of this chain; NULL: of all */
    gboolean dry_run;          /* only tell */
} BePrune;

/**
 * be_domain_prune: removes checkpoints that backups of ours have left and that no rule
 * keeps, oldest first; never the base of a chain, one that a backup uses, or (but for
 * root) somebody else's.
 * @done: gets a line for each: "keep NAME (chain C): WHY", "remove NAME (chain C)"
 *
 * EINVAL (no rule), EBUSY at once when a job is in the way, EROFS, ENOENT...  What was
 * removed before a failure stays removed.
 */
BeJob *be_domain_prune(Be *be, const char *uuid, const BePrune *prune, const BeCaller *caller,
                       BeTextDone done, gpointer user);
