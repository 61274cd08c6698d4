/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * child-exec.h - what a child does between fork and exec.
 *
 * Private to child.c.
 */
#pragma once

#include <sys/types.h>

enum {
    CHILD_FD_MIN = 10,         /* descriptors given to child_exec() are not below */
    CHILD_PID_DIGITS = 20,     /* room for a process number and its NUL */
};

/**
 * ChildExec: all that the new process needs, made before the fork.
 */
typedef struct {
    const char *program;       /* absolute path */
    char *const *argv;
    char *const *envp;
    char *listen_pid;          /* inside envp: where the digits of LISTEN_PID go */
    pid_t parent;              /* who must still be our parent */
    int appliance;             /* limits for a virtual machine instead of qemu-nbd's */
    int null_fd;               /* becomes 0 and 1 */
    int stderr_fd;             /* becomes 2 */
    int listen_fd;             /* becomes 3 */
    int status_fd;             /* gets a ChildFailure; closed by exec */
    unsigned max_fds;          /* no descriptor is at or above this */
} ChildExec;

/**
 * ChildFailure: what comes through status_fd when exec was not reached.
 */
typedef struct {
    int errnum;
    int step;                  /* index for child_step_name() */
} ChildFailure;

const char *child_step_name(int step);

/**
 * child_exec: turns the calling process, a fork of ours, into @exec.  Uses only
 * what is async-signal-safe: the fork of a process with threads may have caught
 * any lock of the C library held.
 */
void child_exec(const ChildExec *exec) __attribute__((noreturn));
