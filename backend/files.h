/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files.h - the guest's files inside the backend: who makes and ends them.
 */
#pragma once

#include "backend/private.h"

/**
 * BeFilesPool: what the appliances of one host share: how many may run, where
 * the appliance is kept, whether KVM works.
 */
BeFilesPool *be_files_pool_new(Be *be, guint max, guint idle_seconds);
void be_files_pool_free(BeFilesPool *pool);

/**
 * be_files_pool_stop: ends all appliances, and lets none start any more: whoever
 * waits for one gets EIO.  Blocks until they are gone.
 */
void be_files_pool_stop(BeFilesPool *pool);

/**
 * be_files_print: lines for the mount's `stats`.
 */
void be_files_print(Be *be, GString *out);

/**
 * be_files_new:
 * @name: of the object, for messages: "backup 'tue' of 'web1'"; copied
 * @disks: (element BeDisk): with their streams when the first path is asked for;
 *   borrowed, and there until be_files_close()
 *
 * Starts nothing.  Any thread.
 */
BeFiles *be_files_new(BeFilesPool *pool, const char *name, GPtrArray *disks);

/**
 * BeFilesPrepare: has the streams of the disks made; calls @done once, from inside or
 * later, on any thread.  Called by who asks for a path, before an appliance starts.
 */
typedef void (*BeFilesPrepare)(gpointer user, BeDone done, gpointer done_user);

/**
 * be_files_new_prepared: the same of disks without streams as yet.
 * @disks: (transfer full) (element BeDisk): theirs are set before @done is called
 * @owner: of the disks, for be_files_give_way(); never followed
 * @user: for @prepare; there until be_files_discard()
 */
BeFiles *be_files_new_prepared(BeFilesPool *pool, const char *name, GPtrArray *disks,
                               const char *owner, BeFilesPrepare prepare, gpointer user);
/**
 * be_files_disks: Returns: (transfer none): the disks that it was made with.
 */
GPtrArray *be_files_disks(BeFiles *files);

BeFiles *be_files_ref(BeFiles *files);
void be_files_unref(BeFiles *files);

/**
 * be_files_close: ends the appliance and fails what is asked of it, now and later,
 * with EIO.  Blocks until it is gone, as a rule some milliseconds; on a worker, before
 * the streams are closed.  Harmless when repeated.
 */
void be_files_close(BeFiles *files);

/**
 * be_files_discard: the same without waiting, and gives the reference back: for disks
 * that are its own.  Any thread; NULL is allowed.
 */
void be_files_discard(BeFiles *files);

/**
 * be_files_give_way: ends the appliances of all objects of an owner, whoever uses them
 * (EBUSY), and waits until they are gone.  Blocks, as a rule some milliseconds; workers.
 */
void be_files_give_way(BeFilesPool *pool, const char *owner);
