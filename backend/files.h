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
BeFiles *be_files_ref(BeFiles *files);
void be_files_unref(BeFiles *files);

/**
 * be_files_close: ends the appliance and fails what is asked of it, now and later,
 * with EIO.  Blocks until it is gone, as a rule some milliseconds; on a worker, before
 * the streams are closed.  Harmless when repeated.
 */
void be_files_close(BeFiles *files);
