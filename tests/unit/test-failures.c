/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-failures.c - fs/failures.c: sixteen lines, for the object and those above it.
 */
#include <errno.h>
#include <string.h>

#include "fs/failures.h"

enum { KEPT = 16 };

static const BeCaller caller = {.uid = 1000, .gid = 100, .pid = 4711};

static char **lines_of(FsFailures *failures, const char *id)
{
    g_autoptr(GString) out = g_string_new(NULL);

    fs_failures_print(failures, id, out);
    if (out->len) {
        g_assert_cmpint(out->str[out->len - 1], ==, '\n');
        g_string_truncate(out, out->len - 1);
    }
    return g_strsplit(out->str, "\n", -1);
}

static void test_line(void)
{
    FsFailures *failures = fs_failures_new();
    g_autoptr(FsItem) item = fs_item_new(NULL, "id", g_strdup("vm"), NULL, NULL);
    g_auto(GStrv) lines = NULL;

    fs_failures_add(failures, item, &caller, "mkdir a", EBUSY, "it runs; end it");
    fs_failures_add(failures, item, NULL, "backup", 0, "well");
    lines = lines_of(failures, "id");
    g_assert_cmpuint(g_strv_length(lines), ==, 2);
    g_assert_true(g_regex_match_simple(
        "^1 \\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z pid=4711 uid=1000 'mkdir a' EBUSY: "
        "it runs; end it$", lines[0], 0, 0));
    g_assert_true(g_regex_match_simple("^2 \\S+ vmsnapfs 'backup' OK: well$", lines[1], 0, 0));
    fs_failures_free(failures);
}

static void test_sixteen_are_kept(void)
{
    FsFailures *failures = fs_failures_new();
    g_auto(GStrv) lines = NULL;

    for (int i = 1; i <= 40; i++) {
        fs_failures_add_id(failures, "id", &caller, "x", EIO, "y");
    }
    lines = lines_of(failures, "id");
    g_assert_cmpuint(g_strv_length(lines), ==, KEPT);
    g_assert_true(g_str_has_prefix(lines[0], "25 "));
    g_assert_true(g_str_has_prefix(lines[KEPT - 1], "40 "));
    fs_failures_free(failures);
}

static void test_objects_above(void)
{
    FsFailures *failures = fs_failures_new();
    g_autoptr(FsItem) vm = fs_item_new(NULL, "vm", g_strdup("vm"), NULL, NULL);
    g_autoptr(FsItem) backup = fs_item_new(vm, "backup", g_strdup("b"), NULL, NULL);
    g_autoptr(FsItem) other = fs_item_new(NULL, "other", g_strdup("o"), NULL, NULL);
    g_auto(GStrv) of_vm = NULL, of_backup = NULL, of_other = NULL;

    fs_failures_add(failures, backup, &caller, "x", EIO, "both");
    fs_failures_add(failures, vm, &caller, "x", EIO, "the machine");
    fs_failures_add(failures, NULL, &caller, "x", EIO, "nobody");
    of_vm = lines_of(failures, "vm");
    of_backup = lines_of(failures, "backup");
    of_other = lines_of(failures, other->id);
    g_assert_cmpuint(g_strv_length(of_vm), ==, 2);
    g_assert_cmpuint(g_strv_length(of_backup), ==, 1);
    g_assert_cmpstr(of_vm[0], ==, of_backup[0]);
    g_assert_cmpuint(g_strv_length(of_other), ==, 0);
    fs_failures_drop(failures, "backup");
    fs_failures_drop(failures, "never seen");
    g_strfreev(of_backup);
    of_backup = lines_of(failures, "backup");
    g_assert_cmpuint(g_strv_length(of_backup), ==, 0);
    fs_failures_free(failures);
}

static void test_escape(void)
{
    static const struct {
        const char *text, *line;
    } tests[] = {
        {"", ""},
        {"plain 'text'", "plain 'text'"},
        {"a\nb\r\tc", "a\\x0Ab\\x0D\\x09c"},
        {"\x1b[2J\x7f", "\\x1B[2J\\x7F"},
        {"caf\xc3\xa9", "caf\xc3\xa9"},
        {"\xff\xc3(", "\\xFF\\xC3("},
        {"\xc2\x85", "\\x85"},                      /* NEL ends a line, too */
        {"\xe2\x80\xa8x", "\\u2028x"},
        {"\xe2\x80\xae" "evil", "\\u202Eevil"},     /* right to left from here */
    };

    for (gsize i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_autofree char *line = fs_escape_line(tests[i].text);

        g_assert_cmpstr(line, ==, tests[i].line);
        g_assert_true(g_utf8_validate(line, -1, NULL));
    }
}

static void test_no_line_is_forged(void)
{
    FsFailures *failures = fs_failures_new();
    g_auto(GStrv) lines = NULL;

    fs_failures_add_id(failures, "id", &caller, "x\n99 forged", EIO, "y\n100 forged");
    lines = lines_of(failures, "id");
    g_assert_cmpuint(g_strv_length(lines), ==, 1);
    fs_failures_free(failures);
}

/* Of objects that nobody tells the end of: what was silent longest is forgotten. */
static void test_objects_are_bounded(void)
{
    FsFailures *failures = fs_failures_new();
    g_auto(GStrv) kept = NULL;
    g_auto(GStrv) gone = NULL;
    g_auto(GStrv) last = NULL;

    for (guint i = 0; i < FS_FAILURES_OBJECTS + 10; i++) {
        g_autofree char *id = g_strdup_printf("%u", i);

        fs_failures_add_id(failures, id, &caller, "x", EIO, "y");
        fs_failures_add_id(failures, "0", &caller, "x", EIO, "y");
    }
    kept = lines_of(failures, "0");
    gone = lines_of(failures, "5");
    last = lines_of(failures, "4105");
    g_assert_cmpuint(g_strv_length(kept), ==, 16);
    g_assert_cmpuint(g_strv_length(gone), ==, 0);
    g_assert_cmpuint(g_strv_length(last), ==, 1);
    fs_failures_free(failures);
}

static void test_names_and_times(void)
{
    g_autofree char *epoch = fs_time_text(0);
    g_autofree char *later = fs_time_text(G_GINT64_CONSTANT(1795219200999999));

    g_assert_cmpstr(fs_errno_name(EBUSY), ==, "EBUSY");
    g_assert_cmpstr(fs_errno_name(0), ==, "OK");
    g_assert_nonnull(fs_errno_name(123456));
    g_assert_cmpstr(epoch, ==, "1970-01-01T00:00:00.000Z");
    g_assert_cmpstr(later, ==, "2026-11-21T00:00:00.999Z");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/failures/line", test_line);
    g_test_add_func("/failures/sixteen", test_sixteen_are_kept);
    g_test_add_func("/failures/objects-above", test_objects_above);
    g_test_add_func("/failures/escape", test_escape);
    g_test_add_func("/failures/no-line-is-forged", test_no_line_is_forged);
    g_test_add_func("/failures/bounded", test_objects_are_bounded);
    g_test_add_func("/failures/names-and-times", test_names_and_times);
    return g_test_run();
}
