/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * objects.h - the lists of a domain's snapshots and checkpoints.
 *
 * libvirt tells of neither by events, so each list is read when somebody asks
 * and it is older than 0.5 s (fresh.h).  The kinds differ only in the few
 * functions of their BeObjectOps.
 */
#pragma once

#include "backend/private.h"

/**
 * BeObjectOps: one kind of objects.  The functions block as libvirt does, but
 * for name(), parse() and clear().
 */
typedef struct {
    const char *what;          /* for messages: "snapshots" */

    /**
     * list: all of a domain; Returns: their number and @ret_handles, to be freed
     * with free(), or -1 with libvirt's error.
     */
    int (*list)(virDomainPtr domain, void ***ret_handles);
    const char *(*name)(void *handle);
    char *(*xml)(void *handle);            /* to be freed with free(); NULL: libvirt's error */
    void (*free_handle)(void *handle);

    /**
     * current: the name of the current one, to be freed with g_free(); NULL:
     * there is none.  May be NULL.
     */
    char *(*current)(virDomainPtr domain);

    /**
     * parse: an object with all but `refs`, `kind`, `domain_uuid`, `id` and
     * `owner` filled in.  NULL: EFBIG, EIO.
     */
    BeObject *(*parse)(const char *xml, GError **error);

    /**
     * owner: who made it through us, or (uid_t)-1.  May be NULL: nobody.
     */
    uid_t (*owner)(Be *be, const char *uuid, const BeObject *object);

    /**
     * clear: frees what the kind has added to BeObject.
     */
    void (*clear)(BeObject *object);
} BeObjectOps;

extern const BeObjectOps be_snapshot_ops;
extern const BeObjectOps be_checkpoint_ops;

BeObjects *be_objects_new(Be *be);
void be_objects_free(BeObjects *objects);

/**
 * be_objects_stop: wakes all that wait.
 */
void be_objects_stop(BeObjects *objects);

/**
 * be_objects_keep_only: forgets what is known of all other domains.
 */
void be_objects_keep_only(Be *be, const BeDomainList *domains);

/**
 * be_objects_read: reads the list now, so that the next who asks finds what was
 * just made or deleted.  Blocks; workers.
 */
gboolean be_objects_read(Be *be, BeObjectKind kind, const char *uuid, GError **error);

/**
 * be_object_identity: what BeObject.id is: no two objects ever have the same, for a
 * name comes back, but with another time.  To be freed with g_free().
 */
char *be_object_identity(BeObjectKind kind, const char *uuid, const char *name,
                         gint64 created_us);

/**
 * be_objects_hide, be_objects_unhide: a name that is being made, or deleted,
 * is not shown until that is over; what is said of its owner meanwhile is seen
 * afterwards.  Any thread; never blocks.
 */
void be_objects_hide(Be *be, BeObjectKind kind, const char *uuid, const char *name);
void be_objects_unhide(Be *be, BeObjectKind kind, const char *uuid, const char *name);
