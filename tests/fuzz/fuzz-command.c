/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-command.c - libFuzzer target: control lines of any bytes.
 */
#include <stddef.h>
#include <stdint.h>

#include "fs/command.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static BeJob *run(const FsAct *act G_GNUC_UNUSED, const FsCommand *command G_GNUC_UNUSED,
                  GError **error G_GNUC_UNUSED)
{
    return NULL;
}

static const char *const keys[] = {"only", "to", NULL};

static const FsVerb verbs[] = {
    {"go", 0, 0, NULL, "go", run},
    {"make", 1, 3, keys, "make NAME...", run},
    {NULL, 0, 0, NULL, NULL, NULL},
};

static void check_command(const FsVerb *verb, const FsCommand *command)
{
    GHashTableIter iter;
    gpointer key;

    g_assert_cmpuint(command->words->len, >=, verb->min_words);
    g_assert_cmpuint(command->words->len, <=, verb->max_words);
    for (guint i = 0; i < command->words->len; i++) {
        g_assert_true(g_utf8_validate(g_ptr_array_index(command->words, i), -1, NULL));
    }
    g_hash_table_iter_init(&iter, command->options);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        g_assert_true(verb->keys && g_strv_contains(verb->keys, key));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const FsVerb *verb = NULL;
    g_autoptr(FsCommand) command = NULL;
    g_autoptr(GError) error = NULL;

    if (!fs_command_parse((const char *)data, size, verbs, &verb, &command, &error)) {
        g_assert_nonnull(error);
        g_assert_cmpint(error->code, >, 0);
        g_assert_null(command);
    } else {
        g_assert_no_error(error);
        g_assert_true((verb != NULL) == (command != NULL));
        if (command) {
            check_command(verb, command);
        }
    }
    return 0;
}
