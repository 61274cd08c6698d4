/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-files-parse.c - backend/files-parse.c: answers of an appliance that may be
 * the enemy's.
 */
#include <glib.h>
#include <string.h>

#include "backend/files-priv.h"

static void add_entry(GByteArray *bytes, guint32 mode, const char *name, const char *target)
{
    FilesEntry entry = {.ino = 7, .size = 5, .mode = mode, .nlink = 2, .mtime = 3,
                        .mtime_nsec = 4, .name_length = (guint16)strlen(name),
                        .target_length = (guint16)strlen(target)};

    g_byte_array_append(bytes, (const guint8 *)&entry, sizeof(entry));
    g_byte_array_append(bytes, (const guint8 *)name, entry.name_length);
    g_byte_array_append(bytes, (const guint8 *)target, entry.target_length);
}

static void test_entries(void)
{
    static const char *const bad[] = {"..", "a/b", "", "/"};
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autoptr(BeFileList) list = files_list_new();
    const BeFileInfo *info;

    add_entry(bytes, S_IFREG | 0644, "file", "ignored");
    add_entry(bytes, S_IFLNK | 0777, "link", "to/there");
    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++) {
        add_entry(bytes, S_IFDIR, bad[i], "");
    }
    add_entry(bytes, S_IFDIR, "file", "");
    g_assert_true(files_parse_entries(bytes->data, bytes->len, list));
    g_assert_cmpuint(list->infos->len, ==, 2);
    info = g_hash_table_lookup(list->by_name, "file");
    g_assert_true(S_ISREG(info->attr.st_mode));
    g_assert_cmpint(info->attr.st_mtim.tv_sec, ==, 3);
    g_assert_cmpint(info->attr.st_mtim.tv_nsec, ==, 4);
    g_assert_null(info->target);
    info = g_hash_table_lookup(list->by_name, "link");
    g_assert_cmpstr(info->target, ==, "to/there");
}

/* Each part of a good answer is either taken or refused, and read no further. */
static void test_cut_entries(void)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    add_entry(bytes, S_IFLNK, "name", "target");
    for (guint length = 0; length <= bytes->len; length++) {
        g_autofree guint8 *copy = g_memdup2(bytes->data, length);
        g_autoptr(BeFileList) list = files_list_new();

        g_assert_true(files_parse_entries(copy, length, list)
                      == (length == 0 || length == bytes->len));
    }
}

static void test_volumes(void)
{
    static const guint8 good[] = "root\0vda1\0a/b\0..\0vg-lv";
    g_auto(GStrv) names = files_parse_volumes(good, sizeof(good));

    g_assert_nonnull(names);
    g_assert_cmpuint(g_strv_length(names), ==, 3);
    g_assert_cmpstr(names[1], ==, "vda1");
    g_assert_cmpstr(names[2], ==, "vg-lv");
    g_assert_null(files_parse_volumes(good, sizeof(good) - 1));
}

static void add_xattr(GByteArray *bytes, const char *file, const char *name, const char *value)
{
    FilesXattr head = {.file_length = (guint16)strlen(file), .name_length = (guint16)strlen(name),
                       .value_length = (guint32)strlen(value)};

    g_byte_array_append(bytes, (const guint8 *)&head, sizeof(head));
    g_byte_array_append(bytes, (const guint8 *)file, head.file_length);
    g_byte_array_append(bytes, (const guint8 *)name, head.name_length);
    g_byte_array_append(bytes, (const guint8 *)value, head.value_length);
}

static void test_xattrs(void)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autoptr(GHashTable) by_file = files_xattrs_new();
    GHashTable *found;

    add_xattr(bytes, "one", "user.a", "1");
    add_xattr(bytes, "one", "user.b", "");
    add_xattr(bytes, "two", "user.a", "22");
    g_assert_true(files_parse_xattrs(bytes->data, bytes->len, by_file));
    g_assert_cmpuint(g_hash_table_size(by_file), ==, 2);
    found = g_hash_table_lookup(by_file, "one");
    g_assert_cmpuint(g_hash_table_size(found), ==, 2);
    g_assert_cmpuint(g_bytes_get_size(g_hash_table_lookup(found, "user.b")), ==, 0);
    for (guint length = 1; length < 24; length++) {
        g_autofree guint8 *copy = g_memdup2(bytes->data, length);
        g_autoptr(GHashTable) part = files_xattrs_new();

        g_assert_true(files_parse_xattrs(copy, length, part)
                      == (length == sizeof(FilesXattr) + strlen("oneuser.a1")));
    }
}

/* Noise is refused or taken, within its bounds (run under AddressSanitizer). */
static void test_noise(void)
{
    for (guint round = 0; round < 20000; round++) {
        guint8 noise[300];
        gsize length = (gsize)g_test_rand_int_range(1, sizeof(noise));
        g_autofree guint8 *copy = NULL;
        g_autoptr(BeFileList) list = files_list_new();
        g_autoptr(GHashTable) by_file = files_xattrs_new();

        for (gsize i = 0; i < length; i++) {
            noise[i] = g_test_rand_bit() ? 0 : (guint8)g_test_rand_int();
        }
        copy = g_memdup2(noise, length);
        (void)files_parse_entries(copy, length, list);
        (void)files_parse_xattrs(copy, length, by_file);
        g_strfreev(files_parse_volumes(copy, length));
    }
}

/* What is kept of directories is bounded, and what was used last stays. */
static void test_cache(void)
{
    FilesCache *cache = files_cache_new();

    for (guint i = 0; i < 300; i++) {
        g_autoptr(BeFileList) list = files_list_new();
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_autofree char *path = g_strdup_printf("root/%u", i);

        for (guint j = 0; j < 1000; j++) {
            g_autofree char *name = g_strdup_printf("%u", j);

            add_entry(bytes, S_IFREG, name, "");
        }
        g_assert_true(files_parse_entries(bytes->data, bytes->len, list));
        files_cache_add(cache, path, list);
        g_assert_nonnull(files_cache_find(cache, "root/0"));
    }
    g_assert_null(files_cache_find(cache, "root/1"));
    g_assert_nonnull(files_cache_find(cache, "root/299"));
    files_cache_free(cache);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/files-parse/entries", test_entries);
    g_test_add_func("/files-parse/cut-entries", test_cut_entries);
    g_test_add_func("/files-parse/volumes", test_volumes);
    g_test_add_func("/files-parse/xattrs", test_xattrs);
    g_test_add_func("/files-parse/noise", test_noise);
    g_test_add_func("/files-parse/cache", test_cache);
    return g_test_run();
}
