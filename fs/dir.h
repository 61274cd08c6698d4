/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * dir.h - directories: finding, listing, making and removing children.
 *
 * Each function answers the request it is given (transfer full), now or later.
 */
#pragma once

#include "fs/req.h"

void fs_dir_lookup(FsReq *req);
void fs_dir_open(FsReq *req);
void fs_dir_read(FsReq *req);
void fs_dir_mkdir(FsReq *req);
void fs_dir_rmdir(FsReq *req);

/**
 * fs_dir_refuse_removal: unlink, and rmdir of what is no object: EPERM, and
 * the objects around it are armed.
 */
void fs_dir_refuse_removal(FsReq *req);

/**
 * fs_dir_refuse_creation: create, mknod, symlink, link: EPERM, and mkdir in
 * the collections around it is refused for a while.
 */
void fs_dir_refuse_creation(FsReq *req);

void fs_dir_rename(FsReq *req);

/**
 * fs_dir_item_unused: what keeps the data of an object in use, as a failure
 * EBUSY, or TRUE when nothing does.
 * @force: (nullable): the command that ends it all the same, for the message
 */
gboolean fs_dir_item_unused(Fs *fs, FsItem *item, const char *force, GError **error);

/**
 * fs_dir_may_end: whether @caller may end an object: its owner and root may.
 * EPERM.
 */
gboolean fs_dir_may_end(Fs *fs, FsItem *item, const BeCaller *caller, GError **error);
