/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-command.c - fs/command.c: every rule of a control line (style.md c3).
 */
#include <errno.h>
#include <string.h>

#include "fs/command.h"

static BeJob *run(const FsAct *act G_GNUC_UNUSED, const FsCommand *command G_GNUC_UNUSED,
                  GError **error G_GNUC_UNUSED)
{
    return NULL;
}

static const char *const keys[] = {"only", "to", NULL};

static const FsVerb verbs[] = {
    {"go", 0, 0, NULL, "go", run},
    {"make", 1, 2, keys, "make NAME [FORM] [only=X] [to=Y] [async]", run},
    {NULL, 0, 0, NULL, NULL, NULL},
};

typedef struct {
    const char *line;
    const char *words;         /* joined by '|'; NULL: nothing is to be done */
    const char *only;
    gboolean async;
} Good;

static const Good good[] = {
    {"", NULL, NULL, FALSE},
    {"\n", NULL, NULL, FALSE},
    {"\r\n", NULL, NULL, FALSE},
    {" \t \n", NULL, NULL, FALSE},
    {"# go", NULL, NULL, FALSE},
    {"  # 'unbalanced", NULL, NULL, FALSE},
    {"go", "go", NULL, FALSE},
    {"go\n", "go", NULL, FALSE},
    {"go\r\n", "go", NULL, FALSE},
    {" \t go \t ", "go", NULL, FALSE},
    {"'go'", "go", NULL, FALSE},
    {"go async", "go", NULL, TRUE},
    {"go # why", "go", NULL, FALSE},
    {"make a", "make|a", NULL, FALSE},
    {"make a b", "make|a|b", NULL, FALSE},
    {"make a only=vda,vdb", "make|a", "vda,vdb", FALSE},
    {"make only=x a", "make|a", "x", FALSE},
    {"make a only=", "make|a", "", FALSE},
    {"make a only='x y' async", "make|a", "x y", TRUE},
    {"make a=b", "make|a=b", NULL, FALSE},
    {"make =x", "make|=x", NULL, FALSE},
    {"make onlyx=1", "make|onlyx=1", NULL, FALSE},
    {"make async async", "make|async", NULL, TRUE},
    {"make async x", "make|async|x", NULL, FALSE},
    {"make ''", "make|", NULL, FALSE},
    {"make 'a b'", "make|a b", NULL, FALSE},
    {"make \"a'b\"", "make|a'b", NULL, FALSE},
    {"make a\\ b", "make|a b", NULL, FALSE},
    {"make caf\xc3\xa9", "make|caf\xc3\xa9", NULL, FALSE},
};

static void check_good(const Good *test)
{
    const FsVerb *verb = NULL;
    g_autoptr(FsCommand) command = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(GString) words = g_string_new(NULL);

    g_test_message("'%s'", test->line);
    g_assert_true(fs_command_parse(test->line, strlen(test->line), verbs, &verb, &command, &error));
    g_assert_no_error(error);
    if (!test->words) {
        g_assert_null(verb);
        g_assert_null(command);
        return;
    }
    g_string_append(words, verb->name);
    for (guint i = 0; i < command->words->len; i++) {
        g_string_append_printf(words, "|%s", (char *)g_ptr_array_index(command->words, i));
    }
    g_assert_cmpstr(words->str, ==, test->words);
    g_assert_cmpstr(g_hash_table_lookup(command->options, "only"), ==, test->only);
    g_assert_cmpint(command->async, ==, test->async);
}

static void test_good(void)
{
    for (gsize i = 0; i < G_N_ELEMENTS(good); i++) {
        check_good(&good[i]);
    }
}

static void assert_fails(const char *data, gsize size, int errnum, const char *part)
{
    const FsVerb *verb = NULL;
    FsCommand *command = NULL;
    g_autoptr(GError) error = NULL;

    g_assert_false(fs_command_parse(data, size, verbs, &verb, &command, &error));
    g_assert_error(error, BE_ERROR, errnum);
    g_assert_nonnull(strstr(error->message, part));
    g_assert_null(command);
}

static void test_bad(void)
{
    static const struct {
        const char *line, *part;
        int errnum;
    } bad[] = {
        {"g", "allowed: go, make", EINVAL},
        {"Go", "allowed: go, make", EINVAL},
        {"gone", "allowed: go, make", EINVAL},
        {"async", "allowed: go, make", EINVAL},
        {"''", "allowed: go, make", EINVAL},
        {"go now", "usage: go", EINVAL},
        {"go only=x", "usage: go", EINVAL},
        {"go async async", "usage: go", EINVAL},
        {"make", "usage: make", EINVAL},
        {"make only=x", "usage: make", EINVAL},
        {"make async", "usage: make", EINVAL},
        {"make a b c", "usage: make", EINVAL},
        {"make a only=x only=x", "'only' is given twice", EINVAL},
        {"make 'a", "", EINVAL},
        {"make a\\", "", EINVAL},
        {"go\ngo", "one line", EINVAL},
        {"go\n\n", "one line", EINVAL},
        {"go\rgo", "one line", EINVAL},
        {"go\r\r\n", "one line", EINVAL},
        {"\n\n", "one line", EINVAL},
        {"# x\ngo", "one line", EINVAL},
        {"make \xff", "UTF-8", EILSEQ},
        {"\xc3", "UTF-8", EILSEQ},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *line = g_strescape(bad[i].line, NULL);

        g_test_message("'%s'", line);
        assert_fails(bad[i].line, strlen(bad[i].line), bad[i].errnum, bad[i].part);
    }
    assert_fails("go\0", 3, EINVAL, "NUL");
    assert_fails("\0", 1, EINVAL, "NUL");
}

/* Nothing of it is a shell: what looks like one is text. */
static void test_no_shell(void)
{
    check_good(&(Good){"make $HOME `id`", "make|$HOME|`id`", NULL, FALSE});
    check_good(&(Good){"make * ~;x", "make|*|~;x", NULL, FALSE});
    assert_fails("make a; go b", 12, EINVAL, "usage: make");
}

static void test_length(void)
{
    g_autofree char *line = g_strnfill(FS_COMMAND_MAX + 1, ' ');
    const FsVerb *verb = NULL;
    g_autoptr(FsCommand) command = NULL;

    memcpy(line, "go", 2);
    g_assert_true(fs_command_parse(line, FS_COMMAND_MAX, verbs, &verb, &command, NULL));
    g_assert_cmpstr(verb->name, ==, "go");
    assert_fails(line, FS_COMMAND_MAX + 1, EFBIG, "4096");
    assert_fails(line, G_MAXSIZE, EFBIG, "4096");
}

static void test_usage(void)
{
    g_autoptr(GString) out = g_string_new(NULL);

    fs_command_usage(verbs, out);
    g_assert_cmpstr(out->str, ==, "go\nmake NAME [FORM] [only=X] [to=Y] [async]\n");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/command/good", test_good);
    g_test_add_func("/command/bad", test_bad);
    g_test_add_func("/command/no-shell", test_no_shell);
    g_test_add_func("/command/length", test_length);
    g_test_add_func("/command/usage", test_usage);
    return g_test_run();
}
