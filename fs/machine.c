/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * machine.c - the verbs of a domain's control about its disks and memory; see def.h
 * for what each function is.  Any thread.
 */
#include "fs/machine.h"

#include <errno.h>

#include "fs/private.h"

const char *const fs_copy_keys[] = {"to", "format", NULL};
const char *const fs_save_keys[] = {"to", NULL};
const char *const fs_restore_keys[] = {"from", NULL};
const char *const fs_commit_keys[] = {"base", "top", NULL};

static BeJob *block(const FsAct *act, const FsCommand *command, BeBlockRequest *request)
{
    request->target = g_ptr_array_index(command->words, 0);
    *act->ret_slow = TRUE;
    return be_domain_block(act->be, act->item->id, request, act->done, act->user);
}

BeJob *fs_machine_run_copy(const FsAct *act, const FsCommand *command, GError **error)
{
    BeBlockRequest request = {.kind = BE_BLOCK_COPY,
                              .to = g_hash_table_lookup(command->options, "to"),
                              .format = g_hash_table_lookup(command->options, "format")};

    if (!request.to) {
        g_set_error(error, BE_ERROR, EINVAL, "copy where? to=PATH is missing");
        return NULL;
    }
    return block(act, command, &request);
}

BeJob *fs_machine_run_pull(const FsAct *act, const FsCommand *command,
                           GError **error G_GNUC_UNUSED)
{
    BeBlockRequest request = {.kind = BE_BLOCK_PULL};

    return block(act, command, &request);
}

BeJob *fs_machine_run_commit(const FsAct *act, const FsCommand *command,
                             GError **error G_GNUC_UNUSED)
{
    BeBlockRequest request = {.kind = BE_BLOCK_COMMIT,
                              .base = g_hash_table_lookup(command->options, "base"),
                              .top = g_hash_table_lookup(command->options, "top")};

    return block(act, command, &request);
}

BeJob *fs_machine_run_save(const FsAct *act, const FsCommand *command,
                           GError **error G_GNUC_UNUSED)
{
    *act->ret_slow = TRUE;
    return be_domain_save(act->be, act->item->id, g_hash_table_lookup(command->options, "to"),
                          act->done, act->user);
}

BeJob *fs_machine_run_restore(const FsAct *act, const FsCommand *command, GError **error)
{
    const char *from = g_hash_table_lookup(command->options, "from");
    const char *word = command->words->len > 0 ? g_ptr_array_index(command->words, 0) : NULL;

    if (!from || (word && !g_str_equal(word, "force"))) {
        g_set_error(error, BE_ERROR, EINVAL, "usage: restore from=PATH [force]");
        return NULL;
    }
    *act->ret_slow = TRUE;
    return be_domain_restore(act->be, act->item->id, from, word != NULL, act->done, act->user);
}

BeJob *fs_machine_run_start(const FsAct *act, const FsCommand *command G_GNUC_UNUSED,
                            GError **error G_GNUC_UNUSED)
{
    *act->ret_slow = TRUE;
    return be_domain_start(act->be, act->item->id, act->done, act->user);
}
