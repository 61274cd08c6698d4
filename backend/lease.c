/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * lease.c - the images that are being read; see lease.h.
 *
 * One table for the process, by the identity of the file and not by its name, which
 * can have several.  Its lock is held for field work only.
 */
#include "backend/lease.h"

#include <errno.h>
#include <sys/stat.h>

static struct {
    GMutex lock;
    GHashTable *counts;        /* "dev:ino" -> number; guarded by lock */
} leases;

static char *key_of(dev_t dev, ino_t ino)
{
    return g_strdup_printf("%" G_GINT64_MODIFIER "x:%" G_GINT64_MODIFIER "x", (guint64)dev,
                           (guint64)ino);
}

static void change(const BeImage *image, int by)
{
    char *key = key_of(image->dev, image->ino);
    int count;

    g_mutex_lock(&leases.lock);
    if (!leases.counts) {
        leases.counts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    }
    count = GPOINTER_TO_INT(g_hash_table_lookup(leases.counts, key)) + by;
    if (count > 0) {
        g_hash_table_replace(leases.counts, key, GINT_TO_POINTER(count));
    } else {
        g_hash_table_remove(leases.counts, key);
        g_free(key);
    }
    g_mutex_unlock(&leases.lock);
}

void be_lease_take(const BeImage *image)
{
    change(image, 1);
}

void be_lease_drop(const BeImage *image)
{
    change(image, -1);
}

gboolean be_lease_blocks(const char *path, GError **error)
{
    g_autofree char *key = NULL;
    gboolean held;
    struct stat st;

    if (stat(path, &st) < 0) {
        return FALSE;
    }
    key = S_ISBLK(st.st_mode) ? key_of(st.st_rdev, 0) : key_of(st.st_dev, st.st_ino);
    g_mutex_lock(&leases.lock);
    held = leases.counts && g_hash_table_contains(leases.counts, key);
    g_mutex_unlock(&leases.lock);
    if (held) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the image '%s' is being read through this mount; end what reads it", path);
    }
    return held;
}
