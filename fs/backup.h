/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup.h - what the rows of domains/<vm>/backups show and do; named by tree.c.
 */
#pragma once

#include "fs/def.h"

/* Ends a backup under its readers. */
#define FS_BACKUP_FORCE "end force"

FsListing *fs_backups_list(Fs *fs, FsItem *item);
BeJob *fs_backups_make(const FsAct *act, const char *name, GError **error);
BeJob *fs_backup_drop(const FsAct *act, GError **error);
char *fs_backups_latest(Fs *fs, FsItem *item);

gboolean fs_backup_show_created(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_state(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_since(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_checkpoint(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_chain(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_consistency(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_backup_xml(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_domain_xml(Fs *fs, FsItem *item, GString *out, GError **error);
gboolean fs_backup_show_job(Fs *fs, FsItem *item, GString *out, GError **error);
void fs_backup_fetch_boot_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
BeStream *fs_backup_nvram_stream(FsItem *item);
BeStream *fs_backup_tpm_stream(FsItem *item);
BeStream *fs_backup_kernel_stream(FsItem *item);
BeStream *fs_backup_initrd_stream(FsItem *item);
void fs_backup_xattrs(FsItem *item, FsXattrAdd add, gpointer user);

FsListing *fs_backup_disks_list(Fs *fs, FsItem *item);
BeStream *fs_backup_disk_stream(FsItem *item);
void fs_backup_disk_xattrs(FsItem *item, FsXattrAdd add, gpointer user);
FsListing *fs_backup_full_list(Fs *fs, FsItem *item);
BeStream *fs_backup_full_stream(FsItem *item);
void fs_backup_full_prepare(FsItem *item, BeDone done, gpointer user);
FsListing *fs_backup_incremental_list(Fs *fs, FsItem *item);
BeStream *fs_backup_incremental_stream(FsItem *item);
void fs_backup_incremental_prepare(FsItem *item, BeDone done, gpointer user);
void fs_backup_increment_xattrs(FsItem *item, FsXattrAdd add, gpointer user);
FsListing *fs_backup_maps_list(Fs *fs, FsItem *item);
void fs_backup_fetch_map(Fs *fs, FsItem *item, BeTextDone done, gpointer user);

/**
 * fs_backup_run_begin: the domain's verb `backup`.
 */
BeJob *fs_backup_run_begin(const FsAct *act, const FsCommand *command, GError **error);

extern const FsVerb fs_backup_verbs[];

/* GUEST */
BeFiles *fs_backup_files(FsItem *item);
