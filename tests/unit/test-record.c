/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-record.c - backend/record.c and the journal's records: what is written is
 * read again, and what is broken harms nobody.
 */
#include "record.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup.h"
#include "tool.h"

static Be be;
static char *dir;
static guint warnings;

/* What is broken is told; g_test_expect_message() sees no structured messages. */
static GLogWriterOutput count_warnings(GLogLevelFlags level, const GLogField *fields, gsize count,
                                       gpointer user)
{
    if (!(level & G_LOG_LEVEL_WARNING)) {
        return g_log_writer_default(level, fields, count, user);
    }
    warnings++;
    return G_LOG_WRITER_HANDLED;
}

static char *in_kind(const char *name)
{
    return g_build_filename(dir, "things", name, NULL);
}

static JsonObject *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    JsonObject *object = be_record_parse(text, strlen(text), &error);

    g_assert_no_error(error);
    return object;
}

static void assert_broken(const char *text, gsize length)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(be_record_parse(text, length, &error));
    g_assert_error(error, BE_ERROR, EBADMSG);
}

static void write_thing(const char *id, const char *text)
{
    g_autoptr(JsonObject) object = parse(text);
    g_autoptr(GError) error = NULL;

    g_assert_true(be_record_write(&be, "things", id, object, &error));
    g_assert_no_error(error);
}

static void put_file(const char *name, const char *text, gssize length)
{
    g_autofree char *path = in_kind(name);

    g_assert_true(g_file_set_contents(path, text, length, NULL));
}

static gboolean file_exists(const char *name)
{
    g_autofree char *path = in_kind(name);

    return g_file_test(path, G_FILE_TEST_EXISTS | G_FILE_TEST_IS_SYMLINK);
}

static void test_round_trip(void)
{
    g_autoptr(JsonObject) object = NULL;
    g_autofree char *path = in_kind("a-1.json");
    g_autoptr(GError) error = NULL;
    struct stat attr;

    write_thing("a-1", "{\"name\": \"x\\u00e4\\n\\\"\", \"size\": 9007199254740993, \"on\": true,"
                       " \"list\": [{\"n\": 1}, 2]}");
    object = be_record_read(&be, "things", "a-1", &error);
    g_assert_no_error(error);
    g_assert_cmpstr(be_record_get_string(object, "name"), ==, "x\xc3\xa4\n\"");
    g_assert_cmpint(be_record_get_int(object, "size"), ==, G_GINT64_CONSTANT(9007199254740993));
    g_assert_true(be_record_get_bool(object, "on"));
    g_assert_nonnull(be_record_element(be_record_get_array(object, "list"), 0));
    g_assert_null(be_record_element(be_record_get_array(object, "list"), 1));
    g_assert_null(be_record_element(be_record_get_array(object, "list"), 2));
    g_assert_cmpint(g_stat(path, &attr), ==, 0);
    g_assert_cmpint(attr.st_mode & 07777, ==, 0600);
    be_record_remove(&be, "things", "a-1");
    be_record_remove(&be, "things", "a-1");
    g_assert_null(be_record_read(&be, "things", "a-1", &error));
    g_assert_error(error, BE_ERROR, ENOENT);
}

static void test_wrong_types(void)
{
    g_autoptr(JsonObject) object =
        parse("{\"a\": 1, \"b\": \"x\", \"c\": null, \"d\": [], \"e\": {}}");

    g_assert_null(be_record_get_string(object, "a"));
    g_assert_null(be_record_get_string(object, "c"));
    g_assert_null(be_record_get_string(object, "d"));
    g_assert_null(be_record_get_string(object, "none"));
    g_assert_cmpint(be_record_get_int(object, "b"), ==, 0);
    g_assert_cmpint(be_record_get_int(object, "e"), ==, 0);
    g_assert_false(be_record_get_bool(object, "a"));
    g_assert_null(be_record_get_array(object, "e"));
    g_assert_null(be_record_get_object(object, "d"));
    g_assert_nonnull(be_record_get_object(object, "e"));
    g_assert_null(be_record_element(NULL, 0));
}

static void test_names(void)
{
    g_autofree char *longest = g_strnfill(128, 'x');
    g_autofree char *longer = g_strnfill(129, 'x');
    g_autoptr(JsonObject) object = parse("{}");
    const char *const bad[] = {"", ".", "..", ".x", "a/b", "a b", "\xc3\xa4", "a\nb", NULL};
    g_autoptr(GError) error = NULL;

    g_assert_true(be_record_id_is_valid(longest));
    g_assert_false(be_record_id_is_valid(longer));
    g_assert_false(be_record_id_is_valid(NULL));
    for (const char *const *id = bad; *id; id++) {
        g_assert_false(be_record_write(&be, "things", *id, object, &error));
        g_assert_error(error, BE_ERROR, EINVAL);
        g_clear_error(&error);
        g_assert_false(be_record_write(&be, *id, "x", object, &error));
        g_assert_error(error, BE_ERROR, EINVAL);
        g_clear_error(&error);
        be_record_remove(&be, "things", *id);
    }
    write_thing(longest, "{}");
    be_record_remove(&be, "things", longest);
}

static void test_broken_text(void)
{
    const char *const bad[] = {"{", "[]", "1", "null", "{\"a\":}", "{'a': 1}", "{} /* x */",
                               "{}{}x", "{\"a\": \"\xff\"}", "# x\n{}", NULL};
    g_autofree char *deep = g_strnfill(100000, '[');
    g_autofree char *hidden = g_strconcat("{\"a\\\"\": ", deep, NULL);

    assert_broken("", 0);
    assert_broken("{}\0", 3);
    for (const char *const *text = bad; *text; text++) {
        assert_broken(*text, strlen(*text));
    }
    assert_broken(deep, strlen(deep));
    assert_broken(hidden, strlen(hidden));
}

static void test_broken_is_set_aside(void)
{
    g_autofree char *link = in_kind("link.json");
    g_autofree char *target = in_kind("good.json");
    g_autoptr(GPtrArray) records = NULL;

    write_thing("good", "{\"n\": 1}");
    write_thing("also", "{\"n\": 2}");
    put_file("half.json", "{\"n\": ", -1);
    put_file("empty.json", "", 0);
    put_file("README", "not ours", -1);
    g_assert_cmpint(symlink(target, link), ==, 0);
    warnings = 0;
    records = be_record_load(&be, "things");
    g_assert_cmpuint(warnings, ==, 3);
    g_assert_cmpuint(records->len, ==, 2);
    g_assert_cmpstr(((BeRecord *)g_ptr_array_index(records, 0))->id, ==, "also");
    g_assert_cmpstr(((BeRecord *)g_ptr_array_index(records, 1))->id, ==, "good");
    g_assert_true(file_exists("half.broken"));
    g_assert_false(file_exists("half.json"));
    g_assert_true(file_exists("README"));
    g_clear_pointer(&records, g_ptr_array_unref);
    records = be_record_load(&be, "things");
    g_assert_cmpuint(records->len, ==, 2);
}

static void test_too_long(void)
{
    g_autofree char *path = in_kind("long.json");
    g_autofree char *text = g_strnfill(BE_RECORD_MAX_BYTES, 'x');
    g_autoptr(JsonObject) object = json_object_new();
    g_autoptr(GError) error = NULL;

    json_object_set_string_member(object, "x", text);
    g_assert_false(be_record_write(&be, "things", "long", object, &error));
    g_assert_error(error, BE_ERROR, EFBIG);
    g_clear_error(&error);
    put_file("long.json", "{}", 2);
    g_assert_cmpint(truncate(path, BE_RECORD_MAX_BYTES + 1), ==, 0);
    warnings = 0;
    g_assert_null(be_record_read(&be, "things", "long", &error));
    g_assert_error(error, BE_ERROR, EBADMSG);
    g_assert_cmpuint(warnings, ==, 1);
}

static void test_tidy(void)
{
    write_thing("kept", "{}");
    put_file("kept.json.NWWGZ3", "{", -1);
    put_file("gone.json.abcdef", "", 0);
    put_file("notes.json.txt", "x", 1);
    put_file("x.ABCDEF", "x", 1);
    be_record_tidy(&be);
    g_assert_true(file_exists("kept.json"));
    g_assert_false(file_exists("kept.json.NWWGZ3"));
    g_assert_false(file_exists("gone.json.abcdef"));
    g_assert_true(file_exists("notes.json.txt"));
    g_assert_true(file_exists("x.ABCDEF"));
}

static void test_read_only(void)
{
    Be other = {.state_dir = dir, .read_only = TRUE};
    g_autoptr(JsonObject) object = parse("{}");
    g_autoptr(GPtrArray) records = be_record_load(&other, "nothing");
    g_autoptr(GError) error = NULL;

    g_assert_cmpuint(records->len, ==, 0);
    g_assert_false(be_record_write(&other, "things", "x", object, &error));
    g_assert_error(error, BE_ERROR, EROFS);
}

/* ---- The journal's own ------------------------------------------------------------ */

#define WHO "\"id\": \"i\", \"name\": \"n\", \"domain-uuid\": \"u\", \"domain-name\": \"d\""

static gboolean is_backup(const char *text)
{
    g_autoptr(JsonObject) object = parse(text);
    Backup *backup = be_journal_parse(&be, object);

    if (backup) {
        be_backup_unref(&backup->pub);
    }
    return backup != NULL;
}

static void test_journal(void)
{
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(GPtrArray) backups = NULL;
    g_autoptr(GError) error = NULL;
    Backup *backup;

    g_assert_true(is_backup("{" WHO "}"));
    g_assert_false(is_backup("{\"id\": \"i\", \"name\": \"n\"}"));
    g_assert_false(is_backup("{" WHO ", \"kind\": \"live\", \"socket\": \"/s\","
                             " \"disks\": [{\"target\": \"vda\", \"size\": -1}]}"));
    g_assert_false(is_backup("{" WHO ", \"kind\": \"live\", \"disks\": [7]}"));

    object = parse("{" WHO ", \"kind\": \"live\", \"stage\": 1, \"socket\": \"/s\", \"uid\": 7,"
                   " \"consistency\": 99, \"disks\": [{\"target\": \"vda\", \"size\": 4096}]}");
    backup = be_journal_parse(&be, object);
    g_assert_cmpint(backup->stage, ==, BACKUP_LISTED);
    g_assert_cmpint(backup->pub.consistency, ==, BE_CONSISTENCY_OFFLINE);
    g_assert_true(be_journal_write(backup, &error));
    g_assert_no_error(error);
    be_backup_unref(&backup->pub);

    backups = be_journal_load(&be);
    g_assert_cmpuint(backups->len, ==, 1);
    backup = g_ptr_array_index(backups, 0);
    g_assert_cmpstr(backup->pub.domain_name, ==, "d");
    g_assert_cmpuint(backup->pub.owner.uid, ==, 7);
    g_assert_cmpuint(backup->pub.disks->len, ==, 1);
    be_journal_remove(&be, "i");
}

static void test_marks(void)
{
    g_autoptr(GPtrArray) marks = NULL;
    g_autoptr(GError) error = NULL;

    g_assert_true(be_journal_mark(&be, "some-uuid", &error));
    g_assert_no_error(error);
    marks = be_journal_marks(&be);
    g_assert_cmpuint(marks->len, ==, 1);
    g_assert_cmpstr(g_ptr_array_index(marks, 0), ==, "some-uuid");
    be_journal_unmark(&be, "some-uuid");
}

int main(int argc, char **argv)
{
    g_autofree char *journal = NULL;
    int failed;

    g_test_init(&argc, &argv, NULL);
    g_log_set_writer_func(count_warnings, NULL, NULL);
    dir = tool_dir_new();
    journal = g_build_filename(dir, "journal", NULL);
    g_assert_cmpint(g_mkdir(journal, 0700), ==, 0);
    be.state_dir = dir;
    g_test_add_func("/record/round-trip", test_round_trip);
    g_test_add_func("/record/wrong-types", test_wrong_types);
    g_test_add_func("/record/names", test_names);
    g_test_add_func("/record/broken-text", test_broken_text);
    g_test_add_func("/record/set-aside", test_broken_is_set_aside);
    g_test_add_func("/record/too-long", test_too_long);
    g_test_add_func("/record/tidy", test_tidy);
    g_test_add_func("/record/read-only", test_read_only);
    g_test_add_func("/journal/parse", test_journal);
    g_test_add_func("/journal/marks", test_marks);
    failed = g_test_run();
    tool_dir_remove(dir);
    return failed;
}
