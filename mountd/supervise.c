/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * supervise.c - the processes of vmsnapfs-mountd; see supervise.h.
 *
 * Main thread, everything from its main loop.  A process is known and signalled
 * by the id that fork(2) gave, and only until its end has been collected.  Dead
 * mounts are left to the next vmsnapfs: it takes one away right before it mounts,
 * so that readers in between get errors and no empty directory.
 */
#include "supervise.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "mountd/notify.h"

#define BACKOFF_MAX_S 60
#define HEALTHY_US (60 * G_USEC_PER_SEC)
#define FIRST_TRY_S 30         /* ready is said after that in any case */
#define KILL_AFTER_S 80        /* vmsnapfs bounds its own end to 75 */

struct VmSupervisor {
    char *program;
    char *log;
    gboolean debug;
    GMainLoop *loop;
    GPtrArray *children;       /* of Child */
    guint first_try;           /* timer; 0: ready was said */
    gboolean stopping;
    gboolean killed;
};

typedef struct {
    VmSupervisor *supervisor;
    VmHost *host;
    GPid pid;                  /* 0: does not run */
    guint watch;
    guint restart_timer;
    guint kill_timer;
    guint delay_s;             /* before the next restart */
    gint64 ready_us;           /* monotonic; 0: not mounted */
    gboolean tried;            /* was mounted or failed at least once */
    gboolean leaving;          /* not wanted any more */
    VmNotify *notify;
} Child;

static gboolean child_start(gpointer user);

static void source_clear(guint *source)
{
    if (*source) {
        (void)g_source_remove(*source);
        *source = 0;
    }
}

static void child_free(gpointer data)
{
    Child *child = data;

    source_clear(&child->watch);
    source_clear(&child->restart_timer);
    source_clear(&child->kill_timer);
    vm_notify_free(child->notify);
    vm_host_free(child->host);
    g_free(child);
}

/* ---- What others see ---------------------------------------------------------- */

static void status_tell(VmSupervisor *supervisor)
{
    guint mounted = 0;
    guint tried = 0;

    for (guint i = 0; i < supervisor->children->len; i++) {
        const Child *child = g_ptr_array_index(supervisor->children, i);

        mounted += child->ready_us ? 1 : 0;
        tried += child->tried ? 1 : 0;
    }
    (void)sd_notifyf(0, "STATUS=%u of %u hosts mounted", mounted, supervisor->children->len);
    if (supervisor->first_try && tried == supervisor->children->len) {
        source_clear(&supervisor->first_try);
        (void)sd_notify(0, "READY=1");
    }
}

static gboolean first_try_over(gpointer user)
{
    VmSupervisor *supervisor = user;

    supervisor->first_try = 0;
    (void)sd_notify(0, "READY=1");
    return G_SOURCE_REMOVE;
}

static void child_ready(gpointer user)
{
    Child *child = user;

    child->ready_us = g_get_monotonic_time();
    child->tried = TRUE;
    g_message("%s: mounted at '%s', pid %d", child->host->name, child->host->mountpoint,
              (int)child->pid);
    status_tell(child->supervisor);
}

/* ---- The end of a process ------------------------------------------------------ */

static void child_describe_end(const Child *child, int status)
{
    if (WIFSIGNALED(status)) {
        g_warning("%s: pid %d was killed: %s", child->host->name, (int)child->pid,
                  g_strsignal(WTERMSIG(status)));
    } else if (WEXITSTATUS(status) != 0) {
        g_warning("%s: pid %d failed with %d", child->host->name, (int)child->pid,
                  WEXITSTATUS(status));
    } else {
        g_message("%s: pid %d has ended", child->host->name, (int)child->pid);
    }
}

static void restart_plan(Child *child)
{
    gboolean healthy = child->ready_us
                       && g_get_monotonic_time() - child->ready_us >= HEALTHY_US;

    child->delay_s = healthy || !child->delay_s ? 1 : MIN(child->delay_s * 2, BACKOFF_MAX_S);
    child->restart_timer = g_timeout_add_seconds(child->delay_s, child_start, child);
    g_message("%s: starting again in %u s", child->host->name, child->delay_s);
}

static void child_ended(GPid pid, int status, gpointer user)
{
    Child *child = user;
    VmSupervisor *supervisor = child->supervisor;

    child->watch = 0;
    child_describe_end(child, status);
    g_spawn_close_pid(pid);
    child->pid = 0;
    child->tried = TRUE;
    source_clear(&child->kill_timer);
    g_clear_pointer(&child->notify, vm_notify_free);
    if (child->leaving) {
        (void)g_ptr_array_remove(supervisor->children, child);
    } else {
        restart_plan(child);
        child->ready_us = 0;
    }
    if (supervisor->stopping && supervisor->children->len == 0) {
        g_main_loop_quit(supervisor->loop);
    }
    status_tell(supervisor);
}

static gboolean child_kill(gpointer user)
{
    Child *child = user;

    child->kill_timer = 0;
    child->supervisor->killed = TRUE;
    g_warning("%s: pid %d does not end and is killed", child->host->name, (int)child->pid);
    (void)kill(child->pid, SIGKILL);
    return G_SOURCE_REMOVE;
}

/* Frees a child that does not run. */
static void child_end(Child *child)
{
    child->leaving = TRUE;
    source_clear(&child->restart_timer);
    if (!child->pid) {
        (void)g_ptr_array_remove(child->supervisor->children, child);
        return;
    }
    (void)kill(child->pid, SIGTERM);
    if (!child->kill_timer) {
        child->kill_timer = g_timeout_add_seconds(KILL_AFTER_S, child_kill, child);
    }
}

/* ---- The start of a process ----------------------------------------------------- */

/*
 * In the child, between fork and exec: when we die it is to come to its own
 * ordered end.  Only async-signal-safe calls.
 */
static void child_setup(gpointer user)
{
    const pid_t *parent = user;

    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != *parent) {
        _exit(1);
    }
}

static char **child_arguments(const Child *child)
{
    const VmSupervisor *supervisor = child->supervisor;
    g_autoptr(GPtrArray) argv = g_ptr_array_new();

    g_ptr_array_add(argv, g_strdup(supervisor->program));
    g_ptr_array_add(argv, g_strdup("-f"));
    if (supervisor->debug) {
        g_ptr_array_add(argv, g_strdup("-d"));
    }
    if (supervisor->log) {
        g_ptr_array_add(argv, g_strconcat("--log=", supervisor->log, NULL));
    }
    if (child->host->options) {
        g_ptr_array_add(argv, g_strdup("-o"));
        g_ptr_array_add(argv, g_strdup(child->host->options));
    }
    g_ptr_array_add(argv, g_strdup("--"));
    g_ptr_array_add(argv, g_strdup(child->host->uri));
    g_ptr_array_add(argv, g_strdup(child->host->mountpoint));
    g_ptr_array_add(argv, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&argv), FALSE);
}

static gboolean child_spawn(Child *child, GError **error)
{
    g_auto(GStrv) argv = child_arguments(child);
    g_auto(GStrv) environment = g_get_environ();
    pid_t self = getpid();

    child->notify = vm_notify_new(child_ready, child, error);
    if (!child->notify) {
        return FALSE;
    }
    environment = g_environ_setenv(environment, "NOTIFY_SOCKET", vm_notify_address(child->notify),
                                   TRUE);
    if (!g_spawn_async("/", argv, environment, G_SPAWN_DO_NOT_REAP_CHILD, child_setup, &self,
                       &child->pid, error)) {
        child->pid = 0;
        g_clear_pointer(&child->notify, vm_notify_free);
        return FALSE;
    }
    vm_notify_set_pid(child->notify, child->pid);
    return TRUE;
}

static gboolean child_start(gpointer user)
{
    Child *child = user;
    g_autoptr(GError) error = NULL;

    child->restart_timer = 0;
    child->ready_us = 0;
    if (child_spawn(child, &error)) {
        child->watch = g_child_watch_add(child->pid, child_ended, child);
        g_info("%s: started pid %d", child->host->name, (int)child->pid);
    } else {
        g_warning("%s: cannot start: %s", child->host->name, error->message);
        child->tried = TRUE;
        restart_plan(child);
        status_tell(child->supervisor);
    }
    return G_SOURCE_REMOVE;
}

/* ---- All of them ---------------------------------------------------------------- */

VmSupervisor *vm_supervisor_new(const VmSupervisorConfig *config)
{
    VmSupervisor *supervisor = g_new0(VmSupervisor, 1);

    supervisor->program = g_strdup(config->program);
    supervisor->log = g_strdup(config->log);
    supervisor->debug = config->debug;
    supervisor->loop = g_main_loop_new(NULL, FALSE);
    supervisor->children = g_ptr_array_new_with_free_func(child_free);
    supervisor->first_try = g_timeout_add_seconds(FIRST_TRY_S, first_try_over, supervisor);
    return supervisor;
}

void vm_supervisor_free(VmSupervisor *supervisor)
{
    if (!supervisor) {
        return;
    }
    source_clear(&supervisor->first_try);
    g_ptr_array_unref(supervisor->children);
    g_main_loop_unref(supervisor->loop);
    g_free(supervisor->program);
    g_free(supervisor->log);
    g_free(supervisor);
}

static Child *child_find(VmSupervisor *supervisor, const char *name)
{
    for (guint i = 0; i < supervisor->children->len; i++) {
        Child *child = g_ptr_array_index(supervisor->children, i);

        if (g_str_equal(child->host->name, name)) {
            return child;
        }
    }
    return NULL;
}

/* Takes @host over. */
static void host_take(VmSupervisor *supervisor, VmHost *host)
{
    Child *child = child_find(supervisor, host->name);

    if (!child) {
        child = g_new0(Child, 1);
        child->supervisor = supervisor;
        child->host = host;
        g_ptr_array_add(supervisor->children, child);
        (void)child_start(child);
        return;
    }
    child->leaving = FALSE;
    if (!vm_host_equal(child->host, host)) {
        g_message("%s: the changed settings count from its next start", host->name);
    }
    vm_host_free(child->host);
    child->host = host;
}

static gboolean host_is_in(GPtrArray *hosts, const char *name)
{
    for (guint i = 0; i < hosts->len; i++) {
        const VmHost *host = g_ptr_array_index(hosts, i);

        if (g_str_equal(host->name, name)) {
            return TRUE;
        }
    }
    return FALSE;
}

void vm_supervisor_set_hosts(VmSupervisor *supervisor, GPtrArray *hosts)
{
    if (supervisor->stopping) {
        return;
    }
    for (guint i = supervisor->children->len; i > 0; i--) {
        Child *child = g_ptr_array_index(supervisor->children, i - 1);

        if (!host_is_in(hosts, child->host->name)) {
            g_message("%s: ending, it is not in the configuration any more", child->host->name);
            child_end(child);
        }
    }
    while (hosts->len > 0) {
        host_take(supervisor, g_ptr_array_steal_index(hosts, 0));
    }
    status_tell(supervisor);
}

void vm_supervisor_stop(VmSupervisor *supervisor)
{
    if (supervisor->stopping) {
        return;
    }
    supervisor->stopping = TRUE;
    source_clear(&supervisor->first_try);
    (void)sd_notifyf(0, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%" G_GUINT64_FORMAT,
                     (guint64)(KILL_AFTER_S + 5) * G_USEC_PER_SEC);
    for (guint i = supervisor->children->len; i > 0; i--) {
        child_end(g_ptr_array_index(supervisor->children, i - 1));
    }
    if (supervisor->children->len == 0) {
        g_main_loop_quit(supervisor->loop);
    }
}

gboolean vm_supervisor_run(VmSupervisor *supervisor)
{
    if (!supervisor->stopping || supervisor->children->len > 0) {
        g_main_loop_run(supervisor->loop);
    }
    return !supervisor->killed;
}
