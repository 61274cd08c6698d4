/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * imagelock.h - QEMU's own lock on the images of a machine that is off, so that
 * nothing writes to them while they are read.
 *
 * `qemu-nbd -r` locks a qcow2 image against writers but not a raw one (facts.md
 * section 2); this lock does, and it is there before the first reader is.
 *
 * Any thread; blocks on local files only.
 */
#pragma once

#include "image.h"

typedef struct BeImageLock BeImageLock;

/**
 * be_image_lock_take:
 * @chain: (element BeImage): what be_image_chain_inspect() gave
 *
 * Locks every image of a chain: as long as the lock is held no QEMU opens one
 * for writing, while readers and other locks of this kind are welcome.  The chain
 * is inspected again under the lock, for until then it could change.
 *
 * Only what locks like QEMU is kept off: a loop device or a mount is not.  And the
 * lock of a block device belongs to its node in /dev, while libvirt gives each
 * QEMU a /dev of its own (qemu.conf: namespaces; measured with libvirt 9.0: the
 * machine starts): an image with block_device set is not safe by this alone.
 *
 * Returns: the lock, to be released by be_image_lock_free(); NULL: EBUSY when a
 * running machine or a tool has an image open for writing, refuses readers, or
 * has changed the chain; the errnos of be_image_chain_inspect(); that of fcntl(2)
 * (ENOLCK) where a file system has no locks.
 */
BeImageLock *be_image_lock_take(const GPtrArray *chain, GError **error);

/**
 * be_image_lock_free: releases it; NULL is allowed.
 */
void be_image_lock_free(BeImageLock *lock);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeImageLock, be_image_lock_free)
