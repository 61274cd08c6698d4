/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * snapshot.h - what the rows of domains/<vm>/snapshots show and do; named by tree.c.
 */
#pragma once

#include "fs/def.h"

FsListing *fs_snapshots_list(Fs *fs, FsItem *item);
char *fs_snapshots_current(Fs *fs, FsItem *item);
BeJob *fs_snapshots_make(const FsAct *act, const char *name, GError **error);

/**
 * fs_snapshot_run_create: the domain's verb `snapshot`, and the options it takes.
 */
BeJob *fs_snapshot_run_create(const FsAct *act, const FsCommand *command, GError **error);
extern const char *const fs_snapshot_keys[];

gboolean fs_snapshot_show_state(Fs *fs, FsItem *item, GString *out, GError **error);
void fs_snapshot_fetch_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
void fs_snapshot_fetch_domain_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user);

FsListing *fs_snapshot_disks_list(Fs *fs, FsItem *item);
BeStream *fs_snapshot_disk_stream(FsItem *item);
void fs_snapshot_disk_prepare(FsItem *item, BeDone done, gpointer user);
void fs_snapshot_disk_xattrs(FsItem *item, FsXattrAdd add, gpointer user);
FsListing *fs_snapshot_full_list(Fs *fs, FsItem *item);
BeStream *fs_snapshot_full_stream(FsItem *item);
void fs_snapshot_full_prepare(FsItem *item, BeDone done, gpointer user);
FsListing *fs_snapshot_maps_list(Fs *fs, FsItem *item);
void fs_snapshot_fetch_map(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
gboolean fs_snapshot_has_memory(FsItem *item);
BeStream *fs_snapshot_memory_stream(FsItem *item);
void fs_snapshot_memory_prepare(FsItem *item, BeDone done, gpointer user);
BeFiles *fs_snapshot_files(FsItem *item);
void fs_snapshot_xattrs(FsItem *item, FsXattrAdd add, gpointer user);

BeJob *fs_snapshot_drop(const FsAct *act, GError **error);
extern const FsVerb fs_snapshot_verbs[];
