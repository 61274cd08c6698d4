/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guest.h - the guest's own files, below the row `files` of an object.
 *
 * What is in there is not in the table: rows of the kind FS_KIND_GUEST stand for
 * the directory `files` itself (it has `files` set) and for everything below it.
 * The first level are the names of file systems; stat of these starts nothing.
 *
 * But where said otherwise, each function answers the request it is given
 * (transfer full), now or later, on the appliance's thread.
 */
#pragma once

#include <sys/stat.h>

#include "fs/file.h"
#include "fs/req.h"

void fs_guest_lookup(FsReq *req);
void fs_guest_readlink(FsReq *req);
void fs_guest_opendir(FsReq *req);
void fs_guest_readdir(FsReq *req);
void fs_guest_open(FsReq *req);
void fs_guest_read(FsReq *req);
void fs_guest_lseek(FsReq *req);
void fs_guest_getxattr(FsReq *req, const char *name);
void fs_guest_listxattr(FsReq *req);

/**
 * fs_guest_refuse: whatever would change something: EPERM; what is around it is
 * guarded as after any refused removal or creation.
 */
void fs_guest_refuse(FsReq *req, gboolean removal);

/**
 * fs_guest_attr: the attributes of a node of this kind where they are the
 * guest's.  FALSE for `files` itself and for file systems.  Any thread.
 */
gboolean fs_guest_attr(Fs *fs, const FsNode *node, struct stat *attr);

/**
 * fs_guest_is_certain: whether a node of this kind stays as it is: FALSE for a
 * file system of which nobody knows yet whether it is there.
 */
gboolean fs_guest_is_certain(const FsNode *node);

/**
 * fs_guest_list_free: of FsFile.list.
 */
void fs_guest_list_free(FsGuestList *list);
