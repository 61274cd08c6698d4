/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * chain.h - what a backup starts from, and the checkpoint that it leaves.
 *
 * A chain is the backups of a domain that stand on one another.  Its base is the
 * newest checkpoint of it that is valid and whose backup was taken: somebody has
 * a whole copy.  A checkpoint of a backup that nobody has is removed again, for
 * the next increment would stand on nothing.
 */
#pragma once

#include "backend/backup.h"

/**
 * backup_chain_refuse: of a backup that can only be full and leaves no checkpoint.
 * Returns: FALSE: EOPNOTSUPP when more was asked for.
 */
gboolean backup_chain_refuse(const BackupPlan *plan, GError **error);

/**
 * backup_chain_xml: the XML of the checkpoint for virDomainBackupBegin(), to be
 * freed with g_free(); NULL with @error.  Only where there is one.
 */
char *backup_chain_xml(const BackupPlan *plan, GError **error);

/**
 * backup_chain_step_plan: finds the base of a backup that is about to begin and the
 * name and disks of its checkpoint; fills `chain`, `since`, `base` and `checkpoint` of
 * plan->backup, `has_base` of its disks, plan->marked; writes the journal and the
 * record of the checkpoint.  Blocks; action worker, with the machine running, after
 * the disks were measured.
 *
 * Returns: FALSE: ENOENT (no such checkpoint), EUCLEAN (it cannot be trusted, and
 * was asked for by name), EEXIST (somebody else's checkpoint has the name),
 * EOPNOTSUPP (no disk can hold one, and one was asked for by name)...
 */
gboolean backup_chain_step_plan(gpointer work, GError **error);
void backup_chain_undo_plan(gpointer work);

/**
 * backup_chain_step_confirm: after it began: EUCLEAN: the base does not tell the
 * truth, and is marked, so that planning again passes it over.
 */
gboolean backup_chain_step_confirm(gpointer work, GError **error);

/**
 * backup_chain_was_taken: whether one image of each disk was read to its end.
 * @ret_why: why not, to be freed with g_free()
 */
gboolean backup_chain_was_taken(const Backup *backup, char **ret_why);

/**
 * backup_chain_settle: does to the checkpoint of an ended backup what its fate
 * says (undecided: it goes).  Blocks; workers.  Twice is harmless.
 *
 * Returns: FALSE when that cannot be done now and is to be tried again.
 */
gboolean backup_chain_settle(Backup *backup, GError **error);
