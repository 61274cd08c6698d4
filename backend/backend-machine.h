/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backend-machine.h - the part of backend.h about what is done with a machine as a
 * whole: block jobs on its disks, its memory saved and restored.
 *
 * To be had by including backend.h, whose rules on threads and errors hold here.
 */
#pragma once

#include "backend/backend.h"

typedef enum {
    BE_BLOCK_COPY,             /* the disk goes on on a new, stand-alone image */
    BE_BLOCK_PULL,             /* what is below the active image is copied into it */
    BE_BLOCK_COMMIT,           /* images are merged down into one below them */
} BeBlockKind;

/**
 * BeBlockRequest: the strings belong to the caller and are copied.
 */
typedef struct {
    BeBlockKind kind;
    const char *target;        /* "vda" */
    const char *to;            /* COPY: absolute path of an image that does not exist yet */
    const char *format;        /* COPY: "qcow2", "raw"; NULL: that of the active image */
    const char *base;          /* COMMIT: path of an image of the chain; NULL: the lowest */
    const char *top;           /* COMMIT: the highest that is merged; NULL: the active image */
} BeBlockRequest;

/**
 * be_domain_block: a block job on one disk of an active machine, to its end.
 *
 * Cancelled, it is aborted, and the machine goes on on the images it had; the image
 * that a copy had begun is removed.  When this program ends or dies meanwhile the
 * job goes on in QEMU, and the next start sees it to its end.
 *
 * ENOENT, EINVAL (not active, no such disk, nothing to pull or commit, a path that
 * is not absolute or not of the chain), EEXIST (@to), ENOSPC, EBUSY (another job or
 * backup; a snapshot needs the images; another machine uses them), EOPNOTSUPP
 * (formats, sources, a remote host), ECANCELED, EIO (QEMU failed).
 * (libvirt: virDomainBlockCopy, virDomainBlockPull, virDomainBlockCommit)
 */
BeJob *be_domain_block(Be *be, const char *uuid, const BeBlockRequest *request, BeDone done,
                       gpointer user);

/**
 * be_domain_save: saves the memory of an active machine, which is off then.
 * @to: absolute path of a file that does not exist; NULL: libvirt's own place, from
 *   which the next start takes it (managed save)
 *
 * Cancelled, it is given up, and the guest runs on; where the memory was complete
 * by then the job succeeds, and the machine is off.
 * EINVAL (not active, a bad path), EEXIST, EBUSY (a job or backup, our freeze, held),
 * EOPNOTSUPP, ENOSPC, ECANCELED.  (libvirt: virDomainSaveFlags, virDomainManagedSave)
 */
BeJob *be_domain_save(Be *be, const char *uuid, const char *to, BeDone done, gpointer user);

/**
 * be_domain_restore: starts a machine that is off from a file that be_domain_save()
 * or `virsh save` has made, and thaws it in case it was saved frozen.
 * @force: also where a disk has been written to since
 *
 * EINVAL (active, a bad path, another machine's memory), ENOENT, EBUSY (as above, or a
 * managed save image), EUCLEAN (the disks are not as they were then).
 * (libvirt: virDomainRestoreFlags)
 */
BeJob *be_domain_restore(Be *be, const char *uuid, const char *from, gboolean force, BeDone done,
                         gpointer user);

/**
 * be_domain_start: starts a machine that is off; thaws it if it came from a managed
 * save image.  EINVAL (active), EBUSY.  (libvirt: virDomainCreate)
 */
BeJob *be_domain_start(Be *be, const char *uuid, BeDone done, gpointer user);
