/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * image-stream.c - the stream of a disk that is held by local images; see
 * image-stream.h.
 *
 * Made on any thread; serve() runs on a thread of the stream's source, never on two
 * at once.
 */
#include "backend/image-stream.h"

#include <errno.h>

#include "backend/child.h"
#include "backend/error.h"
#include "backend/image-source.h"
#include "backend/lease.h"

/* What serve() needs; the stream's. */
struct BeImageServer {
    gatomicrefcount refs;
    gboolean (*check)(gpointer user, GError **error);
    gpointer check_user;
    GDestroyNotify check_destroy;
    GPtrArray *chain;          /* of BeImage */
    BeImageSnapshot snapshot;  /* its id is NULL when there is none */
    char *bitmap;              /* or NULL */
    gboolean in_use;
    char *socket;
    GMutex lock;
    BeChild *server;           /* guarded by lock; NULL when there is no process */
    gboolean leased;           /* guarded by lock; the images are, from before the check on */
    gint up;                   /* atomic: there is one */
};

static void lease_locked(BeImageServer *server, gboolean take)
{
    if (server->leased == take) {
        return;
    }
    server->leased = take;
    for (guint i = 0; i < server->chain->len; i++) {
        if (take) {
            be_lease_take(g_ptr_array_index(server->chain, i));
        } else {
            be_lease_drop(g_ptr_array_index(server->chain, i));
        }
    }
}

void be_image_server_unref(BeImageServer *server)
{
    if (!server || !g_atomic_ref_count_dec(&server->refs)) {
        return;
    }
    if (server->check_destroy) {
        server->check_destroy(server->check_user);
    }
    be_child_free(server->server);
    lease_locked(server, FALSE);
    g_mutex_clear(&server->lock);
    g_ptr_array_unref(server->chain);
    be_image_snapshot_clear(&server->snapshot);
    g_free(server->bitmap);
    g_free(server->socket);
    g_free(server);
}

static gboolean start_locked(BeImageServer *server, GError **error)
{
    g_autofree char *json = server->in_use ? be_image_chain_json_unlocked(server->chain, error)
                                           : be_image_chain_json(server->chain, error);
    BeQemuNbd nbd = {.socket_path = server->socket, .image_json = json, .export_name = "",
                     .snapshot_id = server->snapshot.id,
                     .snapshot_name = server->snapshot.name, .bitmap = server->bitmap};

    if (!json || (server->check && !server->check(server->check_user, error))) {
        return FALSE;
    }
    g_clear_pointer(&server->server, be_child_free);
    server->server = be_child_start_qemu_nbd(&nbd, error);
    g_atomic_int_set(&server->up, server->server != NULL);
    return server->server != NULL;
}

/* The stream is about to connect for the first time, or again after it lost it. */
static char *serve(gpointer user, GError **error)
{
    BeImageServer *server = user;
    gboolean started;

    g_mutex_lock(&server->lock);
    lease_locked(server, TRUE);
    started = start_locked(server, error);
    lease_locked(server, started);
    g_mutex_unlock(&server->lock);
    return started ? g_strdup(server->socket) : NULL;
}

gboolean be_image_server_is_up(BeImageServer *server)
{
    return g_atomic_int_get(&server->up);
}

void be_image_server_rest(BeImageServer *server)
{
    BeChild *child;

    g_mutex_lock(&server->lock);
    child = g_steal_pointer(&server->server);
    g_atomic_int_set(&server->up, 0);
    be_child_free(child);
    lease_locked(server, FALSE);
    g_mutex_unlock(&server->lock);
}

/* The stream is closed: nobody reads any more, whoever else knows the server. */
static void close_server(gpointer data)
{
    be_image_server_rest(data);
    be_image_server_unref(data);
}


/* Several streams may share a directory. */
static char *new_socket(const char *directory)
{
    static gint count;
    g_autofree char *file = g_strdup_printf("%x.sock", (guint)g_atomic_int_add(&count, 1));

    return g_build_filename(directory, file, NULL);
}

/*
 * QEMU 7.2 shows a snapshot with the size that the image has now (tried; its
 * qcow2_snapshot_load_tmp() leaves the size alone).  What is larger is cut off.
 */
static gboolean find_snapshot(const BeImageSource *source, BeImageSnapshot *ret, GError **error)
{
    const BeImage *top = g_ptr_array_index(source->chain, 0);

    if (!be_image_snapshot_find(top, source->snapshot, ret, error)) {
        return FALSE;
    }
    if (ret->size > top->size) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the disk was larger when the snapshot '%s' was made (%" G_GUINT64_FORMAT
                    " bytes, now %" G_GUINT64_FORMAT "); revert to the snapshot to read it",
                    source->snapshot, ret->size, top->size);
        be_image_snapshot_clear(ret);
        return FALSE;
    }
    return TRUE;
}

BeStream *be_stream_new_image_served(const BeImageSource *source, BeImageServer **ret_server,
                                     GError **error)
{
    BeImageSnapshot snapshot = {.id = NULL};
    BeNbdExport nbd = {.name = "", .prepare = serve, .prepare_destroy = close_server};
    BeImageServer *server;

    if (source->snapshot && !find_snapshot(source, &snapshot, error)) {
        if (source->check_destroy) {
            source->check_destroy(source->check_user);
        }
        return NULL;
    }
    server = g_new0(BeImageServer, 1);
    g_atomic_ref_count_init(&server->refs);
    g_mutex_init(&server->lock);
    server->check = source->check;
    server->check_user = source->check_user;
    server->check_destroy = source->check_destroy;
    server->chain = g_ptr_array_ref(source->chain);
    server->snapshot = snapshot;
    server->bitmap = g_strdup(source->bitmap);
    server->in_use = source->in_use;
    server->socket = new_socket(source->directory);
    nbd.prepare_user = server;
    nbd.dirty_bitmap = source->bitmap;
    nbd.size = source->snapshot ? snapshot.size : be_image_chain_size(source->chain);
    nbd.larger = source->snapshot != NULL;
    nbd.allocated = be_image_chain_allocated(source->chain);
    if (ret_server) {
        g_atomic_ref_count_inc(&server->refs);
        *ret_server = server;
    }
    /* What a machine has open may change its tables under us; and only QEMU knows those
     * of a snapshot. */
    if (source->in_use || source->snapshot) {
        return be_stream_new_nbd_export(&nbd);
    }
    return be_stream_new_image_source(source, ret_server != NULL, &nbd);
}

BeStream *be_stream_new_image(const BeImageSource *source, GError **error)
{
    return be_stream_new_image_served(source, NULL, error);
}
