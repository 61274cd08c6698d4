/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * worker.c - the threads that read requests from the kernel.
 *
 * One of them at a time waits at the device, and serves itself what it got; another
 * one is woken only when there is more: then, while it waits for a server or a disk
 * (be_thread_on_wait()), or when it takes too long.  If all of them waited at the
 * device, the kernel would wake each in its turn for a caller who reads one block after
 * the other.  While such a caller's requests come it does not sleep at once (be_poll()): to
 * be woken takes longer than he needs for the next one.  What was measured,
 * contrib/bench/RESULTS.md says.
 *
 * `lock` guards whose turn it is, and is held for a few instructions.
 */
#include "fs/worker.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>

#include "fs/req.h"

#define WORKERS 4
#define WAKE_SIGNAL SIGUSR1
#define WAKE_EVERY_US 10000

/* No request lies at the device for longer because one worker is stuck. */
#define WATCH_US 20000

typedef struct {
    FsWorkers *all;
    GThread *thread;
    pthread_t id;
    gint running;              /* atomic; -1: not yet; 0: it has left its loop */
} Worker;

struct FsWorkers {
    Fs *fs;
    void (*ready)(gpointer user);
    gpointer user;
    gint ready_done;           /* atomic */
    GMutex lock;
    GCond turn;                /* the device is free, and somebody is wanted there */
    gboolean at_device;        /* guarded by lock: somebody is there */
    BePolling polling;         /* of who is at the device */
    gboolean watched;          /* guarded by lock: somebody who rests looks up by himself */
    gint64 served_us;          /* guarded by lock: when the last request came */
    Worker worker[WORKERS];
};

/* ---- Turns ---------------------------------------------------------------------- */

/* While requests come one of the resting looks up now and then; else all sleep. */
static void rest_locked(FsWorkers *all)
{
    gint64 now_us = g_get_monotonic_time();

    if (all->watched || now_us - all->served_us > WATCH_US) {
        g_cond_wait(&all->turn, &all->lock);
        return;
    }
    all->watched = TRUE;
    g_cond_wait_until(&all->turn, &all->lock, now_us + WATCH_US);
    all->watched = FALSE;
}

static void take_turn(FsWorkers *all)
{
    g_mutex_lock(&all->lock);
    while (all->at_device && !g_atomic_int_get(&all->fs->over)) {
        rest_locked(all);
    }
    all->at_device = TRUE;
    g_mutex_unlock(&all->lock);
}

static gboolean more_waits(const FsWorkers *all)
{
    struct pollfd device = {.fd = fuse_session_fd(all->fs->session), .events = POLLIN};

    return poll(&device, 1, 0) != 0;
}

/* The caller has got its request. */
static void give_turn(FsWorkers *all)
{
    gboolean wanted = more_waits(all);

    g_mutex_lock(&all->lock);
    all->at_device = FALSE;
    all->served_us = g_get_monotonic_time();
    if (wanted || !all->watched) {
        g_cond_signal(&all->turn);
    }
    g_mutex_unlock(&all->lock);
}

/* The caller waits for a server or a disk, and there is more to do. */
static void let_another_work(gpointer user)
{
    FsWorkers *all = user;

    g_mutex_lock(&all->lock);
    if (!all->at_device) {
        g_cond_signal(&all->turn);
    }
    g_mutex_unlock(&all->lock);
}

static void wake_all(FsWorkers *all)
{
    g_mutex_lock(&all->lock);
    g_cond_broadcast(&all->turn);
    g_mutex_unlock(&all->lock);
}

/* ---- Threads --------------------------------------------------------------------- */

static void woken(int signum G_GNUC_UNUSED)
{
}

static int receive(FsWorkers *all, struct fuse_buf *buffer)
{
    struct pollfd device = {.fd = fuse_session_fd(all->fs->session), .events = POLLIN};

    if (g_atomic_int_get(&all->fs->over)) {
        return 0;
    }
    if (be_poll(&all->polling, &device, 1, -1) < 0) {
        return -errno;
    }
    return fuse_session_receive_buf(all->fs->session, buffer);
}

static void worker_serve(Worker *worker)
{
    FsWorkers *all = worker->all;
    Fs *fs = all->fs;
    struct fuse_buf buffer = {.mem = NULL};

    while (!g_atomic_int_get(&fs->over) && !fuse_session_exited(fs->session)) {
        int result;

        take_turn(all);
        result = receive(all, &buffer);
        give_turn(all);
        if (result == -EINTR || result == -EAGAIN) {
            continue;
        }
        if (result <= 0) {
            break;
        }
        fuse_session_process_buf(fs->session, &buffer);
        if (all->ready && g_atomic_int_get(&fs->kernel_ready)
            && g_atomic_int_compare_and_exchange(&all->ready_done, 0, 1)) {
            all->ready(all->user);
        }
    }
    free(buffer.mem);          /* libfuse allocated it with malloc() */
    wake_all(all);
    fs_exit(fs);
}

static gpointer worker_main(gpointer data)
{
    Worker *worker = data;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, WAKE_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    worker->id = pthread_self();
    be_thread_on_wait(fuse_session_fd(worker->all->fs->session), let_another_work, worker->all);
    g_atomic_int_set(&worker->running, 1);
    worker_serve(worker);
    g_atomic_int_set(&worker->running, 0);
    return NULL;
}

/*
 * Blocked reads of /dev/fuse are woken by a signal.  One that arrives between
 * the check of the flag and the read is lost, so it is sent again and again.
 */
static void join_worker(Worker *worker)
{
    while (g_atomic_int_get(&worker->running)) {
        pthread_kill(worker->id, WAKE_SIGNAL);
        g_usleep(WAKE_EVERY_US);
    }
    g_thread_join(worker->thread);
}

void fs_workers_start(Fs *fs, void (*ready)(gpointer user), gpointer user)
{
    struct sigaction action = {.sa_handler = woken};
    FsWorkers *all = g_new0(FsWorkers, 1);

    sigaction(WAKE_SIGNAL, &action, NULL);
    all->fs = fs;
    all->ready = ready;
    all->user = user;
    g_mutex_init(&all->lock);
    g_cond_init(&all->turn);
    fs->workers = all;
    for (guint i = 0; i < WORKERS; i++) {
        Worker *worker = &all->worker[i];
        g_autofree char *name = g_strdup_printf("fuse-%u", i);

        worker->all = all;
        worker->running = -1;
        worker->thread = g_thread_new(name, worker_main, worker);
        while (g_atomic_int_get(&worker->running) == -1) {
            g_thread_yield();
        }
    }
}

void fs_workers_stop(FsWorkers *all)
{
    wake_all(all);
    for (guint i = 0; i < WORKERS; i++) {
        join_worker(&all->worker[i]);
    }
    g_cond_clear(&all->turn);
    g_mutex_clear(&all->lock);
    g_free(all);
}
