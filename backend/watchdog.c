/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * watchdog.c - the process that thaws, and our end of its socket.
 *
 * Lines, from us: "arm UUID MILLISECONDS", "extend UUID MILLISECONDS", "disarm UUID";
 * each is answered by "ok" or "no TEXT".  One request at a time: `lock` is held from the request to
 * its answer.
 *
 * The process has one thread and no event loop.  Each thaw is a child of its own, so that
 * a guest whose agent hangs holds up no other.
 */
#include "backend/watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/freeze-channel.h"
#include "backend/freeze.h"

#define ANSWER_WAIT_MS 5000
#define LINE_MAX_BYTES 256
#define RETRY_FIRST_MS 500
#define RETRY_MAX_MS 8000
#define TRIES 60

/* Of one try; longer than libvirt waits for what somebody else does to the guest. */
#define TRY_SECONDS 60
#define CHILD_POLL_MS 20

struct BeWatchdog {
    GMutex lock;
    int fd;                    /* guarded by lock */
    pid_t pid;
};

/* ---- The process --------------------------------------------------------------- */

/* A guest that is watched. */
typedef struct {
    char *uuid;
    gint64 due_us;             /* monotonic */
    guint tries;
    pid_t thawing;             /* a child of ours, or 0 */
    gboolean disarmed;         /* goes with its child */
} Watched;

typedef struct {
    int fd;
    const char *uri;
    virConnectPtr conn;
    GPtrArray *watched;        /* of Watched */
    gboolean alone;            /* the other end is gone */
} Process;

static void watched_free(gpointer data)
{
    Watched *watched = data;

    g_free(watched->uuid);
    g_free(watched);
}

static gboolean process_connect(Process *process)
{
    if (process->conn && virConnectIsAlive(process->conn) == 1) {
        return TRUE;
    }
    if (process->conn) {
        virConnectClose(process->conn);
    }
    process->conn = virConnectOpen(process->uri);
    return process->conn != NULL;
}

/* Whether the guest needs no thaw any more: it was thawed, or is not running. */
static gboolean process_thaw(Process *process, const Watched *watched)
{
    g_autoptr(GError) error = NULL;
    virDomainPtr domain;
    gboolean over;

    if (!process_connect(process)) {
        return FALSE;
    }
    domain = virDomainLookupByUUIDString(process->conn, watched->uuid);
    if (!domain) {
        virErrorPtr err = virGetLastError();

        return err && err->code == VIR_ERR_NO_DOMAIN;
    }
    /* libvirt, where it can, has found an agent that is back by the second try. */
    over = be_freeze_thaw_once(domain, &error) || virDomainIsActive(domain) == 0
           || (watched->tries > 0 && be_freeze_agent_is_gone(error)
               && be_channel_thaw_past_libvirt(domain, NULL));
    virDomainFree(domain);
    return over;
}

static Watched *process_find(Process *process, const char *uuid)
{
    for (guint i = 0; i < process->watched->len; i++) {
        Watched *watched = g_ptr_array_index(process->watched, i);

        if (g_str_equal(watched->uuid, uuid)) {
            return watched;
        }
    }
    return NULL;
}

/* A thaw that is under way cannot be called back from libvirt, whoever dies here. */
static const char *process_arm(Process *process, const char *uuid, guint after_ms,
                               gboolean frozen)
{
    Watched *watched = process_find(process, uuid);

    if (!process_connect(process)) {
        return "no libvirt cannot be reached\n";
    }
    if ((watched && watched->thawing > 0) || (frozen && (!watched || watched->tries > 0))) {
        return "no the guest is being thawed\n";
    }
    if (!watched) {
        watched = g_new0(Watched, 1);
        watched->uuid = g_strdup(uuid);
        g_ptr_array_add(process->watched, watched);
    }
    watched->due_us = g_get_monotonic_time() + (gint64)after_ms * 1000;
    watched->tries = 0;
    return "ok\n";
}

static const char *process_command(Process *process, const char *line)
{
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    unsigned after_ms;

    if (sscanf(line, "arm %36s %u", uuid, &after_ms) == 2) {
        return process_arm(process, uuid, after_ms, FALSE);
    }
    if (sscanf(line, "extend %36s %u", uuid, &after_ms) == 2) {
        return process_arm(process, uuid, after_ms, TRUE);
    }
    if (sscanf(line, "disarm %36s", uuid) == 1) {
        Watched *watched = process_find(process, uuid);

        if (watched && watched->thawing > 0) {
            watched->disarmed = TRUE;
        } else if (watched) {
            g_ptr_array_remove_fast(process->watched, watched);
        }
        return "ok\n";
    }
    return "no such command\n";
}

/* A SOCK_SEQPACKET message is one line. */
static void process_read(Process *process)
{
    char line[LINE_MAX_BYTES];
    ssize_t size = recv(process->fd, line, sizeof(line) - 1, 0);
    const char *answer;

    if (size < 0 && errno == EINTR) {
        return;
    }
    if (size <= 0) {
        process->alone = TRUE;
        return;
    }
    line[size] = '\0';
    answer = process_command(process, line);
    if (send(process->fd, answer, strlen(answer), MSG_NOSIGNAL) < 0) {
        process->alone = TRUE;
    }
}

/* With a connection of its own: two processes cannot share ours. */
static void start_thawing(const Process *process, Watched *watched)
{
    pid_t pid = fork();

    if (pid == 0) {
        Process child = {.fd = -1, .uri = process->uri};

        close(process->fd);
        alarm(TRY_SECONDS);
        _exit(process_thaw(&child, watched) ? 0 : 1);
    }
    watched->thawing = pid;
}

/* Whether a try has ended; it may not even have begun.  @ret_over: no other is needed. */
static gboolean has_ended(Watched *watched, gboolean *ret_over)
{
    int status = -1;
    pid_t pid = watched->thawing > 0 ? waitpid(watched->thawing, &status, WNOHANG) : -1;

    if (pid == 0) {
        return FALSE;
    }
    watched->thawing = 0;
    *ret_over = pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return TRUE;
}

static gboolean is_due(const Process *process, const Watched *watched)
{
    return watched->due_us <= g_get_monotonic_time() || (process->alone && watched->tries == 0);
}

/* Thaws whose time has come; one that fails comes again, later and later. */
static void process_work(Process *process)
{
    for (guint i = process->watched->len; i > 0; i--) {
        Watched *watched = g_ptr_array_index(process->watched, i - 1);
        guint wait_ms = MIN(RETRY_FIRST_MS << MIN(watched->tries, 4), RETRY_MAX_MS);
        gboolean over = FALSE;

        if (watched->thawing == 0 && is_due(process, watched)) {
            start_thawing(process, watched);
        }
        if (watched->thawing == 0 || !has_ended(watched, &over)) {
            continue;
        }
        if (over || watched->disarmed || ++watched->tries > TRIES) {
            g_ptr_array_remove_index_fast(process->watched, i - 1);
        } else {
            watched->due_us = g_get_monotonic_time() + (gint64)wait_ms * 1000;
        }
    }
}

static int process_pause_ms(const Process *process)
{
    gint64 first_us = G_MAXINT64;

    for (guint i = 0; i < process->watched->len; i++) {
        const Watched *watched = g_ptr_array_index(process->watched, i);

        if (watched->thawing > 0) {
            return CHILD_POLL_MS;
        }
        first_us = MIN(first_us, watched->due_us);
    }
    if (first_us == G_MAXINT64) {
        return -1;
    }
    return (int)CLAMP((first_us - g_get_monotonic_time()) / 1000 + 1, 0, 60000);
}

static void ignore_libvirt_error(void *user G_GNUC_UNUSED, virErrorPtr error G_GNUC_UNUSED)
{
}

static void process_main(int fd, const char *uri)
{
    Process process = {.fd = fd, .uri = uri};

    virSetErrorFunc(NULL, ignore_libvirt_error);
    process.watched = g_ptr_array_new_with_free_func(watched_free);
    while (!process.alone || process.watched->len > 0) {
        struct pollfd pollfd = {.fd = process.alone ? -1 : fd, .events = POLLIN};

        if (poll(&pollfd, 1, process_pause_ms(&process)) > 0) {
            process_read(&process);
        }
        process_work(&process);
    }
    g_ptr_array_unref(process.watched);
    if (process.conn) {
        virConnectClose(process.conn);
    }
}

/* Nothing of the parent may stay: not its lock, not its pipes, not its signals. */
static void process_start(int fd, const char *uri)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE};
    sigset_t none;
    int kept = dup2(fd, STDERR_FILENO + 1);
    int null = open("/dev/null", O_RDWR);

    /* Whoever started us in the background waits until his pipes are closed. */
    for (int i = STDIN_FILENO; null >= 0 && i <= STDERR_FILENO; i++) {
        (void)dup2(null, i);
    }
    for (gsize i = 0; i < G_N_ELEMENTS(ignored); i++) {
        signal(ignored[i], SIG_IGN);
    }
    /* Whoever started us may have ignored these, which children inherit. */
    signal(SIGCHLD, SIG_DFL);
    signal(SIGALRM, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    (void)close_range((unsigned)kept + 1, ~0U, 0);
    (void)prctl(PR_SET_NAME, "vmsnapfs-thaw");
    process_main(kept, uri);
    _exit(0);
}

/* ---- Our end ---------------------------------------------------------------------- */

BeWatchdog *be_watchdog_new(const char *uri, GError **error)
{
    BeWatchdog *watchdog;
    int ends[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        be_error_set_errno(error, errno, "cannot make a socket for the watchdog");
        return NULL;
    }
    pid = fork();
    if (pid == 0) {
        process_start(ends[1], uri);
    }
    close(ends[1]);
    if (pid < 0) {
        be_error_set_errno(error, errno, "cannot start the watchdog");
        close(ends[0]);
        return NULL;
    }
    watchdog = g_new0(BeWatchdog, 1);
    g_mutex_init(&watchdog->lock);
    watchdog->fd = ends[0];
    watchdog->pid = pid;
    return watchdog;
}

/*
 * The request and its answer.  An answer that comes too late would be taken
 * for that of the next request, so after one the watchdog counts as gone.
 */
static gboolean ask_locked(BeWatchdog *watchdog, const char *line, GError **error)
{
    struct pollfd pollfd = {.fd = watchdog->fd, .events = POLLIN};
    char answer[LINE_MAX_BYTES] = "";
    int ready = -1;

    if (watchdog->fd >= 0
        && send(watchdog->fd, line, strlen(line), MSG_NOSIGNAL) == (ssize_t)strlen(line)) {
        ready = poll(&pollfd, 1, ANSWER_WAIT_MS);
    }
    if (ready <= 0 || recv(watchdog->fd, answer, sizeof(answer) - 1, 0) <= 0) {
        g_set_error(error, BE_ERROR, ready == 0 ? ETIMEDOUT : EIO,
                    "the watchdog that would thaw the guest does not answer");
        if (watchdog->fd >= 0) {
            close(watchdog->fd);
            watchdog->fd = -1;
        }
        return FALSE;
    }
    if (!g_str_has_prefix(answer, "ok")) {
        g_set_error(error, BE_ERROR, EHOSTUNREACH, "the watchdog cannot watch: %s",
                    g_strchomp(answer + strlen("no ")));
        return FALSE;
    }
    return TRUE;
}

static gboolean ask_of(BeWatchdog *watchdog, const char *verb, const char *uuid, guint after_ms,
                       GError **error)
{
    g_autofree char *line = g_strdup_printf("%s %s %u", verb, uuid, after_ms);
    gboolean done;

    g_mutex_lock(&watchdog->lock);
    done = ask_locked(watchdog, line, error);
    g_mutex_unlock(&watchdog->lock);
    return done;
}

gboolean be_watchdog_arm(BeWatchdog *watchdog, const char *uuid, guint after_ms, GError **error)
{
    return ask_of(watchdog, "arm", uuid, after_ms, error);
}

gboolean be_watchdog_extend(BeWatchdog *watchdog, const char *uuid, guint after_ms, GError **error)
{
    return ask_of(watchdog, "extend", uuid, after_ms, error);
}

void be_watchdog_disarm(BeWatchdog *watchdog, const char *uuid)
{
    g_autoptr(GError) error = NULL;

    if (!ask_of(watchdog, "disarm", uuid, 0, &error)) {
        g_warning("%s", error->message);
    }
}

void be_watchdog_free(BeWatchdog *watchdog)
{
    if (!watchdog) {
        return;
    }
    if (watchdog->fd >= 0) {
        close(watchdog->fd);
    }
    (void)waitpid(watchdog->pid, NULL, WNOHANG);
    g_mutex_clear(&watchdog->lock);
    g_free(watchdog);
}
