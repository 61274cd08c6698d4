/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-wait.c - be_poll() gives what poll(2) gives, and learns when to look busily.
 */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "backend/wait.h"

#define LIMIT_US 1000

typedef struct {
    int ends[2];
    BePolling polling;
} Pipe;

static void pipe_open(Pipe *pipe_)
{
    *pipe_ = (Pipe){.polling = {0}};
    g_assert_cmpint(pipe(pipe_->ends), ==, 0);
}

static void pipe_close(Pipe *pipe_)
{
    close(pipe_->ends[0]);
    close(pipe_->ends[1]);
}

static int pipe_poll(Pipe *pipe_, int timeout_ms, short *ret_revents)
{
    struct pollfd fd = {.fd = pipe_->ends[0], .events = POLLIN};
    int ready = be_poll(&pipe_->polling, &fd, 1, timeout_ms);

    *ret_revents = fd.revents;
    return ready;
}

static gint64 thread_cpu_us(void)
{
    struct timespec at;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
    return (gint64)at.tv_sec * G_USEC_PER_SEC + at.tv_nsec / 1000;
}

static void assert_times_out(Pipe *pipe_)
{
    gint64 start_us = g_get_monotonic_time();
    short revents;

    g_assert_cmpint(pipe_poll(pipe_, 20, &revents), ==, 0);
    g_assert_cmpint(g_get_monotonic_time() - start_us, >=, 19 * 1000);
}

static void assert_ready(Pipe *pipe_)
{
    short revents;
    char byte;

    g_assert_cmpint(write(pipe_->ends[1], "x", 1), ==, 1);
    g_assert_cmpint(pipe_poll(pipe_, -1, &revents), ==, 1);
    g_assert_cmpint(revents, ==, POLLIN);
    g_assert_cmpint(read(pipe_->ends[0], &byte, 1), ==, 1);
}

static void test_never_busy(void)
{
    Pipe pipe_;

    pipe_open(&pipe_);
    be_poll_set_busy(0);
    assert_ready(&pipe_);
    assert_times_out(&pipe_);
    g_assert_cmpint(pipe_.polling.usual_us, ==, 0);
    pipe_close(&pipe_);
}

/* Two or three long waits end it, however often it is asked then. */
static void test_idle_is_not_busy(void)
{
    gint64 cpu_us;
    Pipe pipe_;

    pipe_open(&pipe_);
    be_poll_set_busy(LIMIT_US);
    for (int i = 0; i < 3; i++) {
        assert_times_out(&pipe_);
    }
    g_assert_cmpint(pipe_.polling.usual_us, >=, LIMIT_US);
    cpu_us = thread_cpu_us();
    for (int i = 0; i < 20; i++) {
        assert_times_out(&pipe_);
    }
    g_assert_cmpint(thread_cpu_us() - cpu_us, <, 20 * LIMIT_US / 2);
    pipe_close(&pipe_);
}

static void test_short_waits_make_it_busy_again(void)
{
    Pipe pipe_;

    pipe_open(&pipe_);
    be_poll_set_busy(LIMIT_US);
    for (int i = 0; i < 5; i++) {
        assert_times_out(&pipe_);
    }
    g_assert_cmpint(pipe_.polling.usual_us, >=, LIMIT_US);
    for (int i = 0; i < 200 && pipe_.polling.usual_us >= LIMIT_US / 2; i++) {
        assert_ready(&pipe_);
    }
    g_assert_cmpint(pipe_.polling.usual_us, <, LIMIT_US / 2);
    pipe_close(&pipe_);
}

/* ---- What comes while it looks, and while it sleeps ------------------------------- */

typedef struct {
    const Pipe *pipe_;
    gint64 after_us;
} Writer;

static gpointer write_later(gpointer data)
{
    const Writer *writer = data;

    g_usleep((gulong)writer->after_us);
    g_assert_cmpint(write(writer->pipe_->ends[1], "x", 1), ==, 1);
    return NULL;
}

static void test_what_comes_later(void)
{
    static const gint64 after_us[] = {0, 100, LIMIT_US, 30 * LIMIT_US};

    be_poll_set_busy(LIMIT_US);
    for (guint i = 0; i < G_N_ELEMENTS(after_us); i++) {
        Writer writer = {.after_us = after_us[i]};
        GThread *thread;
        short revents;
        Pipe pipe_;

        pipe_open(&pipe_);
        writer.pipe_ = &pipe_;
        thread = g_thread_new("writer", write_later, &writer);
        g_assert_cmpint(pipe_poll(&pipe_, -1, &revents), ==, 1);
        g_assert_cmpint(revents, ==, POLLIN);
        g_thread_join(thread);
        pipe_close(&pipe_);
    }
}

static void on_signal(int signum G_GNUC_UNUSED)
{
}

static gpointer interrupt_later(gpointer data)
{
    gint *done = data;

    while (!g_atomic_int_get(done)) {
        g_usleep(5 * 1000);
        kill(getpid(), SIGUSR1);
    }
    return NULL;
}

static void test_signal(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t usr1;
    gint done = 0;
    GThread *thread;
    short revents;
    Pipe pipe_;
    int ready;

    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    /* Only this thread takes it. */
    pthread_sigmask(SIG_BLOCK, &usr1, NULL);
    thread = g_thread_new("interrupt", interrupt_later, &done);
    pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    pipe_open(&pipe_);
    be_poll_set_busy(LIMIT_US);
    ready = pipe_poll(&pipe_, -1, &revents);
    g_assert_cmpint(ready, ==, -1);
    g_assert_cmpint(errno, ==, EINTR);
    g_atomic_int_set(&done, 1);
    g_thread_join(thread);
    pipe_close(&pipe_);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/wait/never-busy", test_never_busy);
    g_test_add_func("/wait/idle-is-not-busy", test_idle_is_not_busy);
    g_test_add_func("/wait/short-waits-make-it-busy-again", test_short_waits_make_it_busy_again);
    g_test_add_func("/wait/what-comes-later", test_what_comes_later);
    g_test_add_func("/wait/signal", test_signal);
    return g_test_run();
}
