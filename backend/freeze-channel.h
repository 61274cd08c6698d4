/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * freeze-channel.h - a guest's agent without libvirt, for the one thing that cannot wait.
 */
#pragma once

#include <libvirt/libvirt.h>

#include "backend/private.h"

/**
 * be_channel_thaw_past_libvirt: thaws a guest whose agent libvirt has lost.
 *
 * While a backup runs, libvirt 9.0 cannot follow an agent that went away and came back
 * (be_freeze_agent_is_gone()), and keeps a dead connection to QEMU's end of the agent's
 * channel, which takes one at a time.  QEMU is told to drop that (QMP "yank", since 6.0;
 * this marks the domain as tainted), and the agent is asked directly.  Afterwards the
 * channel is free as it was at the start of the machine, and libvirt connects to it again
 * when it looks.
 *
 * For guests that are known to be frozen by us, and only when libvirt has said that there
 * is no agent.  Blocks, 20 s at most where QEMU's monitor answers; workers and the
 * watchdog's process, of which one at a time does something: EBUSY for the other.
 * Returns: whether the guest is thawed.  FALSE: EBUSY, EOPNOTSUPP (no such channel on
 *   this host), ETIMEDOUT (no agent answers), EIO and others of socket(7).
 */
gboolean be_channel_thaw_past_libvirt(virDomainPtr domain, GError **error);

/**
 * be_channel_sync: finds the agent at the other end of a socket, whatever is in it.
 * @fd: non-blocking
 * @id: has been sent before (be_channel_send_sync())
 * @until_us: monotonic
 *
 * (QEMU: qga/qapi-schema.json, guest-sync-delimited)
 * Returns: FALSE: ETIMEDOUT, EHOSTUNREACH (the other end was closed), EIO.
 */
gboolean be_channel_sync(int fd, gint64 id, gint64 until_us, GError **error);
gboolean be_channel_send_sync(int fd, gint64 id, GError **error);

/**
 * be_channel_thaw: sends guest-fsfreeze-thaw to an agent that was found, and waits for the
 * answer.  Returns: FALSE: as above, or EIO with what the agent said.
 */
gboolean be_channel_thaw(int fd, gint64 until_us, GError **error);
