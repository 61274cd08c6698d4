/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * error.h - errors of libvirt and libnbd as GError with an errno.
 *
 * Convert on the thread and line of the failing call: both libraries keep
 * their last error per thread, and any clean-up overwrites it.
 */
#pragma once

#include "backend.h"

/**
 * be_error_from_libvirt: sets @error from libvirt's last error on this thread.
 * @what: what was being done, as in "cannot start the backup"; becomes the
 *   head of the message.
 */
void be_error_from_libvirt(GError **error, const char *what);

/**
 * be_error_from_nbd: the same for libnbd.  An errno of 0 becomes EIO.
 */
void be_error_from_nbd(GError **error, const char *what);

/**
 * be_error_errno_of_libvirt: the errno that stands for a VIR_ERR_* code.
 * @message: libvirt's text; two codes need it: 55 alone means "not running",
 *   "already running" and "busy", and 1 carries "already frozen".
 * @int1: the error's first integer, an errno for VIR_ERR_SYSTEM_ERROR
 *
 * Returns: a positive errno; EIO for what is not in the table.
 */
int be_error_errno_of_libvirt(int code, const char *message, int int1);

/**
 * be_error_set_errno: an errno of a system call, "what: strerror".
 */
void be_error_set_errno(GError **error, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);
