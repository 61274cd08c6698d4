/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * domain.h - what the rows of domains/<vm> show and do; named by tree.c.
 */
#pragma once

#include "fs/def.h"

FsListing *fs_domains_list(Fs *fs, FsItem *item);

/**
 * fs_domains_fresh: the inventory: which domains there are, and their states.
 */
extern const FsFresh fs_domains_fresh;

gboolean fs_domain_show_uuid(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_domain_show_id(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_domain_show_state(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_item_show_failures(Fs *fs, FsItem *item, GString *out, GError **error);
void fs_domain_fetch_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
void fs_domain_fetch_job(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
void fs_domain_xattrs(FsItem *item, FsXattrAdd add, gpointer user);

extern const FsVerb fs_domain_verbs[];
