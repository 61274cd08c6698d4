/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * tree.c - the whole tree, as one table.
 *
 *   .vmsnapfs/   uri version capabilities stats events events.follow
 *   domains/
 *     <vm>/      uuid id state domain.xml control error job
 *       snapshots/ current
 *         <name>/  created state description parent memory snapshot.xml domain.xml control error
 *           disks/ full/ maps/ files/  as below
 *       checkpoints/ latest
 *         <name>/  created description parent checkpoint.xml domain.xml valid control error
 *           changed/ <target>
 *       backups/ latest
 *         <name>/  created state since checkpoint chain consistency backup.xml domain.xml nvram tpm
 *                  kernel initrd boot.xml control error job
 *           disks/ <target>.raw
 *           full/  <target>.qcow2
 *           incremental/ <target>.qcow2
 *           maps/  <target>.json <target>.dirty.json
 *           files/ root/ <device>/     and below them the guest's own
 *
 * A new file is one row here and one small function; vmsnapfs(5) has a line
 * for each, and a test holds the two together.  Constant; any thread.
 */
#include <errno.h>
#include <string.h>

#include "fs/backup.h"
#include "fs/checkpoint.h"
#include "fs/def.h"
#include "fs/domain.h"
#include "fs/objects.h"
#include "fs/self.h"
#include "fs/snapshot.h"

#define DIR_ROW(n, ...) {.name = n, .kind = FS_KIND_DIR, .mode = 0750, __VA_ARGS__}
#define TEXT_ROW(n, ...) {.name = n, .kind = FS_KIND_ATTR, .mode = 0640, __VA_ARGS__}
#define DATA_ROW(n, ...) {.name = n, .kind = FS_KIND_STREAM, .mode = 0640, __VA_ARGS__}
#define SECRET_ROW(n, f) \
    {.name = n, .kind = FS_KIND_STREAM, .mode = 0400, .stream = f, .flags = FS_SECRET}
#define CONTROL_ROW(v) {.name = "control", .kind = FS_KIND_CONTROL, .mode = 0600, .verbs = v}
#define LINK_ROW(n, f) {.name = n, .kind = FS_KIND_LINK, .mode = 0777, .target = f}
#define GUEST_ROW(n, ...) {.name = n, .kind = FS_KIND_GUEST, .mode = 0750, __VA_ARGS__}
#define END_ROW {.name = NULL}

static const FsDef disk_row = DATA_ROW("<target>.raw", .stream = fs_backup_disk_stream,
                                       .xattrs = fs_backup_disk_xattrs);

static const FsDef full_row =
    DATA_ROW("<target>.qcow2", .stream = fs_backup_full_stream, .prepare = fs_backup_full_prepare,
             .xattrs = fs_backup_disk_xattrs, .flags = FS_SLOW | FS_DENSE);

static const FsDef incremental_row =
    DATA_ROW("<target>.qcow2", .stream = fs_backup_incremental_stream,
             .prepare = fs_backup_incremental_prepare, .xattrs = fs_backup_increment_xattrs,
             .flags = FS_SLOW | FS_DENSE);

/* Two for each disk: TARGET.json and TARGET.dirty.json. */
static const FsDef map_row =
    TEXT_ROW("<target>.json", .fetch = fs_backup_fetch_map, .flags = FS_SLOW);

/* Below it the guest's own tree goes on, by this same row. */
static const FsDef guest_row = GUEST_ROW("<device>");

static const FsDef backup_rows[] = {
    TEXT_ROW("created", .show = fs_backup_show_created),
    TEXT_ROW("state", .show = fs_backup_show_state),
    TEXT_ROW("since", .show = fs_backup_show_since),
    TEXT_ROW("checkpoint", .show = fs_backup_show_checkpoint),
    TEXT_ROW("chain", .show = fs_backup_show_chain),
    TEXT_ROW("consistency", .show = fs_backup_show_consistency),
    TEXT_ROW("backup.xml", .show = fs_backup_show_backup_xml),
    TEXT_ROW("domain.xml", .show = fs_backup_show_domain_xml),
    SECRET_ROW("nvram", fs_backup_nvram_stream),
    SECRET_ROW("tpm", fs_backup_tpm_stream),
    DATA_ROW("kernel", .stream = fs_backup_kernel_stream),
    DATA_ROW("initrd", .stream = fs_backup_initrd_stream),
    /* Its overlays are made when it is opened. */
    TEXT_ROW("boot.xml", .fetch = fs_backup_fetch_boot_xml, .flags = FS_HIDDEN | FS_SLOW),
    CONTROL_ROW(fs_backup_verbs),
    TEXT_ROW("error", .show = fs_item_show_failures),
    TEXT_ROW("job", .show = fs_backup_show_job),
    DIR_ROW("disks", .list = fs_backup_disks_list, .child = &disk_row),
    /* Their sizes want the map, for which qemu-nbd may have to start: not for walkers. */
    DIR_ROW("full", .list = fs_backup_full_list, .child = &full_row, .flags = FS_HIDDEN),
    DIR_ROW("incremental", .list = fs_backup_incremental_list, .child = &incremental_row,
            .flags = FS_HIDDEN),
    DIR_ROW("maps", .list = fs_backup_maps_list, .child = &map_row, .flags = FS_HIDDEN),
    GUEST_ROW("files", .files = fs_backup_files, .child = &guest_row, .flags = FS_HIDDEN),
    END_ROW,
};

static const FsDef backup_row =
    DIR_ROW("<name>", .rows = backup_rows, .drop = fs_backup_drop, .xattrs = fs_backup_xattrs,
            .force = FS_BACKUP_FORCE);

static const FsDef backups_rows[] = {
    LINK_ROW("latest", fs_backups_latest),
    END_ROW,
};

static const FsDef changed_row =
    TEXT_ROW("<target>", .fetch = fs_checkpoint_fetch_changed);

static const FsDef checkpoint_rows[] = {
    TEXT_ROW("created", .show = fs_object_show_created),
    TEXT_ROW("description", .show = fs_object_show_description),
    TEXT_ROW("parent", .show = fs_object_show_parent),
    TEXT_ROW("checkpoint.xml", .fetch = fs_checkpoint_fetch_xml),
    TEXT_ROW("domain.xml", .fetch = fs_checkpoint_fetch_domain_xml),
    TEXT_ROW("valid", .fetch = fs_checkpoint_fetch_valid, .flags = FS_SLOW),
    DIR_ROW("changed", .list = fs_checkpoint_changed_list, .child = &changed_row),
    CONTROL_ROW(fs_checkpoint_verbs),
    TEXT_ROW("error", .show = fs_item_show_failures),
    END_ROW,
};

static const FsDef checkpoint_row = DIR_ROW("<name>", .rows = checkpoint_rows,
                                            .drop = fs_checkpoint_drop,
                                            .xattrs = fs_object_xattrs);

static const FsDef checkpoints_rows[] = {
    LINK_ROW("latest", fs_checkpoints_latest),
    END_ROW,
};

static const FsDef snapshot_disk_row =
    DATA_ROW("<target>.raw", .stream = fs_snapshot_disk_stream,
             .prepare = fs_snapshot_disk_prepare, .xattrs = fs_snapshot_disk_xattrs);

static const FsDef snapshot_full_row =
    DATA_ROW("<target>.qcow2", .stream = fs_snapshot_full_stream,
             .prepare = fs_snapshot_full_prepare, .xattrs = fs_snapshot_disk_xattrs,
             .flags = FS_SLOW | FS_DENSE);

static const FsDef snapshot_map_row =
    TEXT_ROW("<target>.json", .fetch = fs_snapshot_fetch_map, .flags = FS_SLOW);

static const FsDef snapshot_rows[] = {
    TEXT_ROW("created", .show = fs_object_show_created),
    TEXT_ROW("state", .show = fs_snapshot_show_state),
    TEXT_ROW("description", .show = fs_object_show_description),
    TEXT_ROW("parent", .show = fs_object_show_parent),
    TEXT_ROW("snapshot.xml", .fetch = fs_snapshot_fetch_xml),
    TEXT_ROW("domain.xml", .fetch = fs_snapshot_fetch_domain_xml),
    CONTROL_ROW(fs_snapshot_verbs),
    TEXT_ROW("error", .show = fs_item_show_failures),
    DATA_ROW("memory", .stream = fs_snapshot_memory_stream, .exists = fs_snapshot_has_memory,
             .prepare = fs_snapshot_memory_prepare, .xattrs = fs_snapshot_xattrs),
    DIR_ROW("disks", .list = fs_snapshot_disks_list, .child = &snapshot_disk_row),
    DIR_ROW("full", .list = fs_snapshot_full_list, .child = &snapshot_full_row,
            .flags = FS_HIDDEN),
    DIR_ROW("maps", .list = fs_snapshot_maps_list, .child = &snapshot_map_row,
            .flags = FS_HIDDEN),
    GUEST_ROW("files", .files = fs_snapshot_files, .child = &guest_row, .flags = FS_HIDDEN),
    END_ROW,
};

static const FsDef snapshot_row =
    DIR_ROW("<name>", .rows = snapshot_rows, .drop = fs_snapshot_drop,
            .xattrs = fs_snapshot_xattrs);

static const FsDef snapshots_rows[] = {
    LINK_ROW("current", fs_snapshots_current),
    END_ROW,
};

static const FsDef domain_rows[] = {
    TEXT_ROW("uuid", .show = fs_domain_show_uuid),
    TEXT_ROW("id", .show = fs_domain_show_id, .fresh = &fs_domains_fresh),
    TEXT_ROW("state", .show = fs_domain_show_state, .fresh = &fs_domains_fresh),
    TEXT_ROW("domain.xml", .fetch = fs_domain_fetch_xml),
    CONTROL_ROW(fs_domain_verbs),
    TEXT_ROW("error", .show = fs_item_show_failures),
    TEXT_ROW("job", .fetch = fs_domain_fetch_job),
    DIR_ROW("snapshots", .rows = snapshots_rows, .list = fs_snapshots_list, .child = &snapshot_row,
            .make = fs_snapshots_make, .fresh = &fs_snapshots_fresh),
    DIR_ROW("checkpoints", .rows = checkpoints_rows, .list = fs_checkpoints_list,
            .child = &checkpoint_row, .make = fs_checkpoints_make, .fresh = &fs_checkpoints_fresh),
    DIR_ROW("backups", .rows = backups_rows, .list = fs_backups_list, .child = &backup_row,
            .make = fs_backups_make),
    END_ROW,
};

static const FsDef domain_row = DIR_ROW("<vm>", .rows = domain_rows, .xattrs = fs_domain_xattrs);

static const FsDef self_rows[] = {
    TEXT_ROW("uri", .show = fs_self_show_uri),
    TEXT_ROW("version", .show = fs_self_show_version),
    TEXT_ROW("capabilities", .fetch = fs_self_fetch_capabilities, .flags = FS_SLOW),
    TEXT_ROW("stats", .show = fs_self_show_stats, .fresh = &fs_domains_fresh),
    TEXT_ROW("events", .show = fs_self_show_events),
    {.name = "events.follow", .kind = FS_KIND_FEED, .mode = 0640, .flags = FS_HIDDEN},
    END_ROW,
};

static const FsDef root_rows[] = {
    DIR_ROW(".vmsnapfs", .rows = self_rows, .flags = FS_HIDDEN),
    DIR_ROW("domains", .list = fs_domains_list, .child = &domain_row, .fresh = &fs_domains_fresh),
    END_ROW,
};

const FsDef fs_tree_root = DIR_ROW("", .rows = root_rows);

/* ---- The table against its own rules --------------------------------------- */

static gboolean kind_fits(const FsDef *def)
{
    gboolean listed = (def->list != NULL) == (def->child != NULL);

    if (def->prepare && def->kind != FS_KIND_STREAM) {
        return FALSE;
    }
    switch (def->kind) {
    case FS_KIND_DIR:
        return listed && (def->rows || def->list) && (!def->make || def->child)
               && !def->show && !def->fetch && !def->verbs;
    case FS_KIND_ATTR:
        return (def->show != NULL) != (def->fetch != NULL) && !def->verbs;
    case FS_KIND_CONTROL:
        return def->verbs != NULL;
    case FS_KIND_STREAM:
        return def->stream != NULL;
    case FS_KIND_FEED:
        return TRUE;
    case FS_KIND_LINK:
        return def->target != NULL;
    case FS_KIND_GUEST:
        return (def->files != NULL) == (def->child != NULL) && !def->rows;
    }
    return FALSE;
}

static mode_t mode_of_row(const FsDef *def)
{
    switch (def->kind) {
    case FS_KIND_DIR:
    case FS_KIND_GUEST:
        return 0750;
    case FS_KIND_CONTROL:
        return 0600;
    case FS_KIND_LINK:
        return 0777;
    case FS_KIND_STREAM:
        return def->flags & FS_SECRET ? 0400 : 0640;
    case FS_KIND_ATTR:
    case FS_KIND_FEED:
        return 0640;
    }
    return 0;
}

static gboolean verbs_fit(const FsVerb *verbs)
{
    for (; verbs && verbs->name; verbs++) {
        if (!verbs->run || !verbs->usage || !g_str_has_prefix(verbs->usage, verbs->name)
            || verbs->min_words > verbs->max_words) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean rows_unique(const FsDef *rows)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);

    for (; rows && rows->name; rows++) {
        if (!g_hash_table_add(names, (gpointer)rows->name) || strchr(rows->name, '/')
            || !*rows->name || g_str_equal(rows->name, ".") || g_str_equal(rows->name, "..")) {
            return FALSE;
        }
    }
    return TRUE;
}

static void check_row(const FsDef *def, const char *path, gpointer user)
{
    char **broken = user;

    if (!*broken
        && !(kind_fits(def) && def->mode == mode_of_row(def) && verbs_fit(def->verbs)
             && rows_unique(def->rows))) {
        *broken = g_strdup(path);
    }
}

gboolean fs_tree_check(const FsDef *root, GError **error)
{
    g_autofree char *broken = NULL;

    fs_tree_walk(root, check_row, &broken);
    if (broken) {
        g_set_error(error, BE_ERROR, EINVAL, "the row '%s' breaks a rule of the table", broken);
    }
    return broken == NULL;
}

static void walk(const FsDef *def, const char *path, FsTreeVisit visit, gpointer user)
{
    visit(def, path, user);
    for (const FsDef *row = def->rows; row && row->name; row++) {
        g_autofree char *below = g_strconcat(path, *path ? "/" : "", row->name, NULL);

        walk(row, below, visit, user);
    }
    if (def->child) {
        g_autofree char *below = g_strconcat(path, *path ? "/" : "", def->child->name, NULL);

        walk(def->child, below, visit, user);
    }
}

void fs_tree_walk(const FsDef *root, FsTreeVisit visit, gpointer user)
{
    walk(root, "", visit, user);
}
