/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * failures.c - rings of failure lines by object identity; see failures.h.
 *
 * Any thread; one lock, held for list work only.
 */
#include "fs/failures.h"

#include <errno.h>
#include <string.h>

#define LINES_KEPT 16

/* The newest lines of one object. */
typedef struct {
    GQueue lines;              /* of char * */
    guint64 last;              /* sequence number of the newest */
} Ring;

struct FsFailures {
    GMutex lock;
    GHashTable *rings;         /* id -> Ring; guarded by lock */
    guint64 sequence;          /* guarded by lock */
};

const char *fs_errno_name(int errnum)
{
    const char *name = errnum ? strerrorname_np(errnum) : "OK";

    return name ? name : "EUNKNOWN";
}

/* Control characters, and what ends a line or turns its direction. */
static gboolean hurts_on_a_line(gunichar c)
{
    GUnicodeType type = g_unichar_type(c);

    return g_unichar_iscntrl(c) || type == G_UNICODE_FORMAT || type == G_UNICODE_LINE_SEPARATOR
           || type == G_UNICODE_PARAGRAPH_SEPARATOR;
}

char *fs_escape_line(const char *text)
{
    GString *out = g_string_sized_new(strlen(text));

    while (*text) {
        gunichar c = g_utf8_get_char_validated(text, -1);

        if (c == (gunichar)-1 || c == (gunichar)-2) {
            g_string_append_printf(out, "\\x%02X", (guint8)*text);
            text++;
        } else if (hurts_on_a_line(c)) {
            g_string_append_printf(out, c < 0x100 ? "\\x%02X" : "\\u%04X", c);
            text = g_utf8_next_char(text);
        } else {
            g_string_append_unichar(out, c);
            text = g_utf8_next_char(text);
        }
    }
    return g_string_free(out, FALSE);
}

char *fs_time_text(gint64 time_us)
{
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_utc(time_us / G_USEC_PER_SEC);
    g_autofree char *seconds = time ? g_date_time_format(time, "%Y-%m-%dT%H:%M:%S") : NULL;

    return g_strdup_printf("%s.%03dZ", seconds ? seconds : "0000-00-00T00:00:00",
                           (int)(time_us % G_USEC_PER_SEC / 1000));
}

static void ring_free(gpointer data)
{
    Ring *ring = data;

    g_queue_clear_full(&ring->lines, g_free);
    g_free(ring);
}

FsFailures *fs_failures_new(void)
{
    FsFailures *failures = g_new0(FsFailures, 1);

    g_mutex_init(&failures->lock);
    failures->rings = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, ring_free);
    return failures;
}

void fs_failures_free(FsFailures *failures)
{
    if (!failures) {
        return;
    }
    g_hash_table_unref(failures->rings);
    g_mutex_clear(&failures->lock);
    g_free(failures);
}

static char *line_new(guint64 sequence, const BeCaller *caller, const char *operation, int errnum,
                      const char *text)
{
    g_autofree char *when = fs_time_text(g_get_real_time());
    g_autofree char *who = caller ? g_strdup_printf("pid=%d uid=%u", (int)caller->pid, caller->uid)
                                  : g_strdup("vmsnapfs");
    g_autofree char *operation_line = fs_escape_line(operation);
    g_autofree char *text_line = fs_escape_line(text);

    return g_strdup_printf("%" G_GUINT64_FORMAT " %s %s '%s' %s: %s\n", sequence, when, who,
                           operation_line, fs_errno_name(errnum), text_line);
}

/*
 * Nobody tells of a snapshot or checkpoint that is gone, nor of a domain that failed
 * and was removed before its failure came here: what was silent longest goes.
 */
static void make_room_locked(FsFailures *failures)
{
    guint64 oldest = G_MAXUINT64;
    gpointer victim = NULL;
    GHashTableIter iter;
    gpointer id, data;

    g_hash_table_iter_init(&iter, failures->rings);
    while (g_hash_table_iter_next(&iter, &id, &data)) {
        const Ring *ring = data;

        if (ring->last < oldest) {
            oldest = ring->last;
            victim = id;
        }
    }
    g_hash_table_remove(failures->rings, victim);
}

static void append_locked(FsFailures *failures, const char *id, const char *line)
{
    Ring *ring = g_hash_table_lookup(failures->rings, id);

    if (!ring) {
        if (g_hash_table_size(failures->rings) >= FS_FAILURES_OBJECTS) {
            make_room_locked(failures);
        }
        ring = g_new0(Ring, 1);
        g_hash_table_insert(failures->rings, g_strdup(id), ring);
    }
    ring->last = failures->sequence;
    g_queue_push_tail(&ring->lines, g_strdup(line));
    while (ring->lines.length > LINES_KEPT) {
        g_free(g_queue_pop_head(&ring->lines));
    }
}

void fs_failures_add(FsFailures *failures, FsItem *item, const BeCaller *caller,
                     const char *operation, int errnum, const char *text)
{
    g_autofree char *line = NULL;

    g_mutex_lock(&failures->lock);
    failures->sequence++;
    line = line_new(failures->sequence, caller, operation, errnum, text);
    for (; item; item = item->parent) {
        if (!item->is_part) {
            append_locked(failures, item->id, line);
        }
    }
    g_mutex_unlock(&failures->lock);
}

void fs_failures_add_id(FsFailures *failures, const char *id, const BeCaller *caller,
                        const char *operation, int errnum, const char *text)
{
    g_autofree char *line = NULL;

    g_mutex_lock(&failures->lock);
    failures->sequence++;
    line = line_new(failures->sequence, caller, operation, errnum, text);
    append_locked(failures, id, line);
    g_mutex_unlock(&failures->lock);
}

void fs_failures_print(FsFailures *failures, const char *id, GString *out)
{
    const Ring *ring;

    g_mutex_lock(&failures->lock);
    ring = g_hash_table_lookup(failures->rings, id);
    for (GList *link = ring ? ring->lines.head : NULL; link; link = link->next) {
        g_string_append(out, link->data);
    }
    g_mutex_unlock(&failures->lock);
}

void fs_failures_drop(FsFailures *failures, const char *id)
{
    g_mutex_lock(&failures->lock);
    g_hash_table_remove(failures->rings, id);
    g_mutex_unlock(&failures->lock);
}
