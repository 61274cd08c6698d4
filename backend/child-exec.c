/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * child-exec.c - what a child does between fork and exec; see child-exec.h.
 *
 * Runs in the only thread of a forked process: no malloc, no stdio, no GLib.
 */
#include "child-exec.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LISTEN_FD = 3,             /* SD_LISTEN_FDS_START of systemd */
    STATUS_FD = 4,
    FIRST_OTHER_FD = 5,
};

enum {
    STEP_PARENT,
    STEP_DIRECTORY,
    STEP_DESCRIPTORS,
    STEP_LIMITS,
    STEP_EXEC,
};

static const char *const step_names[] = {
    [STEP_PARENT] = "cannot tie it to this process",
    [STEP_DIRECTORY] = "cannot enter '/'",
    [STEP_DESCRIPTORS] = "cannot arrange its descriptors",
    [STEP_LIMITS] = "cannot limit it",
    [STEP_EXEC] = "cannot execute it",
};

typedef struct {
    int resource;
    rlim_t limit;
} Limit;

/*
 * faults.md 109.  Memory counts address space: the stack limit is also the size
 * of each of QEMU's up to 64 worker stacks, which at 8 MiB would fill it.
 */
static const Limit limits[] = {
    {RLIMIT_AS, (rlim_t)1 << 30},
    {RLIMIT_STACK, (rlim_t)2 << 20},
    {RLIMIT_CORE, 0},
    {RLIMIT_FSIZE, 0},
    {RLIMIT_NOFILE, 1024},
};

/*
 * An appliance: QEMU with 1.25 GiB for the guest, its translated code, and the file
 * system of the appliance (4 GiB, sparse) when that is being built.
 */
static const Limit appliance_limits[] = {
    {RLIMIT_AS, (rlim_t)8 << 30},
    {RLIMIT_STACK, (rlim_t)8 << 20},
    {RLIMIT_CORE, 0},
    {RLIMIT_FSIZE, (rlim_t)8 << 30},
    {RLIMIT_NOFILE, 4096},
};

_Static_assert(sizeof limits == sizeof appliance_limits, "the same limits for both");

const char *child_step_name(int step)
{
    return step >= 0 && (size_t)step < sizeof step_names / sizeof *step_names ? step_names[step]
                                                                              : "cannot start it";
}

static void fail(const ChildExec *exec, int step) __attribute__((noreturn));

static void fail(const ChildExec *exec, int step)
{
    ChildFailure failure = {.errnum = errno, .step = step};

    /* Smaller than PIPE_BUF: written whole or not at all. */
    if (write(exec->status_fd, &failure, sizeof failure) < 0) {
        _exit(126);
    }
    _exit(127);
}

/* Handlers of ours must not run here, and ignored signals would stay ignored. */
static void reset_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t none;

    for (int number = 1; number < NSIG; number++) {
        /* Fails for SIGKILL, SIGSTOP and those the C library keeps: as it should. */
        (void)sigaction(number, &action, NULL);
    }
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

/*
 * A parent that died before prctl() sends no signal any more, but then we have
 * another parent.
 */
static void tie_to_parent(const ChildExec *exec)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        fail(exec, STEP_PARENT);
    }
    if (getppid() != exec->parent) {
        _exit(127);
    }
}

static void close_others(const ChildExec *exec)
{
    if (close_range(FIRST_OTHER_FD, ~0U, 0) == 0) {
        return;
    }
    for (unsigned fd = FIRST_OTHER_FD; fd < exec->max_fds; fd++) {
        close((int)fd);
    }
}

/* All sources are at CHILD_FD_MIN or above, so no target overwrites one. */
static void arrange_descriptors(ChildExec *exec)
{
    if (dup2(exec->null_fd, 0) < 0 || dup2(exec->null_fd, 1) < 0 || dup2(exec->stderr_fd, 2) < 0
        || dup2(exec->listen_fd, LISTEN_FD) < 0
        || dup3(exec->status_fd, STATUS_FD, O_CLOEXEC) < 0) {
        fail(exec, STEP_DESCRIPTORS);
    }
    exec->status_fd = STATUS_FD;
    close_others(exec);
}

static void set_limits(const ChildExec *exec)
{
    const Limit *wanted = exec->appliance ? appliance_limits : limits;

    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit;

        if (getrlimit(wanted[i].resource, &limit) < 0) {
            fail(exec, STEP_LIMITS);
        }
        /* Ours may be lower already, and only root could raise it again. */
        if (limit.rlim_max > wanted[i].limit) {
            limit.rlim_max = wanted[i].limit;
        }
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(wanted[i].resource, &limit) < 0) {
            fail(exec, STEP_LIMITS);
        }
    }
}

static void write_digits(char *to, unsigned long number)
{
    char reversed[CHILD_PID_DIGITS];
    size_t count = 0;

    do {
        reversed[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0 && count < sizeof reversed - 1);
    while (count > 0) {
        *to++ = reversed[--count];
    }
    *to = 0;
}

void child_exec(const ChildExec *given)
{
    ChildExec exec = *given;

    /* Ctrl-C in our terminal is for us alone. */
    (void)setsid();
    reset_signals();
    tie_to_parent(&exec);
    umask(0077);
    if (chdir("/") < 0) {
        fail(&exec, STEP_DIRECTORY);
    }
    arrange_descriptors(&exec);
    set_limits(&exec);
    write_digits(exec.listen_pid, (unsigned long)getpid());
    execve(exec.program, exec.argv, exec.envp);
    fail(&exec, STEP_EXEC);
}
