/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * child.h - helper processes that never outlive us: qemu-nbd over an image, and
 * appliances.
 *
 * Any thread may call these.  The first call starts a thread "child" that lives
 * as long as the process: it forks all children, so that PR_SET_PDEATHSIG (which
 * watches the forking thread, not the process) fires when we die and not when a
 * worker ends; it reads what they say on standard error and reaps them.
 */
#pragma once

#include "backend.h"

typedef struct BeChild BeChild;

/**
 * BeQemuNbd: what a server is started for.
 */
typedef struct {
    const char *socket_path;   /* where the unix socket is made, mode 0600; must not exist */
    const char *image_json;    /* from be_image_chain_json() */
    const char *export_name;   /* of the NBD export */
    const char *snapshot_id;   /* of an internal snapshot of the image; NULL: the image as it is */
    const char *snapshot_name; /* with snapshot_id */
    const char *bitmap;        /* a persistent bitmap to serve as a context; NULL: none */
} BeQemuNbd;

/**
 * be_child_start_qemu_nbd:
 *
 * Starts a read-only server of one image for up to eight connections, and waits
 * until it answers, at most 10 s.  The server has nothing of ours but the
 * socket, which it inherits (systemd's socket activation), little memory and no
 * right to write a file, and is killed when we die.  (QEMU: qemu-nbd(8).)
 *
 * Returns: the child, to be freed with be_child_free(); NULL: EOPNOTSUPP without
 * qemu-nbd, EEXIST for the socket, ENAMETOOLONG when its path has more than 107
 * bytes, EBUSY when the image is locked by a writer, EIO with qemu-nbd's own words
 * when it ended, ETIMEDOUT, or the errno of a system call.
 */
BeChild *be_child_start_qemu_nbd(const BeQemuNbd *server, GError **error);

/**
 * be_child_start_appliance:
 * @program: absolute path of vmsnapfs-files
 * @argv: NULL-terminated, with the program's name
 * @fd: becomes its descriptor 3; stays the caller's
 *
 * Starts the program that runs an appliance; does not wait for it to do anything.
 * It has room for a virtual machine, and is killed when we die.
 * Returns: the child, or NULL with the errno of a system call.
 */
BeChild *be_child_start_appliance(const char *program, const char *const *argv, int fd,
                                  GError **error);

/**
 * be_child_pid: its process number, for records; stays after its end.
 */
pid_t be_child_pid(const BeChild *child);

/**
 * be_child_alive: whether it still runs.  Never blocks.
 */
gboolean be_child_alive(BeChild *child);

/**
 * be_child_failure: Returns: why it ended by itself, as a sentence with what it
 * last said, to be freed with g_free(); NULL while it runs or when we ended it.
 */
char *be_child_failure(BeChild *child);

/**
 * be_child_stop: ends it, by SIGTERM and after 2 s by SIGKILL, waits until it is
 * gone and removes the socket.  Blocks, at most 7 s: one that hangs in the kernel
 * on a dead disk is left to the thread.  Harmless when repeated.
 */
void be_child_stop(BeChild *child);

/**
 * be_child_free: stops it first; NULL is allowed.
 */
void be_child_free(BeChild *child);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BeChild, be_child_free)
