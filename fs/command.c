/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * command.c - parses control lines; see command.h.  Pure functions, fuzzed; any thread.
 */
#include "fs/command.h"

#include <errno.h>
#include <string.h>

/* Of its own, because a command is constant while it runs. */
struct FsAnswer {
    char *text;                /* atomic; set once */
};

void fs_command_free(FsCommand *command)
{
    if (!command) {
        return;
    }
    g_ptr_array_unref(command->words);
    g_hash_table_unref(command->options);
    if (command->answer) {
        g_free(command->answer->text);
    }
    g_free(command->answer);
    g_free(command);
}

void fs_command_answer(const FsCommand *command, char *text)
{
    if (!g_atomic_pointer_compare_and_exchange(&command->answer->text, NULL, text)) {
        g_free(text);
    }
}

const char *fs_command_text(const FsCommand *command)
{
    return g_atomic_pointer_get(&command->answer->text);
}

void fs_command_usage(const FsVerb *verbs, GString *out)
{
    for (; verbs->name; verbs++) {
        g_string_append_printf(out, "%s\n", verbs->usage);
    }
}

static const FsVerb *find_verb(const FsVerb *verbs, const char *name, GError **error)
{
    g_autoptr(GString) names = g_string_new(NULL);

    for (const FsVerb *verb = verbs; verb->name; verb++) {
        if (g_str_equal(verb->name, name)) {
            return verb;
        }
        g_string_append_printf(names, "%s%s", names->len ? ", " : "", verb->name);
    }
    g_set_error(error, BE_ERROR, EINVAL, "'%s' is no command here; allowed: %s", name, names->str);
    return NULL;
}

/* The line without its end; NULL with @error for what cannot be one. */
static char *line_of(const char *data, gsize size, GError **error)
{
    g_autofree char *line = NULL;

    if (size > FS_COMMAND_MAX) {
        g_set_error(error, BE_ERROR, EFBIG, "a command has at most %d bytes", FS_COMMAND_MAX);
        return NULL;
    }
    if (memchr(data, '\0', size)) {
        g_set_error(error, BE_ERROR, EINVAL, "a command has no NUL byte");
        return NULL;
    }
    line = g_strndup(data, size);
    if (size > 0 && line[size - 1] == '\n') {
        line[--size] = '\0';
    }
    if (size > 0 && line[size - 1] == '\r') {
        line[--size] = '\0';
    }
    if (!g_utf8_validate(line, -1, NULL)) {
        g_set_error(error, BE_ERROR, EILSEQ, "a command is UTF-8 text");
        return NULL;
    }
    if (strpbrk(line, "\n\r")) {
        g_set_error(error, BE_ERROR, EINVAL, "one write is one command of one line");
        return NULL;
    }
    return g_steal_pointer(&line);
}

static gboolean key_allowed(const FsVerb *verb, const char *key)
{
    return verb->keys && g_strv_contains(verb->keys, key);
}

/*
 * An option is what begins with a key of the verb and '='; a word with any
 * other '=' is a name that has one.
 */
static gboolean take_word(const FsVerb *verb, const char *word, FsCommand *command, GError **error)
{
    const char *equals = strchr(word, '=');
    g_autofree char *key = equals ? g_strndup(word, (gsize)(equals - word)) : NULL;

    if (!key || !key_allowed(verb, key)) {
        g_ptr_array_add(command->words, g_strdup(word));
        return TRUE;
    }
    if (g_hash_table_contains(command->options, key)) {
        g_set_error(error, BE_ERROR, EINVAL, "'%s' is given twice; usage: %s", key, verb->usage);
        return FALSE;
    }
    g_hash_table_insert(command->options, g_steal_pointer(&key), g_strdup(equals + 1));
    return TRUE;
}

static FsCommand *command_of(const FsVerb *verb, int count, char **words, GError **error)
{
    g_autoptr(FsCommand) command = g_new0(FsCommand, 1);

    command->words = g_ptr_array_new_with_free_func(g_free);
    command->options = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    command->answer = g_new0(struct FsAnswer, 1);
    if (count > 1 && g_str_equal(words[count - 1], "async")) {
        command->async = TRUE;
        count--;
    }
    for (int i = 1; i < count; i++) {
        if (!take_word(verb, words[i], command, error)) {
            return NULL;
        }
    }
    if (command->words->len < verb->min_words || command->words->len > verb->max_words) {
        g_set_error(error, BE_ERROR, EINVAL, "wrong number of words; usage: %s", verb->usage);
        return NULL;
    }
    return g_steal_pointer(&command);
}

gboolean fs_command_parse(const char *data, gsize size, const FsVerb *verbs,
                          const FsVerb **ret_verb, FsCommand **ret_command, GError **error)
{
    g_autofree char *line = line_of(data, size, error);
    g_auto(GStrv) words = NULL;
    g_autoptr(GError) shell_error = NULL;
    const FsVerb *verb;
    FsCommand *command;
    int count;

    if (!line) {
        return FALSE;
    }
    g_strstrip(line);
    if (line[0] == '\0' || line[0] == '#') {
        *ret_verb = NULL;
        *ret_command = NULL;
        return TRUE;
    }
    if (!g_shell_parse_argv(line, &count, &words, &shell_error)) {
        g_set_error(error, BE_ERROR, EINVAL, "%s", shell_error->message);
        return FALSE;
    }
    verb = find_verb(verbs, words[0], error);
    command = verb ? command_of(verb, count, words, error) : NULL;
    if (!command) {
        return FALSE;
    }
    *ret_verb = verb;
    *ret_command = command;
    return TRUE;
}
