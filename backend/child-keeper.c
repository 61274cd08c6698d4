/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * child-keeper.c - the thread "child"; see child-keeper.h and child.h.
 *
 * It lives as long as the process, because PR_SET_PDEATHSIG kills a child when
 * the thread ends that forked it.  Callers of child_keeper_fork() wait for it,
 * and it waits for nobody.
 *
 * Locks: keeper.lock guards the orders to fork, child->lock what changes in a
 * child; never both at once, and neither over a system call that waits.
 */
#include "child-keeper.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    KEPT_OUTPUT = 4096,
    READS_AT_ONCE = 16,
};

/*
 * ForkOrder: a child to be forked by the keeper, on the stack of the caller.
 */
typedef struct {
    BeChild *child;
    const ChildExec *exec;
    gboolean done;             /* guarded by keeper.lock */
    int errnum;
} ForkOrder;

static struct {
    GMutex lock;
    GCond done;
    GQueue orders;             /* guarded by lock: of ForkOrder */
    GPtrArray *children;       /* the keeper thread's alone: of BeChild, with refs */
    int wake_fd;               /* constant */
} keeper;

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

void child_unref(BeChild *child)
{
    if (!g_atomic_ref_count_dec(&child->refs)) {
        return;
    }
    close_fd(&child->pidfd);
    close_fd(&child->stderr_fd);
    g_free(child->socket_path);
    g_string_free(child->output, TRUE);
    g_mutex_clear(&child->lock);
    g_cond_clear(&child->changed);
    g_free(child);
}

/*
 * Keeps the end of what a child says (its beginning is the long command it was
 * given, repeated) and drops the rest, so that it is never stopped by a full pipe.
 * Bounded: one that talks without end must not keep the thread from the others.
 */
static void drain(BeChild *child)
{
    char buffer[KEPT_OUTPUT];

    for (int i = 0; i < READS_AT_ONCE && child->stderr_fd >= 0; i++) {
        ssize_t got = read(child->stderr_fd, buffer, sizeof buffer);

        if (got > 0) {
            g_mutex_lock(&child->lock);
            g_string_append_len(child->output, buffer, got);
            if (child->output->len > KEPT_OUTPUT) {
                g_string_erase(child->output, 0, (gssize)(child->output->len - KEPT_OUTPUT));
            }
            g_mutex_unlock(&child->lock);
        } else if (got < 0 && errno == EAGAIN) {
            return;
        } else if (got == 0 || errno != EINTR) {
            close_fd(&child->stderr_fd);
        }
    }
}

/* TRUE when the child is gone and has been reaped, by whomever. */
static gboolean reap(BeChild *child)
{
    int status = 0;
    pid_t got = waitpid(child->pid, &status, WNOHANG);

    if (got == 0 || (got < 0 && errno == EINTR)) {
        return FALSE;
    }
    drain(child);
    g_mutex_lock(&child->lock);
    child->ended = TRUE;
    child->status = got > 0 ? status : 0;
    g_cond_broadcast(&child->changed);
    g_mutex_unlock(&child->lock);
    return TRUE;
}

static void fork_child(ForkOrder *order)
{
    BeChild *child = order->child;

    child->pid = fork();
    if (child->pid == 0) {
        child_exec(order->exec);
    }
    if (child->pid < 0) {
        order->errnum = errno;
        return;
    }
    child->pidfd = pidfd_open(child->pid, 0);
    if (child->pidfd < 0) {
        /* Not to be watched, so not to be kept; nobody has reaped it yet. */
        order->errnum = errno;
        kill(child->pid, SIGKILL);
        waitpid(child->pid, NULL, 0);
        return;
    }
    g_atomic_ref_count_inc(&child->refs);
    g_ptr_array_add(keeper.children, child);
}

static void take_orders(void)
{
    ForkOrder *order = NULL;

    g_mutex_lock(&keeper.lock);
    while ((order = g_queue_pop_head(&keeper.orders))) {
        g_mutex_unlock(&keeper.lock);
        fork_child(order);
        g_mutex_lock(&keeper.lock);
        order->done = TRUE;
        g_cond_broadcast(&keeper.done);
    }
    g_mutex_unlock(&keeper.lock);
}

/* Two entries for each child behind the one of wake_fd; -1 is skipped by poll(). */
static GArray *poll_set(void)
{
    GArray *fds = g_array_new(FALSE, TRUE, sizeof(struct pollfd));
    struct pollfd entry = {.fd = keeper.wake_fd, .events = POLLIN};

    g_array_append_val(fds, entry);
    for (guint i = 0; i < keeper.children->len; i++) {
        const BeChild *child = g_ptr_array_index(keeper.children, i);

        entry.fd = child->pidfd;
        g_array_append_val(fds, entry);
        entry.fd = child->stderr_fd;
        g_array_append_val(fds, entry);
    }
    return fds;
}

static void serve(const GArray *fds)
{
    /* Backwards, for the removal moves only children already served. */
    for (guint i = keeper.children->len; i-- > 0;) {
        BeChild *child = g_ptr_array_index(keeper.children, i);

        if (g_array_index(fds, struct pollfd, 2 * i + 2).revents != 0) {
            drain(child);
        }
        if (g_array_index(fds, struct pollfd, 2 * i + 1).revents != 0 && reap(child)) {
            g_ptr_array_remove_index_fast(keeper.children, i);
            child_unref(child);
        }
    }
}

static gpointer keep(gpointer data)
{
    sigset_t all;
    guint64 count = 0;

    (void)data;
    /* Signals are for other threads; between fork and exec none may come. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (TRUE) {
        g_autoptr(GArray) fds = poll_set();

        if (poll((struct pollfd *)(void *)fds->data, fds->len, -1) < 0) {
            continue;
        }
        serve(fds);
        if (read(keeper.wake_fd, &count, sizeof count) > 0) {
            take_orders();
        }
    }
    return NULL;
}

static gpointer start_keeper(gpointer data)
{
    GThread *thread = NULL;

    (void)data;
    keeper.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (keeper.wake_fd < 0) {
        return GINT_TO_POINTER(errno);
    }
    keeper.children = g_ptr_array_new();
    thread = g_thread_try_new("child", keep, NULL, NULL);
    if (!thread) {
        close_fd(&keeper.wake_fd);
        return GINT_TO_POINTER(EAGAIN);
    }
    g_thread_unref(thread);
    return NULL;
}

/* Lets the keeper fork; 0 or an errno.  It never waits for long itself. */
int child_keeper_fork(BeChild *child, const ChildExec *exec)
{
    static GOnce once = G_ONCE_INIT;
    ForkOrder order = {.child = child, .exec = exec};
    int errnum = GPOINTER_TO_INT(g_once(&once, start_keeper, NULL));

    if (errnum != 0) {
        return errnum;
    }
    g_mutex_lock(&keeper.lock);
    g_queue_push_tail(&keeper.orders, &order);
    (void)eventfd_write(keeper.wake_fd, 1);
    while (!order.done) {
        g_cond_wait(&keeper.done, &keeper.lock);
    }
    g_mutex_unlock(&keeper.lock);
    return order.errnum;
}
