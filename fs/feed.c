/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * feed.c - a ring of event lines with waiters; see feed.h.
 *
 * Any thread; one lock, dropped before a waiter is woken.
 */
#include "fs/feed.h"

#include <json-glib/json-glib.h>
#include <string.h>

#include "fs/failures.h"

#define LINES_KEPT 1000

typedef struct {
    FsFeedWake wake;
    gpointer user;
} Waiter;

struct FsFeed {
    GMutex lock;
    GQueue lines;              /* of char *; guarded by lock */
    guint64 end;               /* number of lines ever added; guarded by lock */
    GArray *waiters;           /* of Waiter; guarded by lock */
    gboolean closed;           /* guarded by lock */
};

FsFeed *fs_feed_new(void)
{
    FsFeed *feed = g_new0(FsFeed, 1);

    g_mutex_init(&feed->lock);
    g_queue_init(&feed->lines);
    feed->waiters = g_array_new(FALSE, FALSE, sizeof(Waiter));
    return feed;
}

void fs_feed_free(FsFeed *feed)
{
    if (!feed) {
        return;
    }
    g_queue_clear_full(&feed->lines, g_free);
    g_array_unref(feed->waiters);
    g_mutex_clear(&feed->lock);
    g_free(feed);
}

static const char *event_name(BeEventKind kind)
{
    switch (kind) {
    case BE_EVENT_CONNECTED:
        return "connected";
    case BE_EVENT_DISCONNECTED:
        return "disconnected";
    case BE_EVENT_DOMAIN_ADDED:
        return "domain-added";
    case BE_EVENT_DOMAIN_REMOVED:
        return "domain-removed";
    case BE_EVENT_DOMAIN_STATE:
        return "domain-state";
    case BE_EVENT_BACKUP_STARTED:
        return "backup-started";
    case BE_EVENT_BACKUP_ENDED:
        return "backup-ended";
    case BE_EVENT_BACKUP_FAILED:
        return "backup-failed";
    case BE_EVENT_WARNING:
        return "warning";
    }
    return "unknown";
}

/* JSON is UTF-8 and libvirt's names need not be. */
static void add_string(JsonBuilder *builder, const char *key, const char *value)
{
    g_autofree char *valid = NULL;

    if (!value) {
        return;
    }
    valid = g_utf8_make_valid(value, -1);
    json_builder_set_member_name(builder, key);
    json_builder_add_string_value(builder, valid);
}

static char *event_line(const BeEvent *event, guint64 sequence)
{
    g_autoptr(JsonBuilder) builder = json_builder_new();
    g_autoptr(JsonNode) root = NULL;
    g_autofree char *when = fs_time_text(event->time_us);
    g_autofree char *text = NULL;

    json_builder_begin_object(builder);
    json_builder_set_member_name(builder, "seq");
    json_builder_add_int_value(builder, (gint64)sequence);
    add_string(builder, "time", when);
    add_string(builder, "event", event_name(event->kind));
    add_string(builder, "domain", event->domain_name);
    add_string(builder, "uuid", event->domain_uuid);
    add_string(builder, "object", event->object_name);
    add_string(builder, "errno", event->errnum ? fs_errno_name(event->errnum) : NULL);
    add_string(builder, "text", event->text);
    json_builder_end_object(builder);
    root = json_builder_get_root(builder);
    text = json_to_string(root, FALSE);
    return g_strconcat(text, "\n", NULL);
}

static void wake_all(GArray *waiters)
{
    for (guint i = 0; i < waiters->len; i++) {
        const Waiter *waiter = &g_array_index(waiters, Waiter, i);

        waiter->wake(waiter->user);
    }
    g_array_unref(waiters);
}

static GArray *steal_waiters_locked(FsFeed *feed)
{
    GArray *waiters = feed->waiters;

    feed->waiters = g_array_new(FALSE, FALSE, sizeof(Waiter));
    return waiters;
}

void fs_feed_add(FsFeed *feed, const BeEvent *event)
{
    GArray *waiters;

    g_mutex_lock(&feed->lock);
    g_queue_push_tail(&feed->lines, event_line(event, ++feed->end));
    if (g_queue_get_length(&feed->lines) > LINES_KEPT) {
        g_free(g_queue_pop_head(&feed->lines));
    }
    waiters = steal_waiters_locked(feed);
    g_mutex_unlock(&feed->lock);
    wake_all(waiters);
}

void fs_feed_print(FsFeed *feed, GString *out)
{
    g_mutex_lock(&feed->lock);
    for (GList *link = feed->lines.head; link; link = link->next) {
        g_string_append(out, link->data);
    }
    g_mutex_unlock(&feed->lock);
}

gboolean fs_feed_next(FsFeed *feed, FsFeedCursor *cursor, gsize max, GString *out)
{
    guint64 oldest;

    g_mutex_lock(&feed->lock);
    oldest = feed->end - g_queue_get_length(&feed->lines);
    if (cursor->line < oldest) {
        *cursor = (FsFeedCursor){.line = oldest};
    }
    for (GList *link = g_queue_peek_nth_link(&feed->lines, (guint)(cursor->line - oldest)); link;
         link = link->next) {
        const char *rest = (const char *)link->data + cursor->byte;
        gsize length = strlen(rest), room = max - out->len;

        if (length > room) {
            if (out->len == 0) {
                g_string_append_len(out, rest, (gssize)room);
                cursor->byte += room;
            }
            break;
        }
        g_string_append(out, rest);
        *cursor = (FsFeedCursor){.line = cursor->line + 1};
    }
    g_mutex_unlock(&feed->lock);
    return out->len > 0;
}

void fs_feed_wait(FsFeed *feed, const FsFeedCursor *cursor, FsFeedWake wake, gpointer user)
{
    Waiter waiter = {.wake = wake, .user = user};
    gboolean at_once;

    g_mutex_lock(&feed->lock);
    at_once = feed->closed || cursor->line < feed->end;
    if (!at_once) {
        g_array_append_val(feed->waiters, waiter);
    }
    g_mutex_unlock(&feed->lock);
    if (at_once) {
        wake(user);
    }
}

gboolean fs_feed_cancel(FsFeed *feed, gconstpointer user)
{
    gboolean found = FALSE;

    g_mutex_lock(&feed->lock);
    for (guint i = 0; i < feed->waiters->len && !found; i++) {
        if (g_array_index(feed->waiters, Waiter, i).user == user) {
            g_array_remove_index_fast(feed->waiters, i);
            found = TRUE;
        }
    }
    g_mutex_unlock(&feed->lock);
    return found;
}

void fs_feed_close(FsFeed *feed)
{
    GArray *waiters;

    g_mutex_lock(&feed->lock);
    feed->closed = TRUE;
    waiters = steal_waiters_locked(feed);
    g_mutex_unlock(&feed->lock);
    wake_all(waiters);
}

gboolean fs_feed_closed(FsFeed *feed)
{
    gboolean closed;

    g_mutex_lock(&feed->lock);
    closed = feed->closed;
    g_mutex_unlock(&feed->lock);
    return closed;
}
