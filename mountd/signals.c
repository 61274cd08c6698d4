/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * signals.c - signals as bytes in a pipe, read by one thread; see signals.h.
 *
 * Signals are caught and not blocked, SIGPIPE too: a mask and an ignored signal
 * are inherited over exec, and a qemu-nbd of ours that does not hear SIGTERM
 * would outlive us.  The handler may run in any thread and only writes a byte;
 * SA_RESTART keeps it from being noticed there.
 */
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/*
 * A signal handler reaches nothing but globals.
 */
static struct {
    int read_fd;
    int write_fd;              /* constant once the handlers are in place */
    GThread *thread;
    void (*stop)(gpointer user);
    gpointer user;
} signals = {.read_fd = -1, .write_fd = -1};

static void handle(int signum)
{
    int saved = errno;
    char byte = (char)signum;

    /* A full pipe holds thousands of the same already. */
    if (write(signals.write_fd, &byte, 1) < 0) {
        errno = saved;
    }
    errno = saved;
}

static void handle_nothing(int signum G_GNUC_UNUSED)
{
}

static gpointer signals_thread(gpointer data G_GNUC_UNUSED)
{
    guint stops = 0;
    char byte;
    ssize_t n;

    while ((n = read(signals.read_fd, &byte, 1)) == 1 || (n < 0 && errno == EINTR)) {
        if (n < 0) {
            continue;
        }
        if (byte == 0) {
            break;
        }
        if (byte == SIGHUP) {
            g_message("SIGHUP: there is nothing to read again");
            continue;
        }
        g_message("SIG%s: %s", sigabbrev_np(byte), stops++ ? "already ending" : "ending");
        signals.stop(signals.user);
    }
    return NULL;
}

static void handler_set(int signum, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};

    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(signum, &action, NULL);
}

gboolean vm_signals_start(void (*stop)(gpointer user), gpointer user, GError **error)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) < 0 || fcntl(ends[1], F_SETFL, O_NONBLOCK) < 0) {
        g_set_error(error, G_FILE_ERROR, (int)g_file_error_from_errno(errno),
                    "cannot listen to signals: %s", g_strerror(errno));
        return FALSE;
    }
    signals.read_fd = ends[0];
    signals.write_fd = ends[1];
    signals.stop = stop;
    signals.user = user;
    signals.thread = g_thread_try_new("signals", signals_thread, NULL, error);
    if (!signals.thread) {
        return FALSE;
    }
    handler_set(SIGTERM, handle);
    handler_set(SIGINT, handle);
    handler_set(SIGHUP, handle);
    handler_set(SIGPIPE, handle_nothing);
    return TRUE;
}

void vm_signals_stop(void)
{
    char byte = 0;

    handler_set(SIGTERM, handle_nothing);
    handler_set(SIGINT, handle_nothing);
    handler_set(SIGHUP, handle_nothing);
    while (write(signals.write_fd, &byte, 1) < 0 && (errno == EAGAIN || errno == EINTR)) {
        g_thread_yield();
    }
    (void)g_thread_join(signals.thread);
    signals.thread = NULL;
}
