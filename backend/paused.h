/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * paused.h - using a machine that is off, by starting it paused.
 *
 * libvirt makes and deletes checkpoints, merges snapshots and runs backups only
 * where there is a QEMU.  So the machine is started with its CPUs stopped: the
 * guest sees nothing of it, and at the end the machine is off as before.
 *
 * Not with libvirt's own auto-destroy: that kills the machine when the connection
 * goes that started it, also after somebody resumed it, also when libvirtd is only
 * restarted, and libvirtd 9.0 can hang in that restart.  What turns the machine off
 * is, in this order: be_paused_end(); a small process for each machine, when we die;
 * the record in the state directory, at the next start.  Each of them leaves a
 * machine alone whose guest has run.
 */
#pragma once

#include "backend/private.h"

typedef struct BePaused BePaused;

BePauses *be_pauses_new(void);
void be_pauses_free(BePauses *pauses);

/**
 * be_paused_start: starts a machine that is off, paused, and holds it.
 * @what: for which it is held, for sentences: "backup 'tue'"
 *
 * Blocks until it stands; action workers, one per domain.
 *
 * Returns: what be_paused_end() takes, or NULL with nothing changed: EBUSY (it is not
 * off, has a managed save image, which a start would use up, or libvirtd is about to
 * start it by itself), EOPNOTSUPP (transient, host devices, a remote host, another
 * hypervisor), ENOSPC (the record), or as libvirt says.
 * (libvirt: virDomainCreateWithFlags)
 */
BePaused *be_paused_start(Be *be, virDomainPtr domain, const char *what, GError **error);

/**
 * be_paused_end: turns the machine off; leaves it alone when somebody resumed it.
 * @paused: (transfer full): lets go of it in any case
 *
 * Blocks, some seconds; workers.
 * Returns: FALSE when it may still be there, paused: that is tried again later.
 */
gboolean be_paused_end(BePaused *paused, GError **error);

/**
 * be_paused_held: how a machine is held now, as a sentence, to be freed with
 * g_free(); NULL: it is not held.  Any thread; does not block.
 */
char *be_paused_held(Be *be, const char *uuid);

/**
 * be_paused_print: appends "held: ..." for `job`, if it is held.
 */
void be_paused_print(Be *be, const char *uuid, GString *out);

/**
 * be_pauses_load: reads what an earlier process left.  Before the first action.
 * be_pauses_recover: turns those machines off, as far as the host answers and
 * nobody uses them.  Query worker; blocks up to 5 s while their holders do that.
 */
void be_pauses_load(Be *be);
void be_pauses_recover(Be *be);

/**
 * be_paused_is_left: whether a machine was held by an earlier process and may
 * still be: nothing is known yet of what that process had on it.
 */
gboolean be_paused_is_left(Be *be, const char *uuid);
