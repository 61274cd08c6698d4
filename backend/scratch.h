/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * scratch.h - the room that a live backup takes while the guest writes.
 *
 * In QEMU 7.2 a copy-before-write that finds no room fails the guest's own
 * write.  So the room is looked at while the backup runs, and the backup is
 * given up before it is gone.  Should that come too late, the guest is paused
 * on an I/O error of its disk; without the backup its writes are repeated and
 * succeed, so it is ended and the guest goes on.
 */
#pragma once

#include "backend/backup.h"

/**
 * be_scratch_check_start: whether @dir has the reserve and a little more.
 * @sure_bytes: room that has to be there in any case
 * Returns: FALSE: ENOSPC, or the errno of statvfs(2).
 */
gboolean be_scratch_check_start(Be *be, const char *dir, guint64 sure_bytes, GError **error);

/**
 * be_scratch_watch: watches the room of a listed live backup until it is no
 * longer running, by a thread of its own.
 * (libvirt: virDomainSetBlockThreshold)
 */
void be_scratch_watch(Backup *backup);

/**
 * be_scratch_kick: QEMU says that a scratch image of the domain has grown past
 * its threshold: its guard looks now.  Any thread; does not block.
 */
void be_scratch_kick(Be *be, const char *uuid);

/**
 * be_scratch_print: appends "key: value" lines of what was last seen; nothing
 * before the first look.
 */
void be_scratch_print(Backup *backup, GString *out);

/**
 * be_scratch_give_up: fails the backup for lack of room.  Blocks; workers.
 */
void be_scratch_give_up(Be *be, gpointer backup);

/**
 * be_scratch_stalls: whether the guest stands still because of this backup: it
 * is paused by an I/O error, and the scratch space is full.  Blocks; workers.
 */
gboolean be_scratch_stalls(Backup *backup, virDomainPtr domain);

/**
 * be_scratch_rescue: ends the backup under a guest that stands still.  Blocks;
 * workers.
 */
void be_scratch_rescue(Backup *backup);

/**
 * be_scratch_resume: lets the guest of an ended backup go on, where the backup
 * ended for lack of room and the guest was paused by it; harmless for all others.
 * Blocks; workers.
 */
void be_scratch_resume(Backup *backup);
