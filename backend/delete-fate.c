/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * delete-fate.c - what becomes of the images of a snapshot that is deleted.
 *
 * Action workers.
 */
#include <errno.h>
#include <string.h>

#include "backend/delete.h"

static gboolean is_in_chain(const BeTree *tree, const char *target, const BeTreeImage *image)
{
    return be_tree_is_below(be_tree_top(tree, target), image);
}

static void note_merge(const BeTree *tree, const BeTreeDisk *disk, const BeTreeImage *only,
                       DeleteDisk *row)
{
    row->fate = DELETE_MERGES;
    row->from = g_strdup(only->path);
    row->in_use = is_in_chain(tree, disk->target, only);
    row->top = only->top;
}

static gboolean decide_merge(const BeTree *tree, const BeTreeSnapshot *snapshot,
                             const BeTreeDisk *disk, DeleteDisk *row, GError **error)
{
    const BeTreeImage *only = g_ptr_array_index(disk->base->children, 0);
    const char *inside = be_tree_inside(tree, only);

    if (inside) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the internal snapshot '%s' is in '%s', which would be merged into the image "
                    "of '%s' and go; delete '%s' first",
                    inside, only->path, snapshot->xml->name, inside);
        return FALSE;
    }
    if (only->block) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "'%s', which stands on the snapshot '%s', is a block device and no overlay of "
                    "libvirt's; only 'delete metadata' is possible",
                    only->path, snapshot->xml->name);
        return FALSE;
    }
    note_merge(tree, disk, only, row);
    return TRUE;
}

static gboolean decide_disk(const BeTree *tree, const BeTreeSnapshot *snapshot,
                            const BeTreeDisk *disk, DeleteDisk *row, GError **error)
{
    BeTreeImage *base = disk->base;

    if (!base) {
        g_set_error(error, BE_ERROR, EIO,
                    "%s; what hangs on the snapshot '%s' cannot be known, only 'delete metadata' "
                    "is possible",
                    tree->unreadable, snapshot->xml->name);
        return FALSE;
    }
    row->to = g_strdup(base->path);
    row->format = g_strdup(base->format);
    row->block = base->block;
    if (base->pins > 1 || base->top || base->children->len > 1) {
        row->fate = DELETE_KEEPS;
        return TRUE;
    }
    if (base->children->len == 0) {
        row->fate = base->inner > 0 ? DELETE_KEEPS : DELETE_REMOVES;
        return TRUE;
    }
    return decide_merge(tree, snapshot, disk, row, error);
}

/* Nobody else may stand on what is written to, or on what goes. */
static gboolean check_others(const DeletePlan *plan, const BeTree *tree, const char *path,
                             GError **error)
{
    g_autoptr(BeVirConnect) conn = be_conn_get(plan->be->action_conn, error);
    BeTreeImage *image = be_tree_image(tree, path);
    g_autoptr(GError) list_error = NULL;
    g_autofree char *user = NULL;

    if (!conn || !image) {
        if (conn) {
            g_set_error(error, BE_ERROR, EIO, "the image '%s' is gone", path);
        }
        return FALSE;
    }
    user = be_change_used_elsewhere(conn, plan->uuid, image, &list_error);
    if (list_error) {
        g_propagate_error(error, g_steal_pointer(&list_error));
        return FALSE;
    }
    if (user) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the domain '%s' uses '%s', which would be written to or removed", user, path);
        return FALSE;
    }
    return TRUE;
}

gboolean delete_is_ours_alone(const DeletePlan *plan, const BeTree *tree, const DeleteDisk *disk,
                              GError **error)
{
    return check_others(plan, tree, disk->to, error) && check_others(plan, tree, disk->from, error);
}

gboolean delete_decide(DeletePlan *plan, const BeTree *tree, const BeTreeSnapshot *snapshot,
                       GError **error)
{
    g_ptr_array_set_size(plan->disks, 0);
    if (tree->unreadable) {
        g_set_error(error, BE_ERROR, EIO,
                    "%s; what hangs on the snapshot '%s' cannot be known, only 'delete metadata' "
                    "is possible",
                    tree->unreadable, snapshot->xml->name);
        return FALSE;
    }
    for (guint i = 0; i < snapshot->disks->len; i++) {
        const BeTreeDisk *disk = g_ptr_array_index(snapshot->disks, i);
        DeleteDisk *row = g_new0(DeleteDisk, 1);

        row->target = g_strdup(disk->target);
        g_ptr_array_add(plan->disks, row);
        if (!decide_disk(tree, snapshot, disk, row, error)
            || (row->fate == DELETE_MERGES
                && !delete_is_ours_alone(plan, tree, row, error))) {
            return FALSE;
        }
    }
    return TRUE;
}

gboolean delete_is_libvirts(const DeletePlan *plan, const BeTree *tree,
                            const BeTreeSnapshot *snapshot)
{
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *row = g_ptr_array_index(plan->disks, i);
        const BeTreeDisk *disk = be_tree_disk(snapshot, row->target);
        const BeTreeImage *from = row->from ? be_tree_image(tree, row->from) : NULL;
        const BeTreeImage *above =
            from && from->children->len == 1 ? g_ptr_array_index(from->children, 0) : NULL;

        if (!from || !row->in_use || !disk->overlay || be_tree_image(tree, disk->overlay) != from
            || from->children->len > 1
            || (above && !is_in_chain(tree, row->target, above))) {
            return FALSE;
        }
    }
    return plan->disks->len > 0;
}
