/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mounts.c - /proc/self/mountinfo; see mounts.h.
 *
 * Pure functions but for the reading of one file that never blocks: any thread.
 */
#include "mounts.h"

#include <string.h>

void vm_mount_free(VmMount *mount)
{
    if (!mount) {
        return;
    }
    g_free(mount->device);
    g_free(mount->root);
    g_free(mount->mountpoint);
    g_free(mount->fstype);
    g_free(mount->source);
    g_free(mount);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmMount, vm_mount_free)

/*
 * The kernel writes blank, tab, newline, backslash and '#' as a backslash and
 * three octal digits; a backslash before anything else stays.
 */
static char *field_unescape(const char *field)
{
    GString *out = g_string_new(NULL);

    for (const char *at = field; *at; at++) {
        if (at[0] == '\\' && at[1] >= '0' && at[1] <= '3' && at[2] >= '0' && at[2] <= '7'
            && at[3] >= '0' && at[3] <= '7') {
            g_string_append_c(out, (char)(((at[1] - '0') << 6) | ((at[2] - '0') << 3)
                                          | (at[3] - '0')));
            at += 3;
        } else {
            g_string_append_c(out, *at);
        }
    }
    return g_string_free(out, FALSE);
}

static gboolean number_parse(const char *text, guint *ret_number)
{
    guint64 number;

    if (!g_ascii_string_to_unsigned(text, 10, 0, G_MAXUINT, &number, NULL)) {
        return FALSE;
    }
    *ret_number = (guint)number;
    return TRUE;
}

/*
 * 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
 * The words before the lone "-" vary in number.
 */
static VmMount *line_parse(const char *line)
{
    g_auto(GStrv) words = g_strsplit(line, " ", -1);
    g_autoptr(VmMount) mount = g_new0(VmMount, 1);
    guint n = g_strv_length(words);
    guint dash = 6;

    while (dash < n && !g_str_equal(words[dash], "-")) {
        dash++;
    }
    if (dash + 2 >= n || !number_parse(words[0], &mount->id)
        || !number_parse(words[1], &mount->parent)) {
        return NULL;
    }
    mount->device = g_strdup(words[2]);
    mount->root = field_unescape(words[3]);
    mount->mountpoint = field_unescape(words[4]);
    mount->fstype = field_unescape(words[dash + 1]);
    mount->source = field_unescape(words[dash + 2]);
    return g_steal_pointer(&mount);
}

GPtrArray *vm_mounts_parse(const char *text)
{
    GPtrArray *mounts = g_ptr_array_new_with_free_func((GDestroyNotify)vm_mount_free);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    for (char **line = lines; *line; line++) {
        VmMount *mount = line_parse(*line);

        if (mount) {
            g_ptr_array_add(mounts, mount);
        }
    }
    return mounts;
}

GPtrArray *vm_mounts_read(GError **error)
{
    g_autofree char *text = NULL;

    if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, error)) {
        return NULL;
    }
    return vm_mounts_parse(text);
}

static gboolean mount_is_covered(GPtrArray *mounts, const VmMount *mount)
{
    for (guint i = 0; i < mounts->len; i++) {
        const VmMount *other = g_ptr_array_index(mounts, i);

        if (other->parent == mount->id && other->id != mount->id
            && g_str_equal(other->mountpoint, mount->mountpoint)) {
            return TRUE;
        }
    }
    return FALSE;
}

const VmMount *vm_mounts_at(GPtrArray *mounts, const char *mountpoint)
{
    for (guint i = mounts->len; i > 0; i--) {
        const VmMount *mount = g_ptr_array_index(mounts, i - 1);

        if (g_str_equal(mount->mountpoint, mountpoint) && !mount_is_covered(mounts, mount)) {
            return mount;
        }
    }
    return NULL;
}
