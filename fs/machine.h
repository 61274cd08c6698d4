/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * machine.h - the verbs of a domain's control about its disks and memory.
 */
#pragma once

#include "fs/def.h"

extern const char *const fs_copy_keys[];
extern const char *const fs_commit_keys[];

extern const char *const fs_save_keys[];
extern const char *const fs_restore_keys[];

BeJob *fs_machine_run_copy(const FsAct *act, const FsCommand *command, GError **error);
BeJob *fs_machine_run_pull(const FsAct *act, const FsCommand *command, GError **error);
BeJob *fs_machine_run_commit(const FsAct *act, const FsCommand *command, GError **error);
BeJob *fs_machine_run_save(const FsAct *act, const FsCommand *command, GError **error);
BeJob *fs_machine_run_restore(const FsAct *act, const FsCommand *command, GError **error);
BeJob *fs_machine_run_start(const FsAct *act, const FsCommand *command, GError **error);
