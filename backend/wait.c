/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * wait.c - waiting on a thread that has other work too; see wait.h.
 *
 * Any thread; what is kept is the thread's own, or the caller's.
 */
#include "backend/wait.h"

#include <errno.h>
#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

static _Thread_local struct {
    gboolean set;
    int fd;
    BeOnWait func;
    gpointer user;
} other_work;

void be_thread_on_wait(int fd, BeOnWait func, gpointer user)
{
    other_work.set = TRUE;
    other_work.fd = fd;
    other_work.func = func;
    other_work.user = user;
}

int be_wait_fd(void)
{
    return other_work.set ? other_work.fd : -1;
}

void be_wait_told(void)
{
    if (other_work.set) {
        other_work.func(other_work.user);
    }
}

/* ---- Polling ---- */

/* Who gets the processor back so late had to wait for somebody's whole slice of time. */
#define CONTENDED_US 500
#define CONTENDED_REST_US G_USEC_PER_SEC

static gint busy_poll_us;      /* atomic */

void be_poll_set_busy(guint us)
{
    g_atomic_int_set(&busy_poll_us, (gint)us);
}

/*
 * The mean of the last waits.  One long wait counts as two of the limit: it does not end
 * a sequence of short ones, and two or three of them do.
 */
static void polling_learn(BePolling *polling, gint64 waited_us, gint64 limit_us)
{
    polling->usual_us = (3 * polling->usual_us + MIN(waited_us, 2 * limit_us)) / 4;
}

/*
 * Whoever else wants this processor has it, the server first of all.  Where somebody wants
 * all of it there is nothing to gain: who yields comes last each time, who sleeps and is
 * woken comes first.
 */
static int look_busily(BePolling *polling, struct pollfd *fds, guint count, gint64 until_us)
{
    gint64 now_us = g_get_monotonic_time();
    int ready = 0;

    while (ready == 0 && now_us < until_us) {
        gint64 before_us = now_us;

        sched_yield();
        ready = poll(fds, count, 0);
        now_us = g_get_monotonic_time();
        if (now_us - before_us > CONTENDED_US) {
            polling->rest_until_us = now_us + CONTENDED_REST_US;
            break;
        }
    }
    return ready;
}

int be_poll(BePolling *polling, struct pollfd *fds, guint count, int timeout_ms)
{
    gint64 limit_us = g_atomic_int_get(&busy_poll_us);
    gint64 start_us = g_get_monotonic_time();
    int ready;

    if (limit_us == 0) {
        return poll(fds, count, timeout_ms);
    }
    ready = poll(fds, count, 0);
    if (ready == 0 && polling->usual_us < limit_us && start_us >= polling->rest_until_us) {
        ready = look_busily(polling, fds, count, start_us + limit_us);
    }
    if (ready == 0) {
        ready = poll(fds, count, timeout_ms);
    }
    polling_learn(polling, g_get_monotonic_time() - start_us, limit_us);
    return ready;
}

/* ---- Files ---- */

gsize be_pread_memory(int fd, void *buffer, gsize length, guint64 offset)
{
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    ssize_t got = preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT);

    return got > 0 ? (gsize)got : 0;
}

int be_pread_whole(int fd, void *buffer, gsize length, guint64 offset)
{
    gsize done = other_work.set ? be_pread_memory(fd, buffer, length, offset) : 0;

    if (done < length) {
        be_wait_told();
    }
    while (done < length) {
        ssize_t got = pread(fd, (char *)buffer + done, length - done, (off_t)(offset + done));

        if (got > 0) {
            done += (gsize)got;
        } else if (got == 0 || errno != EINTR) {
            return EIO;
        }
    }
    return 0;
}
