/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guest-link.h - where a link of a guest leads, without leaving its tree.
 *
 * Pure functions: any thread.
 */
#pragma once

#include <glib.h>

/**
 * fs_guest_link: the text that a link gets in the mount.
 * @target: what the guest says
 * @depth: how many directories the link lies below the root of its tree
 * @plain: each ".." in it stands behind directories, not behind links
 *
 * The result begins with at most @depth times ".." and has none after that, so
 * that no row of such links ever leaves the tree, whatever each name leads to.
 * An absolute text begins at the root of the tree; its first ".." stay there.
 *
 * Returns: the text, to free with g_free(); NULL: EPERM: it leads out of the
 * tree, or nobody can say without following other links.
 */
char *fs_guest_link(const char *target, guint depth, gboolean plain);
