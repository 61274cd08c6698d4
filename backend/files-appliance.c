/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * files-appliance.c - one appliance from its start to its end; on the thread
 * "files" of a BeFiles.
 *
 * It starts vmsnapfs-files, which starts QEMU, sends it the calls and takes the
 * answers, serves it the disks, and ends it when nobody has asked for a while,
 * when it takes too long, when it says what makes no sense, when its place is
 * wanted, or when the object goes.  An appliance that dies fails what it was
 * asked for; the next call starts another one.
 *
 * libguestfs runs in that process and not in ours: it decodes what a virtual
 * machine says that has a hostile disk mounted, waits without limit, and its
 * QEMU must be gone when we are.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/error.h"
#include "backend/files-priv.h"

/* How long each may take until there is some answer. */
#define HELLO_MS 10000
#define BUILD_MS 600000
#define BOOT_KVM_MS 20000
#define BOOT_TCG_MS 120000
#define CALL_MS 60000
/* Without KVM all is ten times slower, and a busy host does the rest. */
#define CALL_TCG_MS 120000
#define SCAN_TCG_MS 240000

#define FLYING_MAX 32
#define INPUT_STEP (512 * 1024)

typedef struct {
    BeFiles *files;
    gboolean tcg;
    BeChild *child;
    int fd;                    /* -1: not started */
    GByteArray *input;
    GByteArray *output;
    DiskServer *disks;         /* once it has said hello */
    FilesCall *start;          /* of our own; NULL once it has ended */
    gboolean ready;            /* the start has succeeded */
    gboolean died;             /* after that, by itself */
    gboolean inspected;        /* a path in "root" has been answered */
    FilesStage stage;
    GQueue flying;             /* of FilesCall: sent, not ended; the first is being done */
    guint32 next_id;
    gint64 since_us;           /* monotonic: when the first became the first, or last spoke */
    GError *error;             /* why it has failed */
} Appliance;

/* ---- The process --------------------------------------------------------------------------- */

char *be_files_program(void)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *directory = self ? g_path_get_dirname(self) : g_strdup("/nonexistent");
    const char *const places[] = {directory, VMSNAPFS_LIBEXECDIR};

    for (gsize i = 0; i < G_N_ELEMENTS(places); i++) {
        g_autofree char *path = g_build_filename(places[i], "vmsnapfs-files", NULL);

        if (access(path, X_OK) == 0) {
            return g_steal_pointer(&path);
        }
    }
    return NULL;
}

static char *find_program(GError **error)
{
    char *path = be_files_program();

    if (!path) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "guests' files need the program vmsnapfs-files, which is not installed");
    }
    return path;
}

static GPtrArray *argv_new(const Appliance *appliance)
{
    GPtrArray *argv = g_ptr_array_new();
    const GPtrArray *disks = appliance->files->disks;

    g_ptr_array_add(argv, (gpointer) "vmsnapfs-files");
    g_ptr_array_add(argv, (gpointer)(appliance->tcg ? "tcg" : "kvm"));
    g_ptr_array_add(argv, appliance->files->pool->cache_dir);
    for (guint i = 0; i < disks->len; i++) {
        const BeDisk *disk = g_ptr_array_index(disks, i);

        g_ptr_array_add(argv, disk->target);
    }
    g_ptr_array_add(argv, NULL);
    return argv;
}

static gboolean start_process(Appliance *appliance, GError **error)
{
    g_autofree char *program = find_program(error);
    g_autoptr(GPtrArray) argv = argv_new(appliance);
    int ends[2];

    if (!program || !be_dirs_ensure(appliance->files->pool->cache_dir, 0700, error)) {
        return FALSE;
    }
    if (appliance->files->disks->len == 0 || appliance->files->disks->len > FILES_DISKS_MAX) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "%s has no disk, or more than %d",
                    appliance->files->name, FILES_DISKS_MAX);
        return FALSE;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        be_error_set_errno(error, errno, "no socket for the appliance");
        return FALSE;
    }
    appliance->fd = ends[0];
    appliance->child = be_child_start_appliance(program, (const char *const *)argv->pdata, ends[1],
                                                error);
    close(ends[1]);
    return appliance->child != NULL;
}

static void fail(Appliance *appliance, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* The first reason is kept. */
static void fail(Appliance *appliance, int errnum, const char *format, ...)
{
    va_list args;

    if (appliance->error) {
        return;
    }
    va_start(args, format);
    appliance->error = g_error_new_valist(BE_ERROR, errnum, format, args);
    va_end(args);
}

static void fail_died(Appliance *appliance)
{
    g_autofree char *reason = NULL;

    appliance->died = appliance->ready && !appliance->error;
    /* It has closed its end, so it is ending; a moment, and it says why. */
    for (int i = 0; i < 100 && be_child_alive(appliance->child); i++) {
        g_usleep(10000);
    }
    reason = be_child_failure(appliance->child);
    fail(appliance, EIO, "the appliance that reads the files of %s died%s%s",
         appliance->files->name, reason ? ": " : "", reason ? reason : "");
}

/* ---- Calls ------------------------------------------------------------------- */

static void start_over(FilesCall *call, const guint8 *data G_GNUC_UNUSED,
                       gsize length G_GNUC_UNUSED, const GError *error G_GNUC_UNUSED)
{
    g_free(call);
}

static gboolean start_more(FilesCall *call G_GNUC_UNUSED, const guint8 *data G_GNUC_UNUSED,
                           gsize length G_GNUC_UNUSED)
{
    return FALSE;
}

static void send_call(Appliance *appliance, FilesCall *call)
{
    gsize length = call->path ? strlen(call->path) : 0;
    FilesRequest request = {.op = call->op, .id = ++appliance->next_id, .offset = call->offset,
                            .size = call->size, .path_length = (guint32)length};

    call->id = request.id;
    if (!appliance->flying.head) {
        appliance->since_us = g_get_monotonic_time();
    }
    g_queue_push_tail_link(&appliance->flying, &call->link);
    g_byte_array_append(appliance->output, (const guint8 *)&request, sizeof(request));
    g_byte_array_append(appliance->output, (const guint8 *)call->path, (guint)length);
}

static void send_start(Appliance *appliance)
{
    FilesCall *call = g_new0(FilesCall, 1);

    call->op = FILES_OP_START;
    call->more = start_more;
    call->done = start_over;
    call->link.data = call;
    appliance->start = call;
    send_call(appliance, call);
}

/* Sends what is queued; who only wants it started is answered here. */
static void send_submitted(Appliance *appliance)
{
    FilesCall *call;

    while (appliance->ready && appliance->flying.length < FLYING_MAX
           && (call = be_files_take(appliance->files))) {
        if (call->op == FILES_OP_START) {
            be_files_end_taken(appliance->files, call, NULL, 0, NULL);
        } else if (strlen(call->path) > FILES_PATH_MAX) {
            g_autoptr(GError) error =
                g_error_new(BE_ERROR, ENAMETOOLONG, "the path is too long for the appliance");

            be_files_end_taken(appliance->files, call, NULL, 0, error);
        } else {
            send_call(appliance, call);
        }
    }
}

/* ---- Answers ----------------------------------------------------------------- */

static void started(Appliance *appliance, const guint8 *data, gsize length)
{
    BeFiles *files = appliance->files;
    g_auto(GStrv) volumes = files_parse_volumes(data, length);

    if (!volumes) {
        fail(appliance, EIO, "the appliance's answer makes no sense");
        return;
    }
    g_mutex_lock(&files->lock);
    if (!files->volumes) {
        files->volumes = g_steal_pointer(&volumes);
    }
    files->used_us = g_get_monotonic_time();
    g_mutex_unlock(&files->lock);
    appliance->ready = TRUE;
}

/* What a hostile file system may have its reader be told. */
static int shown_errno(int errnum)
{
    switch (errnum) {
    case ENOENT:
    case EACCES:
    case ENOTDIR:
    case EISDIR:
    case EINVAL:
    case ELOOP:
    case ENAMETOOLONG:
    case EFBIG:
    case EOPNOTSUPP:
        return errnum;
    default:
        return EIO;
    }
}

static void end_first(Appliance *appliance, const FilesFrame *frame, const guint8 *data)
{
    GList *link = g_queue_pop_head_link(&appliance->flying);
    FilesCall *call = link->data;
    g_autoptr(GError) error = NULL;

    appliance->since_us = g_get_monotonic_time();
    appliance->inspected |= call->path && g_str_has_prefix(call->path, "root");
    if (frame->errnum) {
        g_autofree char *said = g_strndup((const char *)data, MIN(frame->length, 4096));
        g_autofree char *text = g_utf8_make_valid(said, -1);

        error = g_error_new(BE_ERROR, shown_errno(frame->errnum), "%s",
                            g_strdelimit(text, "\n\r", ' '));
    }
    if (call == appliance->start) {
        appliance->start = NULL;
        if (error) {
            fail(appliance, EIO, "%s", error->message);
        } else {
            started(appliance, data, frame->length);
        }
        be_files_call_end(call, NULL, 0, NULL);
    } else {
        be_files_end_taken(appliance->files, call, data, frame->length, error);
    }
}

static void more_of_first(Appliance *appliance, const FilesFrame *frame, const guint8 *data)
{
    FilesCall *call = appliance->flying.head->data;

    appliance->since_us = g_get_monotonic_time();
    if (frame->length > call->left || !call->more(call, data, frame->length)) {
        fail(appliance, EIO, "the appliance's answer makes no sense");
        return;
    }
    call->left -= frame->length;
}

static void serve_frame(Appliance *appliance, const FilesFrame *frame, const guint8 *data)
{
    const FilesCall *first = appliance->flying.head ? appliance->flying.head->data : NULL;

    if (!first || frame->id != first->id) {
        fail(appliance, EIO, "the appliance answers what nobody asked");
    } else if (frame->kind == FILES_END) {
        end_first(appliance, frame, data);
    } else if (frame->kind == FILES_MORE) {
        more_of_first(appliance, frame, data);
    } else if (frame->kind == FILES_STAGE && first == appliance->start && frame->length == 1
               && *data <= FILES_STAGE_SCAN) {
        appliance->stage = (FilesStage)*data;
        appliance->since_us = g_get_monotonic_time();
    } else {
        fail(appliance, EIO, "the appliance's answer makes no sense");
    }
}

static void serve_frames(Appliance *appliance)
{
    GByteArray *input = appliance->input;
    gsize at = 0;

    while (!appliance->error && input->len - at >= sizeof(FilesFrame)) {
        FilesFrame frame;

        memcpy(&frame, input->data + at, sizeof(frame));
        if (frame.length > FILES_FRAME_MAX) {
            fail(appliance, EIO, "the appliance's answer is too long");
            return;
        }
        if (input->len - at - sizeof(frame) < frame.length) {
            break;
        }
        serve_frame(appliance, &frame, input->data + at + sizeof(frame));
        at += sizeof(frame) + frame.length;
    }
    if (at > 0) {
        g_byte_array_remove_range(input, 0, (guint)at);
    }
}

/* ---- Input and output -------------------------------------------------------- */

/* The first frame brings the listening sockets of the disks. */
static void receive_hello(Appliance *appliance)
{
    FilesFrame frame = {.kind = FILES_END};
    struct iovec iov = {&frame, sizeof(frame)};
    char control[CMSG_SPACE(FILES_DISKS_MAX * sizeof(int))];
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(appliance->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    g_autoptr(GArray) sockets = g_array_new(FALSE, FALSE, sizeof(int));

    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    for (struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL; header;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
            g_array_append_vals(sockets, CMSG_DATA(header),
                                (guint)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int)));
        }
    }
    if (got == (ssize_t)sizeof(frame) && frame.kind == FILES_HELLO && frame.length == 0
        && sockets->len == appliance->files->disks->len) {
        appliance->disks =
            disk_server_new(sockets, appliance->files->disks, appliance->files->kick_fd);
        send_start(appliance);
        return;
    }
    for (guint i = 0; i < sockets->len; i++) {
        close(g_array_index(sockets, int, i));
    }
    fail_died(appliance);
}

static void receive(Appliance *appliance)
{
    guint have = appliance->input->len;
    ssize_t got;

    if (!appliance->disks) {
        receive_hello(appliance);
        return;
    }
    g_byte_array_set_size(appliance->input, have + INPUT_STEP);
    got = recv(appliance->fd, appliance->input->data + have, INPUT_STEP, MSG_DONTWAIT);
    g_byte_array_set_size(appliance->input, have + (got > 0 ? (guint)got : 0));
    if (got > 0) {
        serve_frames(appliance);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        fail_died(appliance);
    }
}

static void transmit(Appliance *appliance)
{
    ssize_t sent = send(appliance->fd, appliance->output->data, appliance->output->len,
                        MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent > 0) {
        g_byte_array_remove_range(appliance->output, 0, (guint)sent);
    } else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        fail_died(appliance);
    }
}

/* ---- Time -------------------------------------------------------------------- */

/* The first of these looks for an operating system on all disks. */
static gboolean first_is_in_root(const Appliance *appliance)
{
    const FilesCall *first = appliance->flying.head ? appliance->flying.head->data : NULL;

    return first && first->path && g_str_has_prefix(first->path, "root")
           && (first->path[4] == '/' || !first->path[4]);
}

static gint64 limit_ms(const Appliance *appliance)
{
    if (!appliance->disks) {
        return HELLO_MS;
    }
    if (!appliance->start && (appliance->inspected || !first_is_in_root(appliance))) {
        return appliance->tcg ? CALL_TCG_MS : CALL_MS;
    }
    if (!appliance->start) {
        return appliance->tcg ? SCAN_TCG_MS : CALL_MS;
    }
    switch (appliance->stage) {
    case FILES_STAGE_BUILD:
        return BUILD_MS;
    case FILES_STAGE_BOOT:
        return appliance->tcg ? BOOT_TCG_MS : BOOT_KVM_MS;
    case FILES_STAGE_SCAN:
        break;
    }
    return appliance->tcg ? SCAN_TCG_MS : CALL_MS;
}

/* Milliseconds until something is due; G_MAXINT64: nothing is. */
static gint64 due_ms(const Appliance *appliance)
{
    BeFiles *files = appliance->files;
    gint64 now_us = g_get_monotonic_time();
    gint64 since_us;

    if (!appliance->disks || appliance->flying.head) {
        return limit_ms(appliance) - (now_us - appliance->since_us) / 1000;
    }
    g_mutex_lock(&files->lock);
    since_us = files->used_us;
    g_mutex_unlock(&files->lock);
    return (files->pool->idle_us - (now_us - since_us)) / 1000;
}

/* Whether it is to end although nothing is wrong with it. */
static gboolean is_over(const Appliance *appliance)
{
    BeFiles *files = appliance->files;
    gboolean over, stopped;

    g_mutex_lock(&files->lock);
    stopped = files->closed || files->gives_way;
    over = !appliance->flying.head && !files->submitted.head && appliance->ready
           && (files->evicted
               || g_get_monotonic_time() - files->used_us >= files->pool->idle_us);
    g_mutex_unlock(&files->lock);
    return stopped || over;
}

static void check_time(Appliance *appliance)
{
    if ((!appliance->disks || appliance->flying.head) && due_ms(appliance) <= 0) {
        fail(appliance, appliance->ready ? EIO : ETIMEDOUT,
             "the appliance that reads the files of %s %s within %d s and was ended",
             appliance->files->name, appliance->ready ? "did not answer" : "did not start",
             (int)(limit_ms(appliance) / 1000));
    }
}

/* ---- The loop ---------------------------------------------------------------- */

static void wait_for_events(Appliance *appliance)
{
    g_autoptr(GArray) fds = g_array_new(FALSE, TRUE, sizeof(struct pollfd));
    struct pollfd own[] = {
        {.fd = appliance->fd,
         .events = (short)(POLLIN | (appliance->output->len ? POLLOUT : 0))},
        {.fd = appliance->files->kick_fd, .events = POLLIN},
    };
    const struct pollfd *polled;
    eventfd_t count;

    g_array_append_vals(fds, own, G_N_ELEMENTS(own));
    if (appliance->disks) {
        disk_server_poll(appliance->disks, fds);
    }
    if (poll((struct pollfd *)(void *)fds->data, fds->len,
             (int)CLAMP(due_ms(appliance) + 1, 0, 60000))
        < 0) {
        return;
    }
    polled = (const struct pollfd *)(const void *)fds->data;
    if (polled[1].revents) {
        (void)eventfd_read(appliance->files->kick_fd, &count);
    }
    if (appliance->disks) {
        disk_server_serve(appliance->disks, polled + 2, fds->len - 2);
    }
    if (polled[0].revents & POLLOUT) {
        transmit(appliance);
    }
    if (polled[0].revents & (POLLIN | POLLHUP | POLLERR)) {
        receive(appliance);
    }
}

static void appliance_clear(Appliance *appliance)
{
    be_child_free(appliance->child);
    disk_server_free(appliance->disks);
    if (appliance->fd >= 0) {
        close(appliance->fd);
    }
    g_byte_array_unref(appliance->input);
    g_byte_array_unref(appliance->output);
}

/* What it was asked for and did not answer; with a death that has to do with the first
 * of them alone. */
static void fail_flying(Appliance *appliance, const GError *error)
{
    GList *link;

    while (appliance->died && appliance->flying.length > 1) {
        link = g_queue_pop_tail_link(&appliance->flying);
        be_files_give_back(appliance->files, link->data);
    }
    while ((link = g_queue_pop_head_link(&appliance->flying))) {
        if (link->data == appliance->start) {
            be_files_call_end(link->data, NULL, 0, error);
        } else {
            be_files_end_taken(appliance->files, link->data, NULL, 0, error);
        }
    }
}

FilesEnd be_files_run(BeFiles *files, gboolean tcg, GError **error)
{
    Appliance appliance = {.files = files, .tcg = tcg, .fd = -1,
                           .since_us = g_get_monotonic_time()};
    FilesEnd end = FILES_END_FAILED;

    appliance.input = g_byte_array_new();
    appliance.output = g_byte_array_new();
    if (start_process(&appliance, &appliance.error)) {
        while (!appliance.error && !is_over(&appliance)) {
            send_submitted(&appliance);
            wait_for_events(&appliance);
            check_time(&appliance);
        }
    }
    if (appliance.error && !appliance.ready && !tcg && appliance.disks
        && appliance.stage >= FILES_STAGE_BOOT) {
        end = FILES_END_KVM;
    } else if (appliance.died) {
        end = FILES_END_DIED;
    } else if (!appliance.error) {
        end = FILES_END_IDLE;
    }
    appliance_clear(&appliance);
    if (appliance.error) {
        g_warning("%s", appliance.error->message);
        fail_flying(&appliance, appliance.error);
        g_propagate_error(error, appliance.error);
    } else {
        g_autoptr(GError) stopped = NULL;

        g_mutex_lock(&files->lock);
        stopped = be_files_stopped_locked(files);
        g_mutex_unlock(&files->lock);
        fail_flying(&appliance, stopped);
    }
    return end;
}
