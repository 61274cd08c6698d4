/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * self.h - what the rows of .vmsnapfs show: the mount itself; named by tree.c.
 */
#pragma once

#include "fs/def.h"

gboolean fs_self_show_uri(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_self_show_version(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_self_show_stats(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_self_show_events(Fs *fs, FsItem *item, GString *out, GError **error);
void fs_self_fetch_capabilities(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
