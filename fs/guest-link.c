/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guest-link.c - the texts of links, made harmless; see guest-link.h.
 *
 * Counting ".." against names is not enough: "l/../../x" is harmless by count,
 * and where "l" is a link that leads upwards, it leads out.  So no ".." may come
 * behind a name, and those in front are counted against real directories.
 */
#include "fs/guest-link.h"

#include <string.h>

/* Takes "name/.." out; FALSE where that may not be done. */
static gboolean take_parent(GPtrArray *names, guint *up, gboolean absolute, gboolean plain)
{
    if (names->len > 0) {
        g_ptr_array_set_size(names, (int)names->len - 1);
        return plain;
    }
    if (!absolute) {
        (*up)++;
    }
    return TRUE;
}

static char *join(const GPtrArray *names, guint up)
{
    GString *out = g_string_new(NULL);

    for (guint i = 0; i < up; i++) {
        g_string_append(out, out->len ? "/.." : "..");
    }
    for (guint i = 0; i < names->len; i++) {
        g_string_append_printf(out, "%s%s", out->len ? "/" : "",
                               (const char *)g_ptr_array_index(names, i));
    }
    if (out->len == 0) {
        g_string_append_c(out, '.');
    }
    return g_string_free(out, FALSE);
}

char *fs_guest_link(const char *target, guint depth, gboolean plain)
{
    g_auto(GStrv) parts = g_strsplit(target, "/", -1);
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    gboolean absolute = *target == '/';
    guint up = 0;

    if (!*target) {
        return NULL;
    }
    for (guint i = 0; parts[i]; i++) {
        if (strcmp(parts[i], "..") == 0) {
            if (!take_parent(names, &up, absolute, plain)) {
                return NULL;
            }
        } else if (*parts[i] && strcmp(parts[i], ".") != 0) {
            g_ptr_array_add(names, parts[i]);
        }
    }
    if (up > depth) {
        return NULL;
    }
    return join(names, absolute ? depth : up);
}
