/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * prune.c - the domain's verb `prune`; see prune.h.
 */
#include "fs/prune.h"

#include <errno.h>

/* More than anybody keeps; it only bounds the number. */
#define KEEP_MAX 100000

const char *const fs_prune_keys[] = {"keep-last",  "keep-daily", "keep-weekly", "keep-monthly",
                                     "chain",      NULL};

typedef struct {
    const FsCommand *command;  /* lives until `done` was called */
    BeDone done;
    gpointer user;
} Prune;

static void pruned(const char *text, const GError *error, gpointer user)
{
    Prune *prune = user;

    if (text && *text) {
        fs_command_answer(prune->command, g_strdup(text));
    }
    prune->done(error, prune->user);
    g_free(prune);
}

static gboolean take_number(const FsCommand *command, const char *key, guint *ret, GError **error)
{
    const char *text = g_hash_table_lookup(command->options, key);
    guint64 number = 0;

    if (text && !g_ascii_string_to_unsigned(text, 10, 1, KEEP_MAX, &number, NULL)) {
        g_set_error(error, BE_ERROR, EINVAL, "%s is a number from 1 to %d", key, KEEP_MAX);
        return FALSE;
    }
    *ret = (guint)number;
    return TRUE;
}

static gboolean take_words(const FsCommand *command, BePrune *prune, GError **error)
{
    const char *word = command->words->len > 0 ? g_ptr_array_index(command->words, 0) : NULL;

    if (word && !g_str_equal(word, "dry-run")) {
        g_set_error(error, BE_ERROR, EINVAL, "'%s' is no word of prune; 'dry-run' is", word);
        return FALSE;
    }
    prune->dry_run = word != NULL;
    prune->chain = g_hash_table_lookup(command->options, "chain");
    return TRUE;
}

BeJob *fs_prune_run(const FsAct *act, const FsCommand *command, GError **error)
{
    BePrune prune = {.chain = NULL};
    Prune *data;

    if (!take_words(command, &prune, error)
        || !take_number(command, "keep-last", &prune.last, error)
        || !take_number(command, "keep-daily", &prune.daily, error)
        || !take_number(command, "keep-weekly", &prune.weekly, error)
        || !take_number(command, "keep-monthly", &prune.monthly, error)) {
        return NULL;
    }
    data = g_new(Prune, 1);
    *data = (Prune){command, act->done, act->user};
    return be_domain_prune(act->be, act->item->id, &prune, act->caller, pruned, data);
}
