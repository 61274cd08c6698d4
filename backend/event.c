/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * event.c - libvirt's event loop and the callbacks of a connection.
 *
 * One thread, "be-event", runs the loop; it also drives the keepalive of every
 * connection.  Callbacks copy what they need, post it, and return: libvirt
 * delivers nothing else meanwhile.
 */
#include <errno.h>
#include <libvirt/libvirt.h>

#include "backend/backup.h"
#include "backend/error.h"
#include "backend/freeze.h"
#include "backend/private.h"
#include "backend/scratch.h"

static int quit_timer = -1;    /* the process has one loop; set once by prepare */

static void on_quit_timer(int timer G_GNUC_UNUSED, void *opaque G_GNUC_UNUSED)
{
}

gboolean be_event_prepare(GError **error)
{
    static gsize once;

    if (g_once_init_enter(&once)) {
        if (virEventRegisterDefaultImpl() == 0) {
            quit_timer = virEventAddTimeout(-1, on_quit_timer, NULL, NULL);
        }
        g_once_init_leave(&once, 1);
    }
    if (quit_timer < 0) {
        be_error_from_libvirt(error, "cannot start libvirt's event loop");
        return FALSE;
    }
    return TRUE;
}

static gpointer event_main(gpointer data)
{
    Be *be = data;

    while (!g_atomic_int_get(&be->event_stop)) {
        if (virEventRunDefaultImpl() < 0) {
            g_warning("libvirt's event loop failed; trying again");
            g_usleep(G_USEC_PER_SEC / 10);
        }
    }
    return NULL;
}

void be_event_start(Be *be)
{
    g_atomic_int_set(&be->event_stop, 0);
    be->event_thread = g_thread_new("be-event", event_main, be);
}

void be_event_stop(Be *be)
{
    if (!be->event_thread) {
        return;
    }
    g_atomic_int_set(&be->event_stop, 1);
    virEventUpdateTimeout(quit_timer, 0);
    g_thread_join(g_steal_pointer(&be->event_thread));
    virEventUpdateTimeout(quit_timer, -1);
}

static int on_lifecycle(virConnectPtr conn G_GNUC_UNUSED, virDomainPtr domain G_GNUC_UNUSED,
                        int event G_GNUC_UNUSED, int detail G_GNUC_UNUSED, void *opaque)
{
    be_inventory_touch(opaque);
    return 0;
}

/* A job that ended may have been a backup of ours: the job list knows. */
static void on_job_completed(virConnectPtr conn G_GNUC_UNUSED, virDomainPtr domain,
                             virTypedParameterPtr params G_GNUC_UNUSED,
                             int count G_GNUC_UNUSED, void *opaque)
{
    char uuid[VIR_UUID_STRING_BUFLEN];

    if (virDomainGetUUIDString(domain, uuid) == 0) {
        be_backups_check(opaque, uuid);
    }
}

static void on_threshold(virConnectPtr conn G_GNUC_UNUSED, virDomainPtr domain,
                         const char *dev G_GNUC_UNUSED, const char *path G_GNUC_UNUSED,
                         unsigned long long threshold G_GNUC_UNUSED,
                         unsigned long long excess G_GNUC_UNUSED, void *opaque)
{
    char uuid[VIR_UUID_STRING_BUFLEN];

    if (virDomainGetUUIDString(domain, uuid) == 0) {
        be_scratch_kick(opaque, uuid);
    }
}

/* Also after a reset from outside; not when a snapshot is loaded. */
static void on_reboot(virConnectPtr conn G_GNUC_UNUSED, virDomainPtr domain, void *opaque)
{
    char uuid[VIR_UUID_STRING_BUFLEN];

    if (virDomainGetUUIDString(domain, uuid) == 0) {
        be_freezes_rebooted(opaque, uuid);
    }
}

gboolean be_event_register(Be *be, virConnectPtr conn)
{
    int id = virConnectDomainEventRegisterAny(conn, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                              VIR_DOMAIN_EVENT_CALLBACK(on_lifecycle), be, NULL);

    if (id < 0) {
        return FALSE;
    }
    /* Drivers without jobs refuse this one; there is nothing to miss then. */
    (void)virConnectDomainEventRegisterAny(conn, NULL, VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
                                           VIR_DOMAIN_EVENT_CALLBACK(on_job_completed), be, NULL);
    (void)virConnectDomainEventRegisterAny(conn, NULL, VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD,
                                           VIR_DOMAIN_EVENT_CALLBACK(on_threshold), be, NULL);
    (void)virConnectDomainEventRegisterAny(conn, NULL, VIR_DOMAIN_EVENT_ID_REBOOT,
                                           VIR_DOMAIN_EVENT_CALLBACK(on_reboot), be, NULL);
    return TRUE;
}
