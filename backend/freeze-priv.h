/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * freeze-priv.h - what freeze.c and freeze-command.c share.
 */
#pragma once

#include "backend/freeze.h"
#include "backend/watchdog.h"

/* The watchdog is the second line: it comes after our own timer. */
#define BE_WATCHDOG_GRACE_MS 2000

/* A guest frozen by command. */
typedef struct {
    gint64 since_us;           /* real time */
    guint seconds;
    BeConsistency consistency;
    GSource *timer;
} Held;

struct BeFreezes {
    BeWatchdog *watchdog;
    GMutex lock;
    GHashTable *held;          /* uuid -> Held; guarded by lock */
    GHashTable *retried;       /* set of uuid; guarded by lock: a thaw is due again */
    GHashTable *rebooted;      /* set of uuid; guarded by lock: since its last freeze */
    GHashTable *windows;       /* set of uuid; guarded by lock: frozen by an action */
};

void be_held_free(gpointer held);

/* Thaws what the journal says is frozen by us, unless somebody holds it so; comes again
 * until it is thawed.  Any thread, not blocking. */
void be_thaw_soon(Be *be, const char *uuid);

/* The action that froze it does not thaw it any more: somebody else does. */
void be_freeze_window_ends(Be *be, const char *uuid);

/* Calls @func with a BeThawLater on the timer thread. */
typedef struct {
    Be *be;
    char *uuid;
} BeThawLater;

GSource *be_thaw_later(Be *be, const char *uuid, guint delay_ms, GSourceFunc func);
