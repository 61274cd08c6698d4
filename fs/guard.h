/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guard.h - nothing is deleted, and nothing made, by accident.
 *
 * `rm -r` stops at the first file it may not remove; shutil.rmtree with
 * ignore_errors, `find -depth -type d -delete` and others go on to the rmdir.
 * So a refused removal arms what it meant: for 10 s an rmdir there is refused.
 * In the same way a refused create (somebody copies a tree in) refuses mkdir.
 */
#pragma once

#include "fs/item.h"

typedef struct FsGuard FsGuard;

FsGuard *fs_guard_new(void);
void fs_guard_free(FsGuard *guard);

/**
 * fs_guard_removal_refused: an unlink or rmdir was refused at a place that
 * belongs to @item: arms the object, everything below it, and the objects
 * above it.
 * @item: (nullable): above all objects; arms everything
 */
void fs_guard_removal_refused(FsGuard *guard, FsItem *item);

/**
 * fs_guard_creation_refused: a create was refused in @item, or in a collection
 * that belongs to it.
 * @item: (nullable): above all objects there is no collection; nothing is armed
 */
void fs_guard_creation_refused(FsGuard *guard, FsItem *item);

/**
 * fs_guard_check_removal, fs_guard_check_creation: Returns: seconds for which
 * the removal of @item, the creation of something in @item's collections, is
 * still refused; 0 when it is not.
 */
guint fs_guard_check_removal(FsGuard *guard, FsItem *item);
guint fs_guard_check_creation(FsGuard *guard, FsItem *item);
