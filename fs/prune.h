/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * prune.h - the domain's verb `prune`: checkpoints that are old enough to go.
 */
#pragma once

#include "fs/def.h"

extern const char *const fs_prune_keys[];

BeJob *fs_prune_run(const FsAct *act, const FsCommand *command, GError **error);
