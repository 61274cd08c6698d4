/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * freeze.h - guests' file systems frozen, and surely thawed.
 *
 * What stands between a guest and staying frozen: the thaw itself, repeated; a
 * timer of ours; the watchdog process, when we are gone or late; the mark in
 * the journal, for the next start when that is gone too.
 */
#pragma once

#include "backend/job.h"
#include "backend/private.h"

BeFreezes *be_freezes_new(Be *be, GError **error);
void be_freezes_free(BeFreezes *freezes);

/**
 * be_freeze_begin: freezes the guest of a running domain.
 * @mountpoints: NULL-terminated, or NULL: all
 * @watch_ms: when the watchdog thaws it, if nobody has
 *
 * Blocks, about 5 s at most; action workers, one per domain.
 * Returns: TRUE; the guest is frozen, and be_freeze_end() must follow.  FALSE:
 *   EBUSY (somebody else has frozen it; it is left so), EHOSTDOWN (no agent),
 *   EINVAL (not running), ETIMEDOUT, EIO...; a thaw was sent, and will be again,
 *   because a slow hook of the guest freezes later.  BE_FREEZE_LOST: the agent died
 *   of it and has not come back within 5 s; the guest may be frozen.
 */
#define BE_FREEZE_LOST ECONNRESET

gboolean be_freeze_begin(Be *be, virDomainPtr domain, const char *uuid,
                         const char *const *mountpoints, guint watch_ms, GError **error);

/**
 * be_freeze_end: thaws, and tries again until it is so.  Blocks up to 10 s;
 * after that the watchdog and a timer go on.
 * Returns: whether the guest is known to be thawed.
 */
gboolean be_freeze_end(Be *be, virDomainPtr domain, const char *uuid, GError **error);

/**
 * be_freeze_thaw_once: sends one thaw, whoever has frozen it.  Blocks up to 3 s.
 */
gboolean be_freeze_thaw_once(virDomainPtr domain, GError **error);

/**
 * be_freeze_thaw_restored: the same, once, for a guest whose memory has just come back:
 * it may have been saved frozen, and whoever froze it is not there any more to thaw it.
 * Waits up to 1 s for its agent.
 */
void be_freeze_thaw_restored(virDomainPtr domain);

/**
 * be_freeze_consistency_of: what a freeze that the agent confirmed means.
 * @os_id: "os.id" of the agent (guest-get-osinfo), or NULL where it did not say
 *
 * Pure.  QEMU's agent for Windows freezes through VSS and in no other way (QEMU
 * qga/commands-win32.c: without VSS the freeze fails), so applications have been
 * asked to be consistent; anywhere else it is FIFREEZE, whatever hooks there are.
 */
BeConsistency be_freeze_consistency_of(const char *os_id);

/**
 * be_freeze_consistency: the same of a running guest; asks its agent, which must
 * not be frozen, at most 5 s.  Does not taint the domain.  Blocks; workers.
 * (libvirt: virDomainGetGuestInfo)
 */
BeConsistency be_freeze_consistency(virDomainPtr domain);

/**
 * be_freeze_held_consistency: of a guest that a command of ours has frozen; crash
 * where it has not, has frozen some mount points only, or VSS has given up by now.
 */
BeConsistency be_freeze_held_consistency(Be *be, const char *uuid);

/**
 * be_freeze_is_held: whether the guest is frozen by a command of ours.
 */
gboolean be_freeze_is_held(Be *be, const char *uuid);

/**
 * be_freeze_print: appends "key: value" lines of a freeze by command, if any.
 */
gboolean be_freeze_print(Be *be, const char *uuid, GString *out);

/**
 * be_freezes_recover: thaws what the journal says an earlier process left
 * frozen.  Query worker; after each connect.
 */
void be_freezes_recover(Be *be);

/**
 * be_freezes_end_all: thaws what is frozen by command; for be_stop().
 */
void be_freezes_end_all(Be *be);
