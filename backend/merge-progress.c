/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * merge-progress.c - how far actions are; see merge-progress.h.
 *
 * Action workers write, query workers print; `rows` has a lock of its own, inside
 * which nothing else is locked.
 */
#include "backend/merge-progress.h"

typedef struct {
    const char *kind;
    char *object;
    guint64 done;
    guint64 total;
} Progress;

G_LOCK_DEFINE_STATIC(rows);
static GHashTable *rows;       /* uuid -> Progress; guarded by its lock */

static void progress_free(gpointer data)
{
    Progress *progress = data;

    g_free(progress->object);
    g_free(progress);
}

void be_progress_set(const char *uuid, const char *kind, const char *object, guint64 done,
                     guint64 total)
{
    Progress *progress = g_new0(Progress, 1);

    progress->kind = kind;
    progress->object = g_strdup(object);
    progress->done = done;
    progress->total = total;
    G_LOCK(rows);
    if (!rows) {
        rows = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, progress_free);
    }
    g_hash_table_replace(rows, g_strdup(uuid), progress);
    G_UNLOCK(rows);
}

void be_progress_clear(const char *uuid)
{
    G_LOCK(rows);
    if (rows) {
        g_hash_table_remove(rows, uuid);
    }
    G_UNLOCK(rows);
}

gboolean be_progress_print(const char *uuid, GString *out)
{
    const Progress *progress;

    G_LOCK(rows);
    progress = rows ? g_hash_table_lookup(rows, uuid) : NULL;
    if (progress) {
        g_string_append_printf(out, "kind: %s\nobject: %s\n", progress->kind,
                               progress->object);
    }
    if (progress && progress->total > 0) {
        guint64 done = MIN(progress->done, progress->total);

        g_string_append_printf(out,
                               "bytes: %" G_GUINT64_FORMAT "\nbytes-total: %" G_GUINT64_FORMAT
                               "\npercent: %.1f\n",
                               done, progress->total,
                               100.0 * (double)done / (double)progress->total);
    }
    G_UNLOCK(rows);
    return progress != NULL;
}
