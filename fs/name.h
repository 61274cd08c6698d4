/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * name.h - libvirt's names as file names and back; inode numbers.
 *
 * A libvirt name is any C string.  Its file name is the same bytes, except that
 * what cannot be in a file name or would hurt there is %XX with upper-case
 * digits: '/', '%', control bytes, a leading '.', a trailing ' ' and every byte
 * that is not part of a valid UTF-8 character.  The empty name is "%00", which
 * no other name can become.  Each name has exactly one spelling (design.md
 * section 5; faults.md 21 to 29).
 *
 * Pure functions: any thread.
 */
#pragma once

#include "backend.h"

enum {
    FS_NAME_MAX = 255,         /* NAME_MAX of Linux */
    FS_NAME_NEW_MAX = 251,     /* libvirt keeps NAME.xml in a directory */
};

/**
 * fs_name_encode:
 * @name: a name that exists in libvirt
 * @identity: what tells this object from any other of its directory, as its
 *   UUID: letters, digits and '-', at most 64 bytes; NULL: a hash of the name
 *
 * Returns: the file name, to be freed with g_free(): never empty, "." or "..",
 * never with a '/', valid UTF-8, at most FS_NAME_MAX bytes.  A longer one is
 * cut to "PREFIX%~IDENTITY", which no other name can become and fs_name_decode()
 * refuses: such objects are found by comparing.
 */
char *fs_name_encode(const char *name, const char *identity);

/**
 * fs_name_decode: the exact inverse of fs_name_encode().
 *
 * Returns: the libvirt name, to be freed with g_free(); NULL: EINVAL for
 * everything that fs_name_encode() does not give, and for shortened names.
 */
char *fs_name_decode(const char *file_name, GError **error);

/**
 * fs_name_check_new: whether we make an object of that name.  Only names that
 * are their own spelling are made; such a name needs no decoding.
 *
 * Returns: FALSE: EINVAL for a name that is empty, has a '/', '%' or control
 * character, a leading '.' or a trailing ' ', cannot be in XML, or is one of the
 * links of the tree; EILSEQ when it is not UTF-8; ENAMETOOLONG over
 * FS_NAME_NEW_MAX bytes.
 */
gboolean fs_name_check_new(const char *file_name, GError **error);

/**
 * fs_name_inode:
 * @parts: what identifies an object (kind, domain UUID, name, time of creation),
 *   NULL-terminated
 *
 * Returns: a number for st_ino: the same for the same parts in every mount and
 * version, never 0 or 1.
 */
guint64 fs_name_inode(const char *const *parts);
