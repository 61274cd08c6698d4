/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * name.c - libvirt's names as file names and back; see name.h.
 *
 * Pure functions: any thread, no locks.
 */
#include "name.h"

#include <errno.h>
#include <string.h>

enum { IDENTITY_MAX = 64, HASH_DIGITS = 32 };

/* Stands before the identity in a shortened name; '~' is no digit of an escape. */
static const char cut_mark[] = "%~";
static const char empty_name[] = "%00";

/* Links of the tree: design.md section 1, faults.md 29. */
static const char *const reserved_names[] = {"current", "latest"};

static gboolean is_control(guchar c)
{
    return c < 0x20 || c == 0x7f;
}

/* Bytes of the valid character at @p; 0: the byte there must be escaped. */
static size_t plain_length(const char *name, const char *p)
{
    guchar c = (guchar)*p;
    gunichar value = 0;

    if (c < 0x80) {
        gboolean hurts = is_control(c) || c == '/' || c == '%' || (c == '.' && p == name)
                         || (c == ' ' && p[1] == 0);

        return hurts ? 0 : 1;
    }
    value = g_utf8_get_char_validated(p, -1);
    if (value == (gunichar)-1 || value == (gunichar)-2) {
        return 0;
    }
    return (size_t)(g_utf8_next_char(p) - p);
}

static char *hash_of(const char *name)
{
    char *digits = g_compute_checksum_for_string(G_CHECKSUM_SHA256, name, -1);

    digits[HASH_DIGITS] = 0;
    return digits;
}

/*
 * Where an encoding must be cut so that @room bytes are not exceeded and neither
 * a character nor an escape is split.
 */
static size_t cut_position(const char *encoded, size_t room)
{
    const char *p = encoded;

    while (*p) {
        size_t step = *p == '%' ? 3 : (size_t)(g_utf8_next_char(p) - p);

        if ((size_t)(p - encoded) + step > room) {
            break;
        }
        p += step;
    }
    return (size_t)(p - encoded);
}

static char *shorten(const char *name, const char *identity, GString *encoded)
{
    g_autofree char *hash = identity ? NULL : hash_of(name);
    const char *tail = identity ? identity : hash;
    size_t tail_length = strlen(tail);

    g_return_val_if_fail(tail_length > 0 && tail_length <= IDENTITY_MAX, NULL);
    g_string_truncate(encoded, cut_position(encoded->str, FS_NAME_MAX - strlen(cut_mark)
                                                              - tail_length));
    g_string_append(encoded, cut_mark);
    g_string_append(encoded, tail);
    return g_string_free(encoded, FALSE);
}

static GString *encode_all(const char *name)
{
    GString *out = g_string_new(NULL);

    for (const char *p = name; *p;) {
        size_t length = plain_length(name, p);

        if (length > 0) {
            g_string_append_len(out, p, (gssize)length);
            p += length;
        } else {
            g_string_append_printf(out, "%%%02X", (guint)(guchar)*p);
            p++;
        }
    }
    if (out->len == 0) {
        g_string_append(out, empty_name);
    }
    return out;
}

char *fs_name_encode(const char *name, const char *identity)
{
    GString *out = encode_all(name);

    if (out->len > FS_NAME_MAX) {
        return shorten(name, identity, out);
    }
    return g_string_free(out, FALSE);
}

/* Undoes every %XX; NULL when a '%' begins none. */
static char *unescape(const char *file_name)
{
    g_autoptr(GString) out = g_string_new(NULL);

    for (const char *p = file_name; *p; p++) {
        if (*p != '%') {
            g_string_append_c(out, *p);
            continue;
        }
        if (!g_ascii_isxdigit(p[1]) || !g_ascii_isxdigit(p[2])) {
            return NULL;
        }
        g_string_append_c(out, (char)(g_ascii_xdigit_value(p[1]) * 16
                                      + g_ascii_xdigit_value(p[2])));
        p += 2;
    }
    /* An escaped NUL ends the string early: the comparison below sees it. */
    return g_strdup(out->str);
}

/*
 * Instead of a second set of rules the first one decides: a file name is a
 * spelling of a name when encoding that name gives it back.
 */
char *fs_name_decode(const char *file_name, GError **error)
{
    g_autofree char *name = NULL;

    if (strnlen(file_name, FS_NAME_MAX + 1) <= FS_NAME_MAX) {
        name = unescape(file_name);
    }
    if (name) {
        g_autoptr(GString) again = encode_all(name);

        if (strcmp(again->str, file_name) == 0) {
            return g_steal_pointer(&name);
        }
    }
    g_set_error(error, BE_ERROR, EINVAL, "'%s' is not the spelling of any name", file_name);
    return NULL;
}

/* A sentence about the first character that a new name must not have, or NULL. */
static const char *bad_character(const char *name)
{
    for (const char *p = name; *p; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);

        if (c == '/') {
            return "a name must not contain '/'";
        }
        if (c == '%') {
            return "a name must not contain '%', which marks escapes in names that exist";
        }
        if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {
            return "a name must not contain a line break or another control character";
        }
        if ((c & 0xfffe) == 0xfffe) {
            return "a name must not contain characters that XML cannot hold";
        }
    }
    return NULL;
}

static const char *bad_form(const char *name, size_t length)
{
    if (length == 0) {
        return "a name must not be empty";
    }
    if (*name == '.') {
        return "a name must not begin with a dot";
    }
    if (name[length - 1] == ' ') {
        return "a name must not end in a space";
    }
    for (size_t i = 0; i < G_N_ELEMENTS(reserved_names); i++) {
        if (strcmp(name, reserved_names[i]) == 0) {
            return "'current' and 'latest' are links of the tree and no names";
        }
    }
    return bad_character(name);
}

gboolean fs_name_check_new(const char *file_name, GError **error)
{
    size_t length = strnlen(file_name, FS_NAME_NEW_MAX + 1);
    const char *reason = NULL;

    if (length > FS_NAME_NEW_MAX) {
        g_set_error(error, BE_ERROR, ENAMETOOLONG,
                    "the name is longer than %d bytes, the most that libvirt can store",
                    FS_NAME_NEW_MAX);
        return FALSE;
    }
    if (!g_utf8_validate(file_name, -1, NULL)) {
        g_set_error(error, BE_ERROR, EILSEQ, "the name is not valid UTF-8");
        return FALSE;
    }
    reason = bad_form(file_name, length);
    if (reason) {
        g_set_error_literal(error, BE_ERROR, EINVAL, reason);
        return FALSE;
    }
    return TRUE;
}

guint64 fs_name_inode(const char *const *parts)
{
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_SHA256);
    guint8 digest[32];
    gsize length = sizeof digest;
    guint64 number = 0;

    /* With its NUL each part ends where no other list of parts has an end. */
    for (size_t i = 0; parts[i]; i++) {
        g_checksum_update(checksum, (const guchar *)parts[i], (gssize)strlen(parts[i]) + 1);
    }
    g_checksum_get_digest(checksum, digest, &length);
    for (size_t i = 0; i < 8; i++) {
        number = number << 8 | digest[i];
    }
    /* 0 means "none" to readdir, 1 is FUSE's root. */
    return number > 1 ? number : number + 2;
}
