/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * self.c - the rows of .vmsnapfs; any thread, never blocks.
 */
#include "fs/self.h"

#include "fs/private.h"

gboolean fs_self_show_uri(Fs *fs, FsItem *item G_GNUC_UNUSED, GString *out,
                          GError **error G_GNUC_UNUSED)
{
    g_string_append_printf(out, "%s\n", be_uri(fs->be));
    return TRUE;
}

gboolean fs_self_show_version(Fs *fs, FsItem *item G_GNUC_UNUSED, GString *out,
                              GError **error G_GNUC_UNUSED)
{
    g_string_append_printf(out, "%s\n", fs->version);
    return TRUE;
}

gboolean fs_self_show_stats(Fs *fs, FsItem *item G_GNUC_UNUSED, GString *out,
                            GError **error G_GNUC_UNUSED)
{
    g_string_append_printf(out, "requests: %d\n", g_atomic_int_get(&fs->requests));
    g_string_append_printf(out, "nodes: %u\n", fs_node_table_size(fs->nodes));
    g_string_append_printf(out, "open-files: %d\n", g_atomic_int_get(&fs->open_files));
    be_stats_print(fs->be, out);
    return TRUE;
}

gboolean fs_self_show_events(Fs *fs, FsItem *item G_GNUC_UNUSED, GString *out,
                             GError **error G_GNUC_UNUSED)
{
    fs_feed_print(fs->feed, out);
    return TRUE;
}

void fs_self_fetch_capabilities(Fs *fs, FsItem *item G_GNUC_UNUSED, BeTextDone done, gpointer user)
{
    be_capabilities_fetch(fs->be, done, user);
}
