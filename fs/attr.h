/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * attr.h - what stat(2) says of a node.
 */
#pragma once

#include <sys/stat.h>

#include "fs/private.h"

/**
 * fs_attr_fill: the attributes that are known without waiting.  The size of a
 * text is the caller's to set: it is made for getattr alone.
 */
void fs_attr_fill(Fs *fs, const FsNode *node, struct stat *attr);

/**
 * fs_attr_set_size: st_size and the st_blocks of a file without holes.
 */
void fs_attr_set_size(struct stat *attr, guint64 size);

/**
 * fs_attr_timeout, fs_entry_timeout: seconds for which the kernel may keep an
 * answer.  What can vanish or must be fresh is never kept: walking a path then
 * asks us for each component, which costs some microseconds.
 */
double fs_attr_timeout(const FsNode *node);
double fs_entry_timeout(const FsNode *node);
