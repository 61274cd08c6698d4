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
 * @ret_means: what the freeze of all file systems means, while it lasts
 *
 * Blocks, about 20 s at most (an agent that dies of it); action workers, one per domain.
 * Returns: TRUE; the guest is frozen, and be_freeze_end() must follow.  FALSE:
 *   EBUSY (somebody else has frozen it; it is left so), EHOSTDOWN (no agent),
 *   EINVAL (not running), ETIMEDOUT, EIO...; a thaw was sent, and will be again,
 *   because a slow hook of the guest freezes later.  An agent that did not answer before
 *   was not asked to freeze.  BE_FREEZE_LOST: the agent died of this freeze or of an
 *   earlier one, or the guest was rebooted under it, and the agent has not come back
 *   within 5 s; the guest may be frozen.
 */
#define BE_FREEZE_LOST ECONNRESET

gboolean be_freeze_begin(Be *be, virDomainPtr domain, const char *uuid,
                         const char *const *mountpoints, guint watch_ms,
                         BeConsistency *ret_means, GError **error);

/**
 * be_freeze_end: thaws, and tries again until it is so.  Blocks up to 10 s, or 20 s
 * with an agent that libvirt has lost; after that the watchdog and a timer go on.
 * Returns: whether the guest is known to be thawed.
 */
gboolean be_freeze_end(Be *be, virDomainPtr domain, const char *uuid, GError **error);

/**
 * be_freeze_bound_agent: from now on calls of this domain's agent take 5 s at most; or,
 * not bound, as long as they like, which is libvirt's default.  It is the domain's own,
 * for all who call.
 */
void be_freeze_bound_agent(virDomainPtr domain, gboolean bound);

/**
 * be_freeze_thaw_once: sends one thaw, whoever has frozen it.  Blocks up to 5 s.
 */
gboolean be_freeze_thaw_once(virDomainPtr domain, GError **error);

/**
 * be_freeze_agent_is_gone: whether a call of the agent failed because libvirt has none.
 *
 * libvirt (9.0, processSerialChangedEvent) takes the domain's job, in a mode that a
 * backup does not let in, to connect to an agent that is back or to let go of one that
 * went away; it waits 30 s for it and then never tries again: nothing that holds the job
 * may be begun before the agent is back.  When it goes away after a backup began, libvirt
 * does not find it again: the one thread that waits there is the one that would end the
 * backup, too (freeze-channel.h thaws then).
 */
gboolean be_freeze_agent_is_gone(const GError *error);

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
 * be_freeze_ask: the same of a running guest; asks its agent, which must not be frozen,
 * at most 5 s.  Does not taint the domain.  Blocks; workers.
 * (libvirt: virDomainGetGuestInfo)
 * Returns: FALSE, EHOSTDOWN: the agent does not answer.  One that cannot say, as old
 *   ones, has answered.
 */
gboolean be_freeze_ask(virDomainPtr domain, BeConsistency *ret_means, GError **error);

/**
 * be_freezes_rebooted: the guest was reset, and so is not frozen.  Any thread, not
 * blocking.
 */
void be_freezes_rebooted(Be *be, const char *uuid);

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
