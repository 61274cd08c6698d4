/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * child.c - helper processes; see child.h.
 *
 * Any thread: what is here prepares a child, waits for it to answer and stops
 * it.  The thread "child" (child-keeper.c) forks and reaps.
 *
 * Locks: child->lock, never held over a system call that waits.
 */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child-keeper.h"
#include "error.h"

enum {
    START_TIMEOUT_S = 20,         /* a host under load takes long to start a process */
    TERM_TIMEOUT_S = 2,
    KILL_TIMEOUT_S = 5,
    LISTEN_BACKLOG = 64,
    GREETING_LENGTH = 18,
};

/* Where helpers are looked for, whatever our own environment says. */
#define SEARCH_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Ends the handshake politely: client flags, then NBD_OPT_ABORT (NBD proto.md). */
static const guint8 nbd_goodbye[] = {0, 0, 0, 3,   'I', 'H', 'A', 'V', 'E', 'O',
                                     'P', 'T', 0, 0, 0,   2,   0,   0,   0,   0};

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/* ---- The socket --------------------------------------------------------- */

/*
 * Sockets are made with the mode of the descriptor (less the umask), so setting
 * that first leaves no moment in which others could connect, and needs no
 * umask(), which is the whole process's.
 */
static int bind_socket(BeChild *child, const struct sockaddr_un *address, GError **error)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat st;

    if (fd < 0 || fchmod(fd, 0600) < 0) {
        be_error_set_errno(error, errno, "cannot make a socket");
    } else if (bind(fd, (const struct sockaddr *)address, sizeof *address) < 0) {
        be_error_set_errno(error, errno == EADDRINUSE ? EEXIST : errno,
                           "cannot bind the socket '%s'", child->socket_path);
    } else if (lstat(child->socket_path, &st) < 0) {
        be_error_set_errno(error, errno, "the socket '%s' is gone", child->socket_path);
    } else {
        child->socket_dev = st.st_dev;
        child->socket_ino = st.st_ino;
        if (listen(fd, LISTEN_BACKLOG) == 0) {
            return fd;
        }
        be_error_set_errno(error, errno, "cannot listen on '%s'", child->socket_path);
    }
    close_fd(&fd);
    return -1;
}

static gboolean socket_address(const char *path, struct sockaddr_un *ret, GError **error)
{
    size_t length = strlen(path);

    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (length == 0 || length >= sizeof ret->sun_path) {
        g_set_error(error, BE_ERROR, ENAMETOOLONG,
                    "the path of the socket '%s' is empty or longer than %" G_GSIZE_FORMAT " bytes",
                    path, sizeof ret->sun_path - 1);
        return FALSE;
    }
    memcpy(ret->sun_path, path, length + 1);
    return TRUE;
}

static void remove_socket(BeChild *child)
{
    struct stat st;
    ino_t ino = 0;

    g_mutex_lock(&child->lock);
    ino = child->socket_ino;
    child->socket_ino = 0;
    g_mutex_unlock(&child->lock);
    if (child->socket_path && ino != 0 && lstat(child->socket_path, &st) == 0
        && st.st_dev == child->socket_dev && st.st_ino == ino) {
        unlink(child->socket_path);
    }
}

/* ---- Starting ----------------------------------------------------------- */

/*
 * Launch: the descriptors of a start; those of the child are close-on-exec and
 * out of the way of its first few numbers.
 */
typedef struct {
    int null_fd;
    int stderr_fd;
    int listen_fd;
    int status_fd;             /* the child's end */
    int status_read_fd;        /* ours */
} Launch;

static void launch_close_child_side(Launch *launch)
{
    close_fd(&launch->null_fd);
    close_fd(&launch->stderr_fd);
    close_fd(&launch->listen_fd);
    close_fd(&launch->status_fd);
}

static void launch_clear(Launch *launch)
{
    launch_close_child_side(launch);
    close_fd(&launch->status_read_fd);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Launch, launch_clear)

static gboolean raise_fd(int *fd)
{
    int raised = fcntl(*fd, F_DUPFD_CLOEXEC, CHILD_FD_MIN);

    close_fd(fd);
    *fd = raised;
    return raised >= 0;
}

static gboolean launch_open(Launch *launch, BeChild *child, GError **error)
{
    int err[2] = {-1, -1};
    int status[2] = {-1, -1};
    gboolean good = pipe2(err, O_CLOEXEC) == 0;

    child->stderr_fd = err[0];
    launch->stderr_fd = err[1];
    good = good && pipe2(status, O_CLOEXEC) == 0;
    launch->status_read_fd = status[0];
    launch->status_fd = status[1];
    launch->null_fd = good ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
    if (!good || launch->null_fd < 0 || fcntl(child->stderr_fd, F_SETFL, O_NONBLOCK) < 0
        || !raise_fd(&launch->stderr_fd) || !raise_fd(&launch->status_fd)
        || !raise_fd(&launch->null_fd) || !raise_fd(&launch->listen_fd)) {
        be_error_set_errno(error, errno, "cannot start a helper");
        return FALSE;
    }
    return TRUE;
}

static char *find_program(const char *name, GError **error)
{
    g_auto(GStrv) directories = g_strsplit(SEARCH_PATH, ":", -1);

    for (size_t i = 0; directories[i]; i++) {
        g_autofree char *path = g_build_filename(directories[i], name, NULL);

        if (access(path, X_OK) == 0) {
            return g_steal_pointer(&path);
        }
    }
    g_set_error(error, BE_ERROR, EOPNOTSUPP, "'%s' is not installed", name);
    return NULL;
}

/* What the child could not do before it was another program, as an error. */
static gboolean read_status(int fd, const char *program, GError **error)
{
    ChildFailure failure;
    ssize_t got = 0;

    do {
        got = read(fd, &failure, sizeof failure);
    } while (got < 0 && errno == EINTR);
    if (got == 0) {
        return TRUE;
    }
    if (got == (ssize_t)sizeof failure) {
        be_error_set_errno(error, failure.errnum, "%s: %s", program,
                           child_step_name(failure.step));
    } else {
        g_set_error(error, BE_ERROR, EIO, "%s: its start failed", program);
    }
    return FALSE;
}

static gboolean run(BeChild *child, Launch *launch, const char *program, const char *const *argv,
                    gboolean appliance, GError **error)
{
    char listen_pid[sizeof "LISTEN_PID=" + CHILD_PID_DIGITS] = "LISTEN_PID=";
    /* Few arenas: each takes 64 MiB of the address space the child may have. */
    const char *const envp[] = {"PATH=" SEARCH_PATH, "LANG=C",   "MALLOC_ARENA_MAX=2",
                                "HOME=/",            "TMPDIR=/tmp",
                                "LISTEN_FDS=1",      listen_pid, NULL};
    long max_fds = sysconf(_SC_OPEN_MAX);
    ChildExec exec = {
        .program = program,
        .argv = (char *const *)argv,
        .envp = (char *const *)envp,
        .listen_pid = listen_pid + strlen(listen_pid),
        .parent = getpid(),
        .appliance = appliance,
        .null_fd = launch->null_fd,
        .stderr_fd = launch->stderr_fd,
        .listen_fd = launch->listen_fd,
        .status_fd = launch->status_fd,
        .max_fds = max_fds > 0 ? (unsigned)max_fds : 1024,
    };
    int errnum = child_keeper_fork(child, &exec);

    launch_close_child_side(launch);
    if (errnum != 0) {
        be_error_set_errno(error, errnum, "cannot start %s", program);
        return FALSE;
    }
    return read_status(launch->status_read_fd, program, error);
}

/* ---- Until it answers --------------------------------------------------- */

/* Milliseconds for poll() until a moment of the monotonic clock. */
static int remaining_ms(gint64 deadline_us)
{
    gint64 left_us = deadline_us - g_get_monotonic_time();

    return left_us > 0 ? (int)(left_us / 1000) + 1 : 0;
}

static gboolean wait_ended(BeChild *child, int seconds)
{
    gint64 deadline_us = g_get_monotonic_time() + (gint64)seconds * G_USEC_PER_SEC;
    gboolean ended = FALSE;

    g_mutex_lock(&child->lock);
    while (!child->ended && g_cond_wait_until(&child->changed, &child->lock, deadline_us)) {
    }
    ended = child->ended;
    g_mutex_unlock(&child->lock);
    return ended;
}

/* Sets @error for a child that ended or closed the connection before it answered. */
static void set_start_error(BeChild *child, GError **error)
{
    g_autofree char *reason = wait_ended(child, TERM_TIMEOUT_S) ? be_child_failure(child) : NULL;
    gboolean locked = reason && strstr(reason, "\" lock") != NULL;

    g_set_error(error, BE_ERROR, locked ? EBUSY : EIO, "%s",
                reason ? reason : "qemu-nbd closes its connections");
}

/* Reads the greeting that a server sends first; it is not looked at. */
static gboolean read_greeting(BeChild *child, int fd, GError **error)
{
    gint64 deadline_us = g_get_monotonic_time() + (gint64)START_TIMEOUT_S * G_USEC_PER_SEC;
    struct pollfd fds[] = {
        {.fd = fd, .events = POLLIN},
        {.fd = child->pidfd, .events = POLLIN},
    };
    guint8 greeting[GREETING_LENGTH];
    size_t have = 0;

    while (have < sizeof greeting) {
        int ready = poll(fds, G_N_ELEMENTS(fds), remaining_ms(deadline_us));
        ssize_t got = 0;

        if (ready == 0) {
            g_set_error(error, BE_ERROR, ETIMEDOUT, "qemu-nbd did not answer within %d s",
                        START_TIMEOUT_S);
            return FALSE;
        }
        if (ready > 0 && fds[0].revents != 0) {
            got = read(fd, greeting + have, sizeof greeting - have);
        }
        if (got > 0) {
            have += (size_t)got;
        } else if (ready > 0 && (fds[0].revents != 0 || fds[1].revents != 0)) {
            set_start_error(child, error);
            return FALSE;
        }
    }
    return TRUE;
}

/*
 * The socket is there before the server, so a connection succeeds at once and
 * then waits for the server to have opened its image, or sees it end.
 */
static gboolean wait_ready(BeChild *child, const struct sockaddr_un *address, GError **error)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    gboolean good = FALSE;

    if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address) < 0) {
        /* Nobody listens any more: it ended. */
        if (fd >= 0 && errno == ECONNREFUSED) {
            set_start_error(child, error);
        } else {
            be_error_set_errno(error, errno, "cannot connect to '%s'", child->socket_path);
        }
    } else if (read_greeting(child, fd, error)) {
        /* Without it the server would say on standard error that we just left. */
        (void)send(fd, nbd_goodbye, sizeof nbd_goodbye, MSG_NOSIGNAL);
        good = TRUE;
    }
    close_fd(&fd);
    return good;
}

static BeChild *child_new(const char *name, const char *socket_path)
{
    BeChild *child = g_new0(BeChild, 1);

    g_atomic_ref_count_init(&child->refs);
    child->pidfd = -1;
    child->stderr_fd = -1;
    child->name = name;
    child->socket_path = g_strdup(socket_path);
    child->output = g_string_new(NULL);
    g_mutex_init(&child->lock);
    g_cond_init(&child->changed);
    return child;
}

/* QEMU's option parser takes two commas for one. */
static char *double_commas(const char *text)
{
    g_auto(GStrv) parts = g_strsplit(text, ",", -1);

    return g_strjoinv(",,", parts);
}

static char *snapshot_option(const BeQemuNbd *server)
{
    g_autofree char *id = double_commas(server->snapshot_id);
    g_autofree char *name = double_commas(server->snapshot_name);

    return g_strdup_printf("--load-snapshot=snapshot.id=%s,snapshot.name=%s", id, name);
}

/* Returns: (element char *): ends with a NULL. */
static GPtrArray *qemu_nbd_arguments(const BeQemuNbd *server)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);

    g_ptr_array_add(argv, g_strdup("qemu-nbd"));
    g_ptr_array_add(argv, g_strdup("--read-only"));
    g_ptr_array_add(argv, g_strdup("--persistent"));
    g_ptr_array_add(argv, g_strdup("--shared=8"));
    g_ptr_array_add(argv, g_strconcat("--export-name=", server->export_name, NULL));
    if (server->snapshot_id) {
        g_ptr_array_add(argv, snapshot_option(server));
    }
    if (server->bitmap) {
        g_ptr_array_add(argv, g_strconcat("--bitmap=", server->bitmap, NULL));
    }
    g_ptr_array_add(argv, g_strdup("--"));
    g_ptr_array_add(argv, g_strdup(server->image_json));
    g_ptr_array_add(argv, NULL);
    return argv;
}

BeChild *be_child_start_qemu_nbd(const BeQemuNbd *server, GError **error)
{
    g_autofree char *program = find_program("qemu-nbd", error);
    g_autoptr(GPtrArray) argv = qemu_nbd_arguments(server);
    g_auto(Launch) launch = {-1, -1, -1, -1, -1};
    g_autoptr(BeChild) child = NULL;
    struct sockaddr_un address;

    if (!program || !socket_address(server->socket_path, &address, error)) {
        return NULL;
    }
    child = child_new("qemu-nbd", server->socket_path);
    launch.listen_fd = bind_socket(child, &address, error);
    if (launch.listen_fd < 0 || !launch_open(&launch, child, error)
        || !run(child, &launch, program, (const char *const *)argv->pdata, FALSE, error)
        || !wait_ready(child, &address, error)) {
        return NULL;
    }
    return g_steal_pointer(&child);
}

BeChild *be_child_start_appliance(const char *program, const char *const *argv, int fd,
                                  GError **error)
{
    g_auto(Launch) launch = {-1, -1, -1, -1, -1};
    g_autoptr(BeChild) child = child_new("the appliance", NULL);

    launch.listen_fd = fcntl(fd, F_DUPFD_CLOEXEC, CHILD_FD_MIN);
    if (launch.listen_fd < 0) {
        be_error_set_errno(error, errno, "cannot start %s", program);
        return NULL;
    }
    if (!launch_open(&launch, child, error) || !run(child, &launch, program, argv, TRUE, error)) {
        return NULL;
    }
    return g_steal_pointer(&child);
}

/* ---- Life and end ------------------------------------------------------- */

pid_t be_child_pid(const BeChild *child)
{
    return child->pid;
}

gboolean be_child_alive(BeChild *child)
{
    gboolean alive = FALSE;

    g_mutex_lock(&child->lock);
    alive = !child->ended;
    g_mutex_unlock(&child->lock);
    return alive;
}

/*
 * The reason in what qemu-nbd said, which is "Failed to open 'json:{...}': reason"
 * with the whole tree of the image in between.
 */
static const char *reason_in(char *said)
{
    char *tree_end = NULL;

    g_strdelimit(g_strstrip(said), "\n\r\t", ' ');
    tree_end = g_strrstr(said, "}': ");
    if (tree_end) {
        return tree_end + strlen("}': ");
    }
    return *said ? said : "it gave no reason";
}

char *be_child_failure(BeChild *child)
{
    g_autofree char *said = NULL;
    gboolean failed = FALSE;
    int status = 0;

    g_mutex_lock(&child->lock);
    failed = child->ended && !child->stopped;
    status = child->status;
    said = g_utf8_make_valid(child->output->str, (gssize)child->output->len);
    g_mutex_unlock(&child->lock);
    if (!failed) {
        return NULL;
    }
    if (WIFSIGNALED(status)) {
        return g_strdup_printf("%s was ended by signal %d: %s", child->name, WTERMSIG(status),
                               reason_in(said));
    }
    return g_strdup_printf("%s ended with code %d: %s", child->name, WEXITSTATUS(status),
                           reason_in(said));
}

void be_child_stop(BeChild *child)
{
    g_mutex_lock(&child->lock);
    child->stopped = child->stopped || !child->ended;
    g_mutex_unlock(&child->lock);
    if (child->pidfd >= 0) {
        /* By the descriptor: after the reaping the number may be another's. */
        (void)pidfd_send_signal(child->pidfd, SIGTERM, NULL, 0);
        if (!wait_ended(child, TERM_TIMEOUT_S)) {
            (void)pidfd_send_signal(child->pidfd, SIGKILL, NULL, 0);
            (void)wait_ended(child, KILL_TIMEOUT_S);
        }
    }
    remove_socket(child);
}

void be_child_free(BeChild *child)
{
    if (child) {
        be_child_stop(child);
        child_unref(child);
    }
}
