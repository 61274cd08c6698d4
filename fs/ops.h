/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * ops.h - the operations of the low-level FUSE interface.
 */
#pragma once

#include "fs/req.h"

extern const struct fuse_lowlevel_ops fs_ops;
