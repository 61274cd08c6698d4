/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * fuzz-name.c - libFuzzer target: fs/name.c is a bijection.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "name.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_encode(const char *name)
{
    g_autofree char *file_name = fs_name_encode(name, NULL);
    g_autofree char *again = fs_name_decode(file_name, NULL);

    g_assert_cmpuint(strlen(file_name), <=, FS_NAME_MAX);
    g_assert_null(strchr(file_name, '/'));
    g_assert_true(*file_name && *file_name != '.');
    if (strstr(file_name, "%~")) {
        g_assert_null(again);
    } else {
        g_assert_cmpstr(again, ==, name);
    }
}

static void fuzz_decode(const char *file_name)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *name = fs_name_decode(file_name, &error);
    g_autofree char *again = name ? fs_name_encode(name, NULL) : NULL;

    g_assert_true((name == NULL) == (error != NULL));
    if (name) {
        g_assert_cmpstr(again, ==, file_name);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autofree char *spelling = NULL;

    fuzz_encode(text);
    fuzz_decode(text);
    if (fs_name_check_new(text, NULL)) {
        spelling = fs_name_encode(text, NULL);
        g_assert_cmpstr(spelling, ==, text);
    }
    return 0;
}
