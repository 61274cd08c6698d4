/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * xattr.h - extended attributes: the constants of objects, "user.vmsnapfs.*".
 *
 * Each function answers its request (transfer full); req->size is the room
 * that the caller has, 0: it asks for the size.
 */
#pragma once

#include "fs/req.h"

/**
 * fs_xattr_get: the value of @name; ENODATA, ERANGE, EOPNOTSUPP outside "user.".
 */
void fs_xattr_get(FsReq *req, const char *name);

/**
 * fs_xattr_list: the names; ERANGE.
 */
void fs_xattr_list(FsReq *req);

/**
 * fs_xattr_reply: answers with a value or a list of names, or with its size;
 * ERANGE.  The request stays the caller's.
 */
void fs_xattr_reply(FsReq *req, const void *data, gsize size);
