/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * checkpoint.h - what the rows of domains/<vm>/checkpoints show and do; named by tree.c.
 */
#pragma once

#include "fs/def.h"

FsListing *fs_checkpoints_list(Fs *fs, FsItem *item);
BeJob *fs_checkpoints_make(const FsAct *act, const char *name, GError **error);
char *fs_checkpoints_latest(Fs *fs, FsItem *item);

BeJob *fs_checkpoint_drop(const FsAct *act, GError **error);
void fs_checkpoint_fetch_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
void fs_checkpoint_fetch_domain_xml(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
void fs_checkpoint_fetch_valid(Fs *fs, FsItem *item, BeTextDone done, gpointer user);
FsListing *fs_checkpoint_changed_list(Fs *fs, FsItem *item);
void fs_checkpoint_fetch_changed(Fs *fs, FsItem *item, BeTextDone done, gpointer user);

/**
 * fs_checkpoint_run_create: the domain's verb `checkpoint`.
 */
BeJob *fs_checkpoint_run_create(const FsAct *act, const FsCommand *command, GError **error);

extern const FsVerb fs_checkpoint_verbs[];
