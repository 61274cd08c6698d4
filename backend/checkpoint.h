/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkpoint.h - libvirt's checkpoints: what there is, and how one goes.
 *
 * libvirt 9.0 keeps one enabled bitmap for each checkpoint and disk, which has
 * all changes since; so one can go without the others noticing.  Everything
 * here blocks as libvirt does; workers.
 */
#pragma once

#include "backend/backend-checkpoint.h"
#include "backend/private.h"
#include "backend/xml.h"

/* libvirt keeps NAME.xml in a directory. */
#define BE_CHECKPOINT_NAME_MAX 251

/**
 * be_checkpoint_check_name: whether libvirt 9.0 makes a checkpoint of that name: its
 * schema allows letters, digits and "_-.", not first a dot.
 * Returns: FALSE: EINVAL, ENAMETOOLONG.
 */
gboolean be_checkpoint_check_name(const char *name, GError **error);

/**
 * be_checkpoint_name_like: @name with a '_' for each byte that cannot be in one.
 */
char *be_checkpoint_name_like(const char *name);

/**
 * be_checkpoint_read: Returns: the checkpoint, to be freed with
 * be_xml_checkpoint_free(); NULL: ENOENT, EHOSTUNREACH...
 */
BeXmlCheckpoint *be_checkpoint_read(virDomainPtr domain, const char *name, GError **error);

/**
 * be_checkpoint_read_same: the XML of @checkpoint, if it is still the one that is
 * meant: libvirt knows names only, and a name comes back.
 * @flags: of virDomainCheckpointGetXMLDesc()
 * @ret_parsed: (optional)
 *
 * Returns: to be freed with g_free(); NULL: ENOENT...
 */
char *be_checkpoint_read_same(virDomainPtr domain, const BeCheckpoint *checkpoint, unsigned flags,
                              BeXmlCheckpoint **ret_parsed, GError **error);

/**
 * be_checkpoint_why_no_bitmap: why a disk can hold no checkpoint, in words that
 * follow "disk 'vda'"; to be freed with g_free().  NULL: it can.
 */
char *be_checkpoint_why_no_bitmap(const BeXmlDisk *disk);

/**
 * be_checkpoint_remove: removes a checkpoint with all its bitmaps, also one of
 * which some bitmaps are missing or broken.  Of a domain that is off, out of its
 * images (qemu-img(1) bitmap --remove).
 *
 * Returns: TRUE also where there is none; FALSE: EBUSY (the domain was started
 * meanwhile), EOPNOTSUPP (off, and an image that we do not write to)...
 */
gboolean be_checkpoint_remove(Be *be, virDomainPtr domain, const char *name, GError **error);

/**
 * be_checkpoints_load: the records of what an earlier process was making or deleting
 * when it died, of no backup.  Before the first action.
 * be_checkpoints_recover: settles them, as far as the host answers: what was made is
 * kept, what was being deleted is deleted; takes those out of @records.  Query worker.
 */
GPtrArray *be_checkpoints_load(Be *be);
void be_checkpoints_recover(Be *be, GPtrArray *records);

/**
 * be_checkpoint_forget: only what libvirt knows of it: its bitmaps stay.
 */
gboolean be_checkpoint_forget(virDomainPtr domain, const char *name, GError **error);
