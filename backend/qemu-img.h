/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qemu-img.h - images made and changed by qemu-img, of machines that do not have
 * them open.
 *
 * Formats are always named and never guessed; paths are absolute, so no name is
 * taken for an option or a protocol.  QEMU's image locking is on.  Workers: blocks
 * as long as qemu-img runs; it is killed when we die.
 */
#pragma once

#include "backend/job.h"

/**
 * be_qemu_img: runs it.
 * @job: (nullable): when it is cancelled, qemu-img is ended and the answer is ECANCELED
 * @argv: NULL-terminated, without the program's name
 *
 * Returns: FALSE: EOPNOTSUPP (not installed), EBUSY (an image is locked by another
 * program), ENOSPC, EIO with qemu-img's own words, ECANCELED.
 */
gboolean be_qemu_img(BeJob *job, const char *const *argv, GError **error);

/**
 * be_qemu_img_overlay: makes an empty qcow2 image on top of another one.
 * @path: must not exist; mode 0600, and the owner of @base
 * @base, @format: what it stands on; not opened
 * @size: of @base in bytes
 *
 * Returns: FALSE: EEXIST, ENOSPC, EACCES...; then there is no @path of ours.
 */
gboolean be_qemu_img_overlay(const char *path, const char *base, const char *format, guint64 size,
                             GError **error);
