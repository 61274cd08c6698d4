/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * stream-tool.c - see stream-tool.h.  Main thread of a test, and its loads.
 */
#include "stream-tool.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "tool.h"

char *socket_path;
static char *dir;

gboolean stream_tool_begin(void)
{
    g_autofree char *nbdkit = g_find_program_in_path("nbdkit");

    if (!nbdkit) {
        return FALSE;
    }
    dir = tool_dir_new();
    socket_path = stream_tool_path("sock");
    return TRUE;
}

void stream_tool_end(void)
{
    g_clear_pointer(&dir, tool_dir_remove);
    g_clear_pointer(&socket_path, g_free);
}

char *stream_tool_path(const char *name)
{
    return g_build_filename(dir, name, NULL);
}

/* ---- Server ---------------------------------------------------------------------- */

static void wait_for_file(const char *path)
{
    gint64 end_us = g_get_monotonic_time() + 10 * G_USEC_PER_SEC;

    while (!g_file_test(path, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end_us);
        g_usleep(2000);
    }
}

GPid server_start_line(const char *line)
{
    g_autofree char *ready = g_strconcat(socket_path, ".pid", NULL);
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    GPid pid = 0;

    g_unlink(socket_path);
    g_shell_parse_argv(line, NULL, &argv, &error);
    g_assert_no_error(error);
    g_spawn_async(NULL, argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                  &pid, &error);
    g_assert_no_error(error);
    wait_for_file(ready);
    g_unlink(ready);
    return pid;
}

GPid server_start(const char *arguments)
{
    g_autofree char *line =
        g_strdup_printf("nbdkit --exit-with-parent -f -t 8 -P %s.pid -U %s %s", socket_path,
                        socket_path, arguments);

    return server_start_line(line);
}

void server_stop(GPid pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    g_spawn_close_pid(pid);
}

/* ---- Calls ----------------------------------------------------------------------- */

Call *call_new(void)
{
    Call *call = g_new(Call, 1);

    memset(call, 0, G_STRUCT_OFFSET(Call, bytes));
    g_mutex_init(&call->lock);
    g_cond_init(&call->changed);
    return call;
}

void call_free(Call *call)
{
    g_mutex_clear(&call->lock);
    g_cond_clear(&call->changed);
    g_free(call);
}

void read_done(const struct iovec *iov, int count, int errnum, gpointer user)
{
    Call *call = user;

    g_mutex_lock(&call->lock);
    g_assert_true(errnum == 0 || (!iov && count == 0));
    call->errnum = errnum;
    call->result = 0;
    for (int i = 0; i < count; i++) {
        memcpy(call->bytes + call->result, iov[i].iov_base, iov[i].iov_len);
        call->result += (gint64)iov[i].iov_len;
    }
    call->ended++;
    g_cond_signal(&call->changed);
    g_mutex_unlock(&call->lock);
}

static void call_end(Call *call, int errnum, gint64 result)
{
    g_mutex_lock(&call->lock);
    call->errnum = errnum;
    call->result = result;
    call->ended++;
    g_cond_signal(&call->changed);
    g_mutex_unlock(&call->lock);
}

static void seek_done(gint64 offset, int errnum, gpointer user)
{
    call_end(user, errnum, offset);
}

void call_done(const GError *error, gpointer user)
{
    call_end(user, error ? error->code : 0, 0);
}

void call_text_done(const char *text, const GError *error, gpointer user)
{
    Call *call = user;

    g_strlcpy((char *)call->bytes, text ? text : "", sizeof(call->bytes));
    call_done(error, call);
}

/* Returns: the errno. */
int call_wait(Call *call)
{
    gint64 end_us = g_get_monotonic_time() + 40 * G_USEC_PER_SEC;
    int errnum;

    g_mutex_lock(&call->lock);
    while (call->ended == 0) {
        g_assert_true(g_cond_wait_until(&call->changed, &call->lock, end_us));
    }
    g_assert_cmpuint(call->ended, ==, 1);
    call->ended = 0;
    errnum = call->errnum;
    g_mutex_unlock(&call->lock);
    return errnum;
}

int read_into(BeReader *reader, Call *call, guint64 offset, gsize length)
{
    be_read_unref(be_reader_read(reader, offset, length, read_done, call));
    return call_wait(call);
}

void assert_pattern(const guint8 *bytes, guint64 offset, gint64 length)
{
    for (gint64 i = 0; i < length;) {
        guint64 at = offset + (guint64)i;
        guint64 word = GUINT64_TO_BE(at & ~G_GUINT64_CONSTANT(7));
        gsize skip = at % 8;
        gsize count = MIN(8 - skip, (gsize)(length - i));

        if (memcmp(bytes + i, (guint8 *)&word + skip, count) != 0) {
            g_error("wrong bytes at %" G_GUINT64_FORMAT, at);
        }
        i += (gint64)count;
    }
}

void assert_read(BeReader *reader, Call *call, guint64 offset, gsize length)
{
    g_assert_cmpint(read_into(reader, call, offset, length), ==, 0);
    g_assert_cmpint(call->result, ==, length);
    assert_pattern(call->bytes, offset, call->result);
}

gint64 seek(BeStream *stream, guint64 offset, gboolean data, int *ret_errnum)
{
    g_autoptr(Call) call = call_new();

    be_stream_seek(stream, offset, data, seek_done, call);
    *ret_errnum = call_wait(call);
    return call->result;
}

void stream_end(BeStream *stream)
{
    be_stream_close(stream);
    be_stream_unref(stream);
}

void disk_end(BeDisk *disk)
{
    be_disk_close(disk);
    be_disk_free(disk);
}
