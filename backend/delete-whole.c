/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * delete-whole.c - whether a snapshot whose deletion failed is still what it was.
 *
 * Its deletion writes into the image that holds it.  A failure before the first byte
 * (no lock, no room for a job, a host that refuses) costs nothing; one after it cannot
 * be taken back, and the snapshot must never be read or reverted to again.
 *
 * Action workers, one per domain.
 */
#include <string.h>
#include <sys/stat.h>

#include "backend/delete.h"

/* An image that is a file shows each write in its times. */
typedef struct {
    char *path;
    gboolean known;
    struct stat attr;
} DeleteStamp;

static void stamp_clear(gpointer data)
{
    DeleteStamp *stamp = data;

    g_free(stamp->path);
}

GArray *delete_stamps_new(void)
{
    GArray *stamps = g_array_new(FALSE, FALSE, sizeof(DeleteStamp));

    g_array_set_clear_func(stamps, stamp_clear);
    return stamps;
}

static gboolean stamp_now(const char *path, struct stat *ret)
{
    return stat(path, ret) == 0 && S_ISREG(ret->st_mode);
}

static gboolean is_untouched(const DeletePlan *plan)
{
    for (guint i = 0; i < plan->stamps->len; i++) {
        const DeleteStamp *stamp = &g_array_index(plan->stamps, DeleteStamp, i);
        struct stat now;

        if (!stamp->known || !stamp_now(stamp->path, &now)
            || now.st_ino != stamp->attr.st_ino || now.st_size != stamp->attr.st_size
            || now.st_blocks != stamp->attr.st_blocks
            || memcmp(&now.st_mtim, &stamp->attr.st_mtim, sizeof now.st_mtim) != 0) {
            return FALSE;
        }
    }
    return TRUE;
}

void delete_look(DeletePlan *plan, const char *name)
{
    g_array_set_size(plan->stamps, 0);
    plan->begun = !be_change_is_whole(plan->be, plan->uuid, name, NULL);
    plan->broken_before = plan->begun;
    for (guint i = 0; i < plan->disks->len; i++) {
        const DeleteDisk *disk = g_ptr_array_index(plan->disks, i);
        DeleteStamp stamp = {.known = FALSE};

        if (disk->fate == DELETE_MERGES) {
            stamp.path = g_strdup(disk->to);
            stamp.known = stamp_now(disk->to, &stamp.attr);
            g_array_append_val(plan->stamps, stamp);
        }
    }
}

gboolean delete_begin(DeletePlan *plan, const char *name, GError **error)
{
    if (plan->stamps->len == 0) {
        return TRUE;
    }
    if (!be_change_break(plan->be, plan->uuid, name, error)) {
        return FALSE;
    }
    plan->begun = TRUE;
    return TRUE;
}

void delete_take_back(DeletePlan *plan, const char *name, GError **error)
{
    if (!plan->begun) {
        return;
    }
    if (!plan->broken_before && is_untouched(plan)) {
        plan->begun = FALSE;
        be_change_mend(plan->be, plan->uuid, name);
        return;
    }
    if (error && *error) {
        g_autofree char *before = g_steal_pointer(&(*error)->message);

        (*error)->message =
            g_strdup_printf("%s; the image of the snapshot '%s' was written to, so that it can "
                            "only be deleted now (rmdir snapshots/%s)",
                            before, name, name);
    }
}
