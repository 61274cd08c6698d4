/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-name.c - fs/name.c: each rule, and the bijection on random names.
 */
#include <errno.h>
#include <string.h>

#include "name.h"

#define UUID "5e3b0f5a-3c0e-4f5c-9d3f-2b1f0c6a7e11"

enum { ROUNDS = 100000 };

typedef struct {
    const char *name;
    const char *file_name;
} Spelling;

static const Spelling spellings[] = {
    {"web1", "web1"},
    {"", "%00"},
    {".", "%2E"},
    {"..", "%2E."},
    {".hidden", "%2Ehidden"},
    {"a.b.", "a.b."},
    {"a/b", "a%2Fb"},
    {"../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"},
    {"100%", "100%25"},
    {"%2F", "%252F"},
    {"a\nb\x01\x1f\x7f", "a%0Ab%01%1F%7F"},
    {"a ", "a%20"},
    {"a  ", "a %20"},
    {" a", " a"},
    {" ", "%20"},
    {"-rf", "-rf"},
    {"<&\"']]>", "<&\"']]>"},
    {"\xc3\xa9", "\xc3\xa9"},
    {"\xc3", "%C3"},
    {"\xa9\xc3", "%A9%C3"},
    {"\xc3 ", "%C3%20"},
    {"\xc0\xaf", "%C0%AF"},
    {"\xed\xa0\x80", "%ED%A0%80"},
    {"\xf4\x90\x80\x80", "%F4%90%80%80"},
    {"\xf0\x9f\x90\xa7", "\xf0\x9f\x90\xa7"},
    {"\xf0\x9f\x90", "%F0%9F%90"},
};

static void test_spellings(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(spellings); i++) {
        g_autofree char *file_name = fs_name_encode(spellings[i].name, UUID);
        g_autoptr(GError) error = NULL;
        g_autofree char *name = fs_name_decode(file_name, &error);

        g_assert_cmpstr(file_name, ==, spellings[i].file_name);
        g_assert_no_error(error);
        g_assert_cmpstr(name, ==, spellings[i].name);
    }
}

static void test_decode_refuses(void)
{
    static const char *const bad[] = {
        "",          ".",    "..",   ".a",     "a/b",     "/",       "%",      "%2",   "a%",
        "%41",       "%zz",  "%2f",  "%2E%2E", "a%2E",    "%20a",    "a ",     "a\nb", "\x7f",
        "%C3%A9",    "\xc3", "%00a", "a%00",   "%00%00",  "%25%",    ("%~" UUID), "a%~b", "%%",
        "%F0%9F%90%A7",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(fs_name_decode(bad[i], &error));
        g_assert_error(error, BE_ERROR, EINVAL);
    }
}

static void check_file_name(const char *file_name)
{
    size_t length = strlen(file_name);

    g_assert_cmpuint(length, >, 0);
    g_assert_cmpuint(length, <=, FS_NAME_MAX);
    g_assert_true(g_utf8_validate(file_name, -1, NULL));
    g_assert_cmpint(file_name[0], !=, '.');
    g_assert_cmpint(file_name[length - 1], !=, ' ');
    for (const char *p = file_name; *p; p++) {
        g_assert_true((guchar)*p >= 0x20 && *p != 0x7f && *p != '/');
    }
}

/* Half of the bytes are ones with a rule of their own. */
static char *random_name(gint32 max_length)
{
    static const char special[] = "./% ~%%2Ff\n\x7f\xc3\xa9\xf0\x9f\x90\xa7\xed\xa0\x80-4150";
    gint32 length = g_test_rand_int_range(0, max_length + 1);
    char *name = g_malloc((gsize)length + 1);

    for (gint32 i = 0; i < length; i++) {
        name[i] = g_test_rand_bit() ? special[g_test_rand_int_range(0, sizeof special - 1)]
                                    : (char)g_test_rand_int_range(1, 256);
    }
    name[length] = 0;
    return name;
}

/* faults.md 26, 27, 28 */
static void test_bijection(void)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);

    for (int i = 0; i < ROUNDS; i++) {
        char *name = random_name(i % 10 == 0 ? 85 : 6);
        char *file_name = fs_name_encode(name, UUID);
        g_autoptr(GError) error = NULL;
        g_autofree char *again = fs_name_decode(file_name, &error);
        const char *other = g_hash_table_lookup(seen, file_name);

        g_assert_no_error(error);
        g_assert_cmpstr(again, ==, name);
        check_file_name(file_name);
        if (other) {
            g_assert_cmpstr(other, ==, name);
        }
        g_hash_table_replace(seen, file_name, name);
    }
}

/* Random file names: either refused or the one spelling of what they decode to. */
static void test_decode_random(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        g_autofree char *file_name = random_name(12);
        g_autoptr(GError) error = NULL;
        g_autofree char *name = fs_name_decode(file_name, &error);
        g_autofree char *again = name ? fs_name_encode(name, UUID) : NULL;

        if (name) {
            g_assert_no_error(error);
            g_assert_cmpstr(again, ==, file_name);
        } else {
            g_assert_error(error, BE_ERROR, EINVAL);
        }
    }
}

static void check_cut(const char *name, const char *identity)
{
    g_autofree char *file_name = fs_name_encode(name, identity);
    g_autofree char *decoded = fs_name_decode(file_name, NULL);
    g_autofree char *prefix = NULL;
    g_autofree char *prefix_name = NULL;
    char *mark = strstr(file_name, "%~");

    check_file_name(file_name);
    g_assert_null(decoded);
    g_assert_nonnull(mark);
    if (identity) {
        g_assert_cmpstr(mark + 2, ==, identity);
    }
    /* The prefix is whole: it is itself a spelling, but for its last space. */
    prefix = g_strdup_printf("%.*sx", (int)(mark - file_name), file_name);
    prefix_name = fs_name_decode(prefix, NULL);
    g_assert_nonnull(prefix_name);
    g_assert_true(strncmp(name, prefix_name, strlen(prefix_name) - 1) == 0);
    g_assert_cmpuint(strlen(file_name), >, FS_NAME_MAX - 4);
}

static void test_long_names(void)
{
    static const char *const units[] = {"a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x90\xa7", "/",
                                        "\xff", "a ", "%"};

    for (size_t i = 0; i < G_N_ELEMENTS(units); i++) {
        for (int lead = 0; lead < 4; lead++) {
            g_autoptr(GString) name = g_string_new_len("xyz", lead < 3 ? lead : 3);

            while (name->len < 300) {
                g_string_append(name, units[i]);
            }
            check_cut(name->str, UUID);
            check_cut(name->str, NULL);
            check_cut(name->str, "1");
        }
    }
}

static void test_long_limits(void)
{
    g_autofree char *fits = g_strnfill(FS_NAME_MAX, 'a');
    g_autofree char *longer = g_strnfill(FS_NAME_MAX + 1, 'a');
    g_autofree char *same = fs_name_encode(fits, UUID);
    g_autofree char *first = fs_name_encode(longer, NULL);
    g_autofree char *second = NULL;

    g_assert_cmpstr(same, ==, fits);
    check_cut(longer, UUID);
    longer[FS_NAME_MAX] = 'b';
    second = fs_name_encode(longer, NULL);
    g_assert_cmpstr(first, !=, second);
}

typedef struct {
    const char *name;
    int errnum;                /* 0: allowed */
} NewName;

/* faults.md 21 to 25, 29 */
static const NewName new_names[] = {
    {"tue", 0},
    {"2026-11-23", 0},
    {"-rf", 0},
    {" a", 0},
    {"a.b.", 0},
    {"<", 0},
    {"&amp;", 0},
    {"\"'", 0},
    {"]]>", 0},
    {"~", 0},
    {"*?[a]\\", 0},
    {"\xc3\xa9\xf0\x9f\x90\xa7", 0},
    {"latest1", 0},
    {"Current", 0},
    {"", EINVAL},
    {"a\nb", EINVAL},
    {"\x01", EINVAL},
    {"a\x1f", EINVAL},
    {"\t", EINVAL},
    {"\x7f", EINVAL},
    {"\xc2\x80", EINVAL},
    {"\xc2\x9b", EINVAL},
    {"\xef\xbf\xbf", EINVAL},
    {".", EINVAL},
    {"..", EINVAL},
    {".a", EINVAL},
    {"a ", EINVAL},
    {" ", EINVAL},
    {"%", EINVAL},
    {"%41", EINVAL},
    {"%2F", EINVAL},
    {"a/b", EINVAL},
    {"/", EINVAL},
    {"current", EINVAL},
    {"latest", EINVAL},
    {"\xff", EILSEQ},
    {"a\xc3", EILSEQ},
    {"\xed\xa0\x80", EILSEQ},
};

static void test_new_names(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(new_names); i++) {
        g_autoptr(GError) error = NULL;
        gboolean good = fs_name_check_new(new_names[i].name, &error);

        g_test_message("name %" G_GSIZE_FORMAT ": %s", i, error ? error->message : "allowed");
        if (new_names[i].errnum == 0) {
            g_autofree char *spelling = fs_name_encode(new_names[i].name, NULL);

            g_assert_no_error(error);
            g_assert_true(good);
            g_assert_cmpstr(spelling, ==, new_names[i].name);
        } else {
            g_assert_false(good);
            g_assert_error(error, BE_ERROR, new_names[i].errnum);
        }
    }
}

static void test_new_length(void)
{
    g_autofree char *longest = g_strnfill(FS_NAME_NEW_MAX, 'a');
    g_autofree char *longer = g_strnfill(FS_NAME_NEW_MAX + 1, 'a');
    g_autofree char *huge = g_strnfill(100000, '/');
    g_autoptr(GError) error = NULL;
    g_autoptr(GError) huge_error = NULL;

    g_assert_true(fs_name_check_new(longest, NULL));
    g_assert_false(fs_name_check_new(longer, &error));
    g_assert_error(error, BE_ERROR, ENAMETOOLONG);
    g_assert_false(fs_name_check_new(huge, &huge_error));
    g_assert_error(huge_error, BE_ERROR, ENAMETOOLONG);
}

/* Whatever may be made is its own spelling. */
static void test_new_random(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        g_autofree char *name = random_name(5);

        if (fs_name_check_new(name, NULL)) {
            g_autofree char *spelling = fs_name_encode(name, NULL);

            g_assert_cmpstr(spelling, ==, name);
        }
    }
}

static void test_inode(void)
{
    const char *const a[] = {"backup", UUID, "tue", "1", NULL};
    const char *const b[] = {"backup", UUID, "tue1", "", NULL};
    const char *const c[] = {"backup", UUID, "tue", NULL};
    const char *const d[] = {"backup", UUID, "tue", "", NULL};
    const char *const none[] = {NULL};

    /* A promise over versions: printf 'backup\0UUID\0tue\0001\0' | sha256sum. */
    g_assert_cmphex(fs_name_inode(a), ==, 0xeb6aa6872b3f9abd);
    g_assert_cmphex(fs_name_inode(none), ==, 0xe3b0c44298fc1c14);
    g_assert_cmphex(fs_name_inode(a), !=, fs_name_inode(b));
    g_assert_cmphex(fs_name_inode(c), !=, fs_name_inode(d));
    g_assert_cmphex(fs_name_inode(a), !=, fs_name_inode(c));
}

static void test_inode_many(void)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);

    for (int i = 0; i < ROUNDS; i++) {
        g_autofree char *name = g_strdup_printf("%d", i);
        const char *const parts[] = {"domain", name, NULL};
        guint64 number = fs_name_inode(parts);

        g_assert_cmpuint(number, >, 1);
        g_assert_true(g_hash_table_add(seen, g_memdup2(&number, sizeof number)));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/name/spellings", test_spellings);
    g_test_add_func("/name/decode-refuses", test_decode_refuses);
    g_test_add_func("/name/bijection", test_bijection);
    g_test_add_func("/name/decode-random", test_decode_random);
    g_test_add_func("/name/long", test_long_names);
    g_test_add_func("/name/long-limits", test_long_limits);
    g_test_add_func("/name/new", test_new_names);
    g_test_add_func("/name/new-length", test_new_length);
    g_test_add_func("/name/new-random", test_new_random);
    g_test_add_func("/name/inode", test_inode);
    g_test_add_func("/name/inode-many", test_inode_many);
    return g_test_run();
}
