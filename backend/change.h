/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * change.h - what revert, delete and commit share.
 */
#pragma once

#include "backend/job.h"
#include "backend/private.h"
#include "backend/snaptree.h"
#include "backend/xml-edit.h"

/**
 * be_change_nothing_runs: EBUSY at once where libvirt would make us wait 30 s for
 * its job lock: a backup of ours, another program's job, a block job, a machine
 * that is held; and where a freeze of ours is active.
 */
gboolean be_change_nothing_runs(Be *be, virDomainPtr domain, const char *uuid, GError **error);

/**
 * be_change_nobody_reads: EBUSY while one of the images is read through this mount.
 * Waits up to 1 s for a reader that has just closed: the kernel tells of that late;
 * servers that nobody takes data from end (be_readings_stop()).
 * @paths: (element char *)
 */
gboolean be_change_nobody_reads(Be *be, const char *uuid, const GPtrArray *paths,
                                GError **error);

/**
 * be_change_new_path: a path beside @base that does not exist now: its stem, the
 * name of the snapshot as far as a file name should hold it, and @suffix.
 * Free with g_free().
 */
char *be_change_new_path(const char *base, const char *name, const char *suffix);

/**
 * be_change_redefine: gives libvirt a snapshot's XML back, changed.  A machine that is
 * off and has checkpoints is started paused for it: EBUSY and so on as
 * be_paused_start().  Blocks; action workers.
 * (libvirt: virDomainSnapshotCreateXML with REDEFINE)
 */
gboolean be_change_redefine(Be *be, virDomainPtr domain, const char *xml, gboolean current,
                            GError **error);

/**
 * be_change_used_elsewhere: another domain that uses an image, or stands on it.
 * Returns: its name, to be freed with g_free(), or NULL; NULL with @error when that
 * cannot be known.
 */
char *be_change_used_elsewhere(virConnectPtr conn, const char *uuid, const BeTreeImage *image,
                               GError **error);

/**
 * be_change_prune: removes images that nothing needs any more: of those at @paths
 * (element char *), and then of what they stood on, all that are overlays of
 * snapshots, hold no snapshot, are below no image and are no disk of a domain.
 * Then has the <disks> of all external snapshots name what stands on them now.
 *
 * Returns: FALSE when something that should go is still there.
 */
gboolean be_change_prune(Be *be, virDomainPtr domain, const char *uuid, const GPtrArray *paths,
                         GError **error);

/* ---- Overlays that no snapshot names (change-record.c) ----------------------------- */

/**
 * be_change_remember: writes down that these images (element char *) are overlays of
 * snapshots and may go when nothing needs them: libvirt 9.0 keeps the name of one
 * overlay for a snapshot, and a snapshot can have many, and can go before them.
 * be_change_tidy: forgets those that are gone.
 */
gboolean be_change_remember(Be *be, const char *uuid, const GPtrArray *paths, GError **error);
void be_change_tidy(Be *be, const char *uuid);
gboolean be_change_remembers(Be *be, const char *uuid, const char *path);

/**
 * be_changes_forget_gone: the records of domains that there are no more.  Query worker.
 */
void be_changes_forget_gone(Be *be);

/**
 * be_change_is_whole: EUCLEAN for a snapshot whose deletion has begun to write into
 * the image that held it, and was then cancelled or failed.
 * be_change_break, be_change_mend: notes it; the note goes with the snapshot.
 */
gboolean be_change_is_whole(Be *be, const char *uuid, const char *name, GError **error);
gboolean be_change_break(Be *be, const char *uuid, const char *name, GError **error);
void be_change_mend(Be *be, const char *uuid, const char *name);
