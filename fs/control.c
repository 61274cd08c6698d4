/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * control.c - control files; see control.h.
 *
 * Entered by FUSE threads (read, write) and backend workers (the end of a
 * command).  `lock` guards what one open file remembers.
 */
#include "fs/control.h"

#include <errno.h>
#include <string.h>

#include "fs/action.h"
#include "fs/command.h"
#include "fs/file.h"

/* What refuses a command does so at once: an `async` writer still hears of it. */
#define ASYNC_WAIT_MS 100

struct FsControl {
    gatomicrefcount refs;
    GMutex lock;
    GString *outcome;          /* guarded by lock; what a read gives */
    gint64 base;               /* guarded by lock; offset of the first read, -1: none yet */
    GBytes *failed;            /* guarded by lock; the command that failed last */
    int failed_errno;          /* guarded by lock */
};

FsControl *fs_control_new(void)
{
    FsControl *control = g_new0(FsControl, 1);

    g_atomic_ref_count_init(&control->refs);
    g_mutex_init(&control->lock);
    return control;
}

void fs_control_unref(FsControl *control)
{
    if (!control || !g_atomic_ref_count_dec(&control->refs)) {
        return;
    }
    if (control->outcome) {
        g_string_free(control->outcome, TRUE);
    }
    g_clear_pointer(&control->failed, g_bytes_unref);
    g_mutex_clear(&control->lock);
    g_free(control);
}

static void remember(FsControl *control, int errnum, const char *text, GBytes *bytes)
{
    g_mutex_lock(&control->lock);
    if (!control->outcome) {
        control->outcome = g_string_new(NULL);
    }
    if (errnum) {
        g_string_printf(control->outcome, "%s: %s\n", fs_errno_name(errnum), text);
    } else {
        g_string_assign(control->outcome, *text ? text : "ok\n");
    }
    control->base = -1;
    g_clear_pointer(&control->failed, g_bytes_unref);
    control->failed = errnum ? g_bytes_ref(bytes) : NULL;
    control->failed_errno = errnum;
    g_mutex_unlock(&control->lock);
}

/* What one command needs from its write to its end. */
typedef struct {
    FsControl *control;
    GBytes *bytes;
    const FsVerb *verb;
    FsCommand *command;
} Running;

static void running_free(gpointer data)
{
    Running *running = data;

    fs_control_unref(running->control);
    g_bytes_unref(running->bytes);
    fs_command_free(running->command);
    g_free(running);
}

/* One command at a time for each object; the second is told at once. */
static gboolean claim(Fs *fs, FsItem *item)
{
    gboolean claimed;

    g_mutex_lock(&fs->commands_lock);
    claimed = g_hash_table_add(fs->commands, g_strdup(item->id));
    g_mutex_unlock(&fs->commands_lock);
    return claimed;
}

static void release(Fs *fs, FsItem *item)
{
    g_mutex_lock(&fs->commands_lock);
    g_hash_table_remove(fs->commands, item->id);
    g_mutex_unlock(&fs->commands_lock);
}

static BeJob *start_command(const FsAct *act, gpointer data, GError **error)
{
    const Running *running = data;

    return running->verb->run(act, running->command, error);
}

static void answer_command(FsReq *req, const GError *error)
{
    const Running *running = req->data;
    int errnum = fs_error_errno(error);
    const char *text = error ? error->message : fs_command_text(running->command);

    remember(running->control, errnum, text ? text : "", running->bytes);
    if (error) {
        fs_req_error(req, errnum);
    } else {
        fs_req_write(req, req->size);
    }
}

static void run_command(FsReq *req, Running *running)
{
    g_autofree char *path = fs_node_path(req->node);
    g_autofree char *line = g_strndup(g_bytes_get_data(running->bytes, NULL),
                                      g_bytes_get_size(running->bytes));
    g_autofree char *operation = g_strdup_printf("%s > %s", g_strchomp(line), path);
    FsActionSpec spec = {.item = req->node->item,
                         .operation = operation,
                         .wait_ms = req->fs->action_timeout * 1000,
                         .late_errno = ETIMEDOUT,
                         .start = start_command,
                         .data = running,
                         .free_data = running_free,
                         .answer = answer_command,
                         .ended = release};

    if (running->command->async) {
        spec.wait_ms = ASYNC_WAIT_MS;
        spec.late_errno = 0;
    }
    req->data = running;
    fs_action_run(fs_req_ref(req), &spec);
}

/* python and dd write a failed command twice: it is not run again. */
static int failed_before(FsControl *control, GBytes *bytes)
{
    int errnum = 0;

    g_mutex_lock(&control->lock);
    if (control->failed && g_bytes_equal(control->failed, bytes)) {
        errnum = control->failed_errno;
    }
    g_mutex_unlock(&control->lock);
    return errnum;
}

static void refuse(FsReq *req, GBytes *bytes, int errnum, const char *text)
{
    remember(req->file->control, errnum, text, bytes);
    fs_req_fail(req, errnum, "%s", text);
}

void fs_control_write(FsReq *req, const char *data)
{
    FsControl *control = req->file->control;
    g_autoptr(GBytes) bytes = g_bytes_new(data, MIN(req->size, FS_COMMAND_MAX + 1));
    g_autoptr(FsCommand) command = NULL;
    g_autoptr(GError) error = NULL;
    const FsVerb *verb;
    int errnum = failed_before(control, bytes);

    if (errnum) {
        fs_req_error(req, errnum);
    } else if (!fs_command_parse(data, req->size, req->node->def->verbs, &verb, &command,
                                 &error)) {
        refuse(req, bytes, error->code, error->message);
    } else if (!verb) {
        fs_req_write(req, req->size);
    } else if (req->fs->read_only) {
        refuse(req, bytes, EROFS, "this mount is read-only");
    } else if (!claim(req->fs, req->node->item)) {
        refuse(req, bytes, EBUSY, "another command is running here; see 'job'");
    } else {
        Running *running = g_new0(Running, 1);

        g_atomic_ref_count_inc(&control->refs);
        running->control = control;
        running->bytes = g_steal_pointer(&bytes);
        running->verb = verb;
        running->command = g_steal_pointer(&command);
        run_command(req, running);
    }
    fs_req_unref(req);
}

void fs_control_read(FsReq *req)
{
    FsControl *control = req->file->control;
    g_autoptr(GString) out = g_string_new(NULL);
    gsize start;

    g_mutex_lock(&control->lock);
    if (control->outcome) {
        g_string_append(out, control->outcome->str);
    } else {
        fs_command_usage(req->node->def->verbs, out);
    }
    if (control->base < 0) {
        control->base = req->offset;
    }
    start = (gsize)MAX(req->offset - control->base, 0);
    g_mutex_unlock(&control->lock);

    start = MIN(start, out->len);
    fs_req_buf(req, out->str + start, MIN(req->size, out->len - start));
    fs_req_unref(req);
}
