/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * ready.c - going to the background, pid file, sd_notify; see ready.h.
 *
 * The fork comes before everything else, so that the process id in locks and
 * records is the one that stays and no thread or connection is lost by it.
 * Until the mount answers the child keeps the terminal: its complaints are the
 * caller's to read, and Ctrl-C reaches both.
 *
 * Threads: vm_ready_announce() comes from a thread of the file system, the rest
 * from the main thread; they never overlap.
 */
#include "ready.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "mountd/log.h"

struct VmReady {
    char *pid_file;
    int parent;                /* write end of the pipe; -1: in the foreground */
    gboolean pid_written;
};

VmReady *vm_ready_new(const char *pid_file)
{
    VmReady *ready = g_new0(VmReady, 1);

    ready->pid_file = g_strdup(pid_file);
    ready->parent = -1;
    return ready;
}

/* Returns: the exit code of the parent. */
static int child_wait(int pipe_fd, pid_t child)
{
    char byte;
    ssize_t n;
    int status = 0;

    do {
        n = read(pipe_fd, &byte, 1);
    } while (n < 0 && errno == EINTR);
    if (n == 1) {
        return 0;
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFSIGNALED(status)) {
        vm_complain("died before the mount was ready: %s", g_strsignal(WTERMSIG(status)));
    }
    return 1;
}

int vm_ready_fork(VmReady *ready, int *ret_status, GError **error)
{
    int ends[2];
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
        g_set_error(error, G_FILE_ERROR, (int)g_file_error_from_errno(errno),
                    "cannot go to the background: %s", g_strerror(errno));
        return -1;
    }
    if (pid == 0) {
        (void)close(ends[0]);
        ready->parent = ends[1];
        return 0;
    }
    (void)close(ends[1]);
    *ret_status = child_wait(ends[0], pid);
    (void)close(ends[0]);
    return pid;
}

/* Others watch the file, so it appears with its content or not at all. */
static void pid_file_write(VmReady *ready)
{
    g_autofree char *temporary = g_strdup_printf("%s.%d", ready->pid_file, (int)getpid());
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    size_t length = strlen(text);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);

    if (fd >= 0) {
        gboolean written = write(fd, text, length) == (ssize_t)length && fchmod(fd, 0644) == 0;

        ready->pid_written = close(fd) == 0 && written
                             && g_rename(temporary, ready->pid_file) == 0;
    }
    if (!ready->pid_written) {
        g_warning("cannot write the pid file '%s': %s", ready->pid_file, g_strerror(errno));
        (void)g_unlink(temporary);
    }
}

static void terminal_leave(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    vm_log_background();
    (void)setsid();
    if (null < 0) {
        g_warning("cannot open /dev/null: %s", g_strerror(errno));
        return;
    }
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        (void)dup2(null, fd);
    }
    if (null > STDERR_FILENO) {
        (void)close(null);
    }
}

void vm_ready_announce(VmReady *ready, const char *status)
{
    g_autofree char *safe = vm_log_escape(status);

    if (ready->pid_file) {
        pid_file_write(ready);
    }
    (void)sd_notifyf(0, "READY=1\nMAINPID=%d\nSTATUS=%s", (int)getpid(), safe);
    if (ready->parent < 0) {
        return;
    }
    terminal_leave();
    if (write(ready->parent, "", 1) < 0) {
        g_message("nobody waits for the mount any more: %s", g_strerror(errno));
    }
    (void)close(ready->parent);
    ready->parent = -1;
}

void vm_ready_stopping(guint seconds)
{
    (void)sd_notifyf(0, "STOPPING=1\nSTATUS=ending\nEXTEND_TIMEOUT_USEC=%" G_GUINT64_FORMAT,
                     (guint64)seconds * G_USEC_PER_SEC);
}

void vm_ready_free(VmReady *ready)
{
    if (!ready) {
        return;
    }
    if (ready->pid_written) {
        (void)g_unlink(ready->pid_file);
    }
    if (ready->parent >= 0) {
        (void)close(ready->parent);
    }
    g_free(ready->pid_file);
    g_free(ready);
}
