/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-hold.c - images that are held while somebody reads; see image-hold.h.
 *
 * Workers and FUSE threads.  `opening` is held while the images are opened, which
 * blocks; `lock` for a few instructions.  Order: opening > lock.
 */
#include "backend/image-hold.h"

#include "backend/lease.h"

struct BeImageHold {
    GPtrArray *chain;          /* of BeImage */
    gboolean (*check)(gpointer user, GError **error);
    gpointer user;
    GMutex opening;
    GMutex lock;
    BeImageMap *map;           /* guarded by lock; NULL: nothing is open */
    guint users;               /* guarded by lock; those who have the map */
    gboolean resting;          /* guarded by lock; the last of them closes it */
};

BeImageHold *be_image_hold_new(GPtrArray *chain, gboolean (*check)(gpointer user, GError **error),
                               gpointer user)
{
    BeImageHold *hold = g_new0(BeImageHold, 1);

    hold->chain = g_ptr_array_ref(chain);
    hold->check = check;
    hold->user = user;
    g_mutex_init(&hold->opening);
    g_mutex_init(&hold->lock);
    return hold;
}

void be_image_hold_free(BeImageHold *hold)
{
    be_image_map_free(hold->map);
    g_ptr_array_unref(hold->chain);
    g_mutex_clear(&hold->lock);
    g_mutex_clear(&hold->opening);
    g_free(hold);
}

BeImageMap *be_image_hold_take_open(BeImageHold *hold)
{
    BeImageMap *map;

    g_mutex_lock(&hold->lock);
    map = hold->map;
    hold->users += map != NULL;
    g_mutex_unlock(&hold->lock);
    return map;
}

static void lease(const BeImageHold *hold, void (*change)(const BeImage *image))
{
    for (guint i = 0; i < hold->chain->len; i++) {
        change(g_ptr_array_index(hold->chain, i));
    }
}

/*
 * Whoever writes asks for the lease first, and whoever reads looks at the images under
 * it: so one of the two sees the other.
 */
static BeImageMap *open_checked(const BeImageHold *hold, GError **error)
{
    BeImageMap *map = NULL;

    lease(hold, be_lease_take);
    if (!hold->check || hold->check(hold->user, error)) {
        map = be_image_map_open(hold->chain, error);
    }
    lease(hold, be_lease_drop);
    return map;
}

BeImageMap *be_image_hold_take(BeImageHold *hold, GError **error)
{
    BeImageMap *map;

    g_mutex_lock(&hold->opening);
    map = be_image_hold_take_open(hold);
    if (!map && (map = open_checked(hold, error))) {
        g_mutex_lock(&hold->lock);
        hold->map = map;
        hold->users = 1;
        hold->resting = FALSE;
        g_mutex_unlock(&hold->lock);
    }
    g_mutex_unlock(&hold->opening);
    return map;
}

/* Returns: what is to be closed now, without the lock, or NULL. */
static BeImageMap *unused_locked(BeImageHold *hold)
{
    return hold->resting && hold->users == 0 ? g_steal_pointer(&hold->map) : NULL;
}

void be_image_hold_give(BeImageHold *hold)
{
    BeImageMap *unused;

    g_mutex_lock(&hold->lock);
    hold->users--;
    unused = unused_locked(hold);
    g_mutex_unlock(&hold->lock);
    be_image_map_free(unused);
}

void be_image_hold_rest(BeImageHold *hold)
{
    BeImageMap *unused;

    g_mutex_lock(&hold->lock);
    hold->resting = TRUE;
    unused = unused_locked(hold);
    g_mutex_unlock(&hold->lock);
    be_image_map_free(unused);
}
