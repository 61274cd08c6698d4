/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guard.c - the armed objects; see guard.h.  Any thread, one short lock.
 */
#include "fs/guard.h"

#define ARMED_US (10 * G_USEC_PER_SEC)

typedef struct {
    char *id;                  /* NULL: everything */
    gboolean below;            /* what is below the object is armed as well */
    gboolean creation;         /* of mkdir, not of rmdir */
    gint64 until_us;           /* monotonic */
} Armed;

struct FsGuard {
    GMutex lock;
    GPtrArray *armed;          /* of Armed; guarded by lock */
};

static void armed_free(gpointer data)
{
    Armed *armed = data;

    g_free(armed->id);
    g_free(armed);
}

FsGuard *fs_guard_new(void)
{
    FsGuard *guard = g_new0(FsGuard, 1);

    g_mutex_init(&guard->lock);
    guard->armed = g_ptr_array_new_with_free_func(armed_free);
    return guard;
}

void fs_guard_free(FsGuard *guard)
{
    if (!guard) {
        return;
    }
    g_ptr_array_unref(guard->armed);
    g_mutex_clear(&guard->lock);
    g_free(guard);
}

static void expire_locked(FsGuard *guard, gint64 now_us)
{
    for (guint i = guard->armed->len; i > 0; i--) {
        Armed *armed = g_ptr_array_index(guard->armed, i - 1);

        if (armed->until_us <= now_us) {
            g_ptr_array_remove_index_fast(guard->armed, i - 1);
        }
    }
}

static void arm_locked(FsGuard *guard, const char *id, gboolean below, gboolean creation)
{
    gint64 until_us = g_get_monotonic_time() + ARMED_US;
    Armed *armed;

    for (guint i = 0; i < guard->armed->len; i++) {
        armed = g_ptr_array_index(guard->armed, i);
        if (g_strcmp0(armed->id, id) == 0 && armed->below == below
            && armed->creation == creation) {
            armed->until_us = until_us;
            return;
        }
    }
    armed = g_new0(Armed, 1);
    armed->id = g_strdup(id);
    armed->below = below;
    armed->creation = creation;
    armed->until_us = until_us;
    g_ptr_array_add(guard->armed, armed);
}

/* The object with all below it, and the objects above it alone. */
static void arm(FsGuard *guard, FsItem *item, gboolean creation)
{
    g_mutex_lock(&guard->lock);
    expire_locked(guard, g_get_monotonic_time());
    arm_locked(guard, item ? item->id : NULL, TRUE, creation);
    for (FsItem *above = item ? item->parent : NULL; above; above = above->parent) {
        arm_locked(guard, above->id, FALSE, creation);
    }
    g_mutex_unlock(&guard->lock);
}

void fs_guard_removal_refused(FsGuard *guard, FsItem *item)
{
    arm(guard, item, FALSE);
}

void fs_guard_creation_refused(FsGuard *guard, FsItem *item)
{
    if (item) {
        arm(guard, item, TRUE);
    }
}

static gboolean armed_means(const Armed *armed, FsItem *item)
{
    if (!armed->id) {
        return TRUE;
    }
    if (armed->below) {
        return fs_item_is_within(item, armed->id);
    }
    return item && g_str_equal(item->id, armed->id);
}

static guint check(FsGuard *guard, FsItem *item, gboolean creation)
{
    gint64 now_us = g_get_monotonic_time();
    gint64 left_us = 0;

    g_mutex_lock(&guard->lock);
    expire_locked(guard, now_us);
    for (guint i = 0; i < guard->armed->len; i++) {
        const Armed *armed = g_ptr_array_index(guard->armed, i);

        if (armed->creation == creation && armed_means(armed, item)) {
            left_us = MAX(left_us, armed->until_us - now_us);
        }
    }
    g_mutex_unlock(&guard->lock);
    return (guint)((left_us + G_USEC_PER_SEC - 1) / G_USEC_PER_SEC);
}

guint fs_guard_check_removal(FsGuard *guard, FsItem *item)
{
    return check(guard, item, FALSE);
}

guint fs_guard_check_creation(FsGuard *guard, FsItem *item)
{
    return check(guard, item, TRUE);
}
