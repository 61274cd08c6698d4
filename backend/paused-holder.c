/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * paused-holder.c - the process that turns a held machine off when we cannot; see
 * paused-holder.h.
 *
 * Messages, from us: "start", "let go"; the first is answered by "ok ID" or "no
 * ERRNO TEXT".  The process has one thread and no event loop.  Our end: the action
 * worker that starts the machine.
 */
#include "backend/paused-holder.h"

#include <errno.h>
#include <fcntl.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/auto.h"
#include "backend/error.h"
#include "backend/unused.h"

/* A start waits for huge pages, networks and hooks; libvirt has no limit of its own. */
#define START_WAIT_MS (120 * 1000)
#define MESSAGE_BYTES 1024
#define RETRY_FIRST_MS 250
#define RETRY_MAX_MS 8000

static const char start_word[] = "start";
static const char let_go_word[] = "let go";

/* ---- The process --------------------------------------------------------------- */

typedef struct {
    const char *uri;
    const char *uuid;
    virConnectPtr conn;
    int id;                    /* of the machine's run; -1: it was not started */
} Holder;

static gboolean process_connect(Holder *holder, GError **error)
{
    if (holder->conn && virConnectIsAlive(holder->conn) == 1) {
        return TRUE;
    }
    if (holder->conn) {
        virConnectClose(holder->conn);
    }
    holder->conn = virConnectOpen(holder->uri);
    if (!holder->conn) {
        be_error_from_libvirt(error, "cannot connect to libvirt");
    }
    return holder->conn != NULL;
}

/*
 * With a managed save image the start would restore that instead, and delete it:
 * looked for again at the last moment.
 */
static gboolean process_start(Holder *holder, GError **error)
{
    g_autoptr(BeVirDomain) domain = NULL;
    int saved;

    if (!process_connect(holder, error)) {
        return FALSE;
    }
    domain = virDomainLookupByUUIDString(holder->conn, holder->uuid);
    saved = domain ? virDomainHasManagedSaveImage(domain, 0) : -1;
    if (saved > 0) {
        g_set_error(error, BE_ERROR, EBUSY, "the machine has a managed save image");
        return FALSE;
    }
    if (saved < 0 || virDomainCreateWithFlags(domain, VIR_DOMAIN_START_PAUSED) < 0) {
        be_error_from_libvirt(error, "the machine cannot be started paused");
        return FALSE;
    }
    holder->id = (int)virDomainGetID(domain);
    return TRUE;
}

/* Whether the other end is still there. */
static gboolean process_answer(int fd, Holder *holder)
{
    g_autoptr(GError) error = NULL;
    char answer[MESSAGE_BYTES];

    if (process_start(holder, &error)) {
        g_snprintf(answer, sizeof answer, "ok %d", holder->id);
    } else {
        g_snprintf(answer, sizeof answer, "no %d %s", error->code, error->message);
    }
    return send(fd, answer, strlen(answer), MSG_NOSIGNAL) >= 0;
}

/* Until the machine is off or somebody else's: nobody is there to be told. */
static void process_end_machine(Holder *holder)
{
    guint wait_ms = RETRY_FIRST_MS;

    while (TRUE) {
        BeMachine machine = process_connect(holder, NULL)
                                ? be_machine_destroy_unused(holder->conn, holder->uuid,
                                                            holder->id, NULL)
                                : BE_MACHINE_UNKNOWN;

        if (machine == BE_MACHINE_OFF || machine == BE_MACHINE_USED) {
            return;
        }
        g_usleep((gulong)wait_ms * 1000);
        wait_ms = MIN(wait_ms * 2, RETRY_MAX_MS);
    }
}

/* A SOCK_SEQPACKET message is one word or sentence. */
static void process_main(int fd, Holder *holder)
{
    char word[MESSAGE_BYTES];

    while (TRUE) {
        ssize_t size = recv(fd, word, sizeof word - 1, 0);

        if (size < 0 && errno == EINTR) {
            continue;
        }
        word[MAX(size, 0)] = '\0';
        if (g_str_equal(word, let_go_word)) {
            return;
        }
        if (!g_str_equal(word, start_word) || holder->id >= 0 || !process_answer(fd, holder)) {
            break;
        }
    }
    if (holder->id >= 0) {
        process_end_machine(holder);
    }
}

static void ignore_libvirt_error(void *user G_GNUC_UNUSED, virErrorPtr error G_GNUC_UNUSED)
{
}

/* Memory is short when machines are started: this is not the one to be killed for it. */
static void process_spare(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd >= 0) {
        (void)!write(fd, "-900", strlen("-900"));
        close(fd);
    }
}

/* Nothing that ends us must end it: not our terminal, not our signals. */
static void process_prepare(void)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP};
    sigset_t none;

    (void)setsid();
    (void)!chdir("/");
    for (gsize i = 0; i < G_N_ELEMENTS(ignored); i++) {
        signal(ignored[i], SIG_IGN);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    (void)close_range(HOLDER_FD + 1, ~0U, 0);
    (void)prctl(PR_SET_NAME, HOLDER_NAME);
    process_spare();
}

int be_holder_main(int argc, char **argv)
{
    Holder holder = {.id = -1};
    int type = 0;
    socklen_t size = sizeof type;

    if (argc != 3 || !g_str_equal(argv[0], HOLDER_NAME)) {
        return -1;
    }
    if (getsockopt(HOLDER_FD, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_SEQPACKET) {
        return 1;
    }
    process_prepare();
    virSetErrorFunc(NULL, ignore_libvirt_error);
    holder.uri = argv[1];
    holder.uuid = argv[2];
    process_main(HOLDER_FD, &holder);
    if (holder.conn) {
        virConnectClose(holder.conn);
    }
    return 0;
}

/* ---- Our end ---------------------------------------------------------------------- */

int holder_spawn(const char *uri, const char *uuid, pid_t *ret_pid, GError **error)
{
    const char *argv[] = {"/proc/self/exe", HOLDER_NAME, uri, uuid, NULL};
    g_autoptr(GError) spawn_error = NULL;
    const int target = HOLDER_FD;
    gboolean spawned;
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        be_error_set_errno(error, errno, "cannot make a socket for the holder");
        return -1;
    }
    /* GLib forks twice, so the process is not our child, and nobody's zombie. */
    spawned = g_spawn_async_with_pipes_and_fds(
        "/", argv, NULL,
        G_SPAWN_FILE_AND_ARGV_ZERO | G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL, NULL,
        NULL, -1, -1, -1, &ends[1], &target, 1, ret_pid, NULL, NULL, NULL, &spawn_error);
    close(ends[1]);
    if (!spawned) {
        g_set_error(error, BE_ERROR, EAGAIN, "cannot start the process that holds the machine: %s",
                    spawn_error->message);
        close(ends[0]);
        return -1;
    }
    return ends[0];
}

/* "no ERRNO TEXT" */
static gboolean set_refusal(GError **error, const char *answer)
{
    char *text = NULL;
    long errnum = g_str_has_prefix(answer, "no ") ? strtol(answer + strlen("no "), &text, 10) : 0;

    if (errnum > 0 && text && *text == ' ') {
        g_set_error(error, BE_ERROR, (int)errnum, "%s", text + 1);
        return TRUE;
    }
    g_set_error(error, BE_ERROR, EIO, "the process that holds the machine is gone");
    return FALSE;
}

int holder_start_machine(int fd, gboolean *ret_refused, GError **error)
{
    struct pollfd pollfd = {.fd = fd, .events = POLLIN};
    char answer[MESSAGE_BYTES] = "";
    ssize_t size = 0;
    int id, ready = -1;

    *ret_refused = FALSE;
    if (send(fd, start_word, strlen(start_word), MSG_NOSIGNAL) > 0) {
        do {
            ready = poll(&pollfd, 1, START_WAIT_MS);
        } while (ready < 0 && errno == EINTR);
    }
    if (ready == 0) {
        g_set_error(error, BE_ERROR, ETIMEDOUT, "the machine has not started within %d s",
                    START_WAIT_MS / 1000);
        return -1;
    }
    size = ready > 0 ? recv(fd, answer, sizeof answer - 1, 0) : 0;
    answer[MAX(size, 0)] = '\0';
    if (sscanf(answer, "ok %d", &id) == 1 && id >= 0) {
        return id;
    }
    *ret_refused = set_refusal(error, answer);
    return -1;
}

void holder_let_go(int fd)
{
    if (send(fd, let_go_word, strlen(let_go_word), MSG_NOSIGNAL) < 0) {
        g_debug("the holder is gone already");
    }
    close(fd);
}
