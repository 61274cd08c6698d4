/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * paused.c - machines that are off and held paused for a while; see paused.h.
 *
 * Action workers start and end; query workers recover; any thread asks.  `lock`
 * guards the table and the list, and is not held across a call.
 */
#include "backend/paused.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backend/domain-read.h"
#include "backend/error.h"
#include "backend/paused-holder.h"
#include "backend/record.h"
#include "backend/step.h"
#include "backend/unused.h"
#include "backend/xml.h"

#define RECORD_KIND "paused"

/* What its holder does of a dead process of ours takes less than a second. */
#define LEFT_WAIT_US (5 * G_USEC_PER_SEC)
#define LEFT_POLL_US (100 * 1000)
#define AGAIN_MS 2000

struct BePaused {
    Be *be;
    char *uuid;
    char *name;
    char *what;
    gint64 since_us;           /* real time */
    int id;                    /* libvirt's, of this run; -1: not known */
    pid_t holder_pid;
    guint64 holder_start;      /* clock ticks after the boot: pids come again */
    int fd;                    /* the holder's socket; -1: none */
    gboolean settling;         /* guarded by the lock of all: a worker is at it */
};

struct BePauses {
    GMutex lock;
    GHashTable *held;          /* uuid -> BePaused, borrowed; guarded by lock */
    GPtrArray *left;           /* of BePaused, of an earlier process; guarded by lock */
};

static void paused_free(gpointer data)
{
    BePaused *paused = data;

    if (paused->fd >= 0) {
        close(paused->fd);
    }
    g_free(paused->uuid);
    g_free(paused->name);
    g_free(paused->what);
    g_free(paused);
}

BePauses *be_pauses_new(void)
{
    BePauses *pauses = g_new0(BePauses, 1);

    g_mutex_init(&pauses->lock);
    pauses->held = g_hash_table_new(g_str_hash, g_str_equal);
    pauses->left = g_ptr_array_new_with_free_func(paused_free);
    return pauses;
}

void be_pauses_free(BePauses *pauses)
{
    if (!pauses) {
        return;
    }
    g_hash_table_unref(pauses->held);
    g_ptr_array_unref(pauses->left);
    g_mutex_clear(&pauses->lock);
    g_free(pauses);
}

/* ---- Before anything is touched --------------------------------------------------- */

/*
 * libvirtd starts machines by itself once after each boot, and then leaves a mark
 * (virDriverShouldAutostart()); a machine that is held then is not started, and
 * nobody would start it later.
 */
static gboolean autostart_is_over(void)
{
    g_autofree char *session =
        g_build_filename(g_get_user_runtime_dir(), "libvirt/qemu/run/autostarted", NULL);

    return access(geteuid() == 0 ? "/run/libvirt/qemu/autostarted" : session, F_OK) == 0;
}

static gboolean no_image_no_autostart(virDomainPtr domain, GError **error)
{
    int saved = virDomainHasManagedSaveImage(domain, 0);
    int autostart = 0;

    if (saved < 0 || virDomainGetAutostart(domain, &autostart) < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    if (saved) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "the machine has a managed save image, which a start would use up; start it "
                    "and shut it down first, or give its memory up (virsh managedsave-remove)");
        return FALSE;
    }
    if (autostart && !autostart_is_over()) {
        g_set_error(error, BE_ERROR, EBUSY,
                    "libvirtd is about to start the machine by itself (autostart); wait for that");
        return FALSE;
    }
    return TRUE;
}

static gboolean no_host_devices(virDomainPtr domain, GError **error)
{
    g_autoptr(BeXmlDomain) xml = be_domain_read(domain, VIR_DOMAIN_XML_INACTIVE, error);

    if (xml && xml->has_hostdevs) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the machine has devices of the host passed through, which even a paused "
                    "start would take away from it");
        return FALSE;
    }
    return xml != NULL;
}

static gboolean host_can(Be *be, virDomainPtr domain, GError **error)
{
    const char *type = virConnectGetType(virDomainGetConnect(domain));

    if (!be_host_is_local(be)) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "a machine of a remote host cannot be held paused; mount on the host itself");
        return FALSE;
    }
    if (g_strcmp0(type, "QEMU") != 0) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP, "only machines of QEMU can be held paused");
        return FALSE;
    }
    return TRUE;
}

static gboolean is_off_and_stays(virDomainPtr domain, GError **error)
{
    int persistent = virDomainIsPersistent(domain);
    int active = virDomainIsActive(domain);

    if (persistent < 0 || active < 0) {
        be_error_from_libvirt(error, "cannot look at the domain");
        return FALSE;
    }
    if (!persistent) {
        g_set_error(error, BE_ERROR, EOPNOTSUPP,
                    "the domain is transient: it is gone when its machine is turned off");
        return FALSE;
    }
    if (active) {
        g_set_error(error, BE_ERROR, EBUSY, "the machine is not off");
        return FALSE;
    }
    return TRUE;
}

static gboolean may_start(Be *be, virDomainPtr domain, GError **error)
{
    return host_can(be, domain, error) && is_off_and_stays(domain, error)
           && no_image_no_autostart(domain, error) && no_host_devices(domain, error);
}

/* ---- The record ---------------------------------------------------------------------- */

/* The 22nd word of /proc/PID/stat; 0: there is no such process, or only its zombie. */
static guint64 process_start_time(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;
    g_auto(GStrv) words = NULL;
    const char *rest;

    if (!g_file_get_contents(path, &text, NULL, NULL) || !(rest = strrchr(text, ')'))) {
        return 0;
    }
    words = g_strsplit(rest + 1, " ", -1); /* words[1] is the third: its state */
    if (g_strv_length(words) <= 20 || strchr("ZX", *words[1])) {
        return 0;
    }
    return g_ascii_strtoull(words[20], NULL, 10);
}

static gboolean holder_lives(const BePaused *paused)
{
    return paused->holder_pid > 0 && paused->holder_start > 0
           && process_start_time(paused->holder_pid) == paused->holder_start;
}

static gboolean record_write(const BePaused *paused, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();

    be_record_set_string(object, "domain-uuid", paused->uuid);
    be_record_set_string(object, "domain-name", paused->name);
    be_record_set_string(object, "what", paused->what);
    json_object_set_int_member(object, "since-us", paused->since_us);
    json_object_set_int_member(object, "domain-id", paused->id);
    json_object_set_int_member(object, "holder-pid", paused->holder_pid);
    json_object_set_int_member(object, "holder-start", (gint64)paused->holder_start);
    return be_record_write(paused->be, RECORD_KIND, paused->uuid, object, error);
}

static BePaused *record_read(Be *be, JsonObject *object)
{
    const char *uuid = be_record_get_string(object, "domain-uuid");
    const char *name = be_record_get_string(object, "domain-name");
    const char *what = be_record_get_string(object, "what");
    BePaused *paused;

    if (!uuid || !name || !what) {
        return NULL;
    }
    paused = g_new0(BePaused, 1);
    paused->be = be;
    paused->uuid = g_strdup(uuid);
    paused->name = g_strdup(name);
    paused->what = g_strdup(what);
    paused->since_us = be_record_get_int(object, "since-us");
    paused->id = (int)be_record_get_int(object, "domain-id");
    paused->holder_pid = (pid_t)be_record_get_int(object, "holder-pid");
    paused->holder_start = (guint64)be_record_get_int(object, "holder-start");
    paused->fd = -1;
    return paused;
}

/* ---- What others see of it ------------------------------------------------------------- */

static void tell(const BePaused *paused, int errnum, const char *text)
{
    BeEvent event = {.kind = BE_EVENT_WARNING, .time_us = g_get_real_time(),
                     .domain_uuid = paused->uuid, .domain_name = paused->name, .errnum = errnum,
                     .text = text};

    be_notify(paused->be, &event);
}

static char *sentence(const BePaused *paused)
{
    g_autoptr(GDateTime) since = g_date_time_new_from_unix_local(paused->since_us / G_USEC_PER_SEC);
    g_autofree char *when = g_date_time_format(since, "%F %H:%M:%S");

    return g_strdup_printf("the machine is off and held, paused, by vmsnapfs (pid %d) for %s "
                           "since %s; nobody else can start it until that ends",
                           (int)getpid(), paused->what, when);
}

char *be_paused_held(Be *be, const char *uuid)
{
    BePaused *paused;
    char *text;

    if (!be->pauses) {
        return NULL;
    }
    g_mutex_lock(&be->pauses->lock);
    paused = g_hash_table_lookup(be->pauses->held, uuid);
    text = paused ? sentence(paused) : NULL;
    g_mutex_unlock(&be->pauses->lock);
    return text;
}

void be_paused_print(Be *be, const char *uuid, GString *out)
{
    g_autofree char *text = be_paused_held(be, uuid);

    if (text) {
        g_string_append_printf(out, "held: %s\n", text);
    }
}

/* ---- Start ------------------------------------------------------------------------------ */

static BePaused *paused_new(Be *be, virDomainPtr domain, const char *what)
{
    BePaused *paused = g_new0(BePaused, 1);
    char uuid[VIR_UUID_STRING_BUFLEN] = "";

    (void)virDomainGetUUIDString(domain, uuid);
    paused->be = be;
    paused->uuid = g_strdup(uuid);
    paused->name = g_strdup(virDomainGetName(domain));
    paused->what = g_strdup(what);
    paused->since_us = g_get_real_time();
    paused->id = -1;
    paused->fd = -1;
    return paused;
}

static void recover_on_worker(Be *be, gpointer data G_GNUC_UNUSED)
{
    be_pauses_recover(be);
}

static gboolean recover_later(gpointer data)
{
    Be *be = data;

    if (!g_atomic_int_get(&be->stopping)) {
        be_query(be, recover_on_worker, NULL, NULL);
    }
    return G_SOURCE_REMOVE;
}

/* What became of it is not known: its holder ends it, or the recovery does. */
static void leave(BePaused *paused)
{
    Be *be = paused->be;
    BePauses *pauses = be->pauses;

    if (paused->fd >= 0) {
        close(paused->fd);
        paused->fd = -1;
    }
    g_mutex_lock(&pauses->lock);
    g_hash_table_remove(pauses->held, paused->uuid);
    g_ptr_array_add(pauses->left, paused);
    g_mutex_unlock(&pauses->lock);
    g_source_unref(be_timer_add(be, AGAIN_MS, recover_later, be, NULL));
}

static gboolean start_machine(BePaused *paused, gboolean *ret_refused, GError **error)
{
    *ret_refused = TRUE;
    paused->fd = holder_spawn(paused->be->uri, paused->uuid, &paused->holder_pid, error);
    if (paused->fd < 0) {
        return FALSE;
    }
    paused->holder_start = process_start_time(paused->holder_pid);
    if (!record_write(paused, error)) {
        return FALSE;
    }
    be_crash_point("paused", "start", "before");
    paused->id = holder_start_machine(paused->fd, ret_refused, error);
    be_crash_point("paused", "start", "after");
    if (paused->id < 0) {
        return FALSE;
    }
    *ret_refused = FALSE;
    return record_write(paused, error);
}

BePaused *be_paused_start(Be *be, virDomainPtr domain, const char *what, GError **error)
{
    g_autofree char *text = NULL;
    BePaused *paused;
    gboolean refused;

    if (!may_start(be, domain, error)) {
        return NULL;
    }
    paused = paused_new(be, domain, what);
    if (!record_write(paused, error)) {
        paused_free(paused);
        return NULL;
    }
    be_crash_point("paused", "record", "after");
    if (!start_machine(paused, &refused, error)) {
        if (refused) {
            be_record_remove(be, RECORD_KIND, paused->uuid);
            paused_free(paused);
        } else {
            leave(paused);
        }
        return NULL;
    }
    text = sentence(paused);
    g_mutex_lock(&be->pauses->lock);
    g_hash_table_insert(be->pauses->held, paused->uuid, paused);
    g_mutex_unlock(&be->pauses->lock);
    tell(paused, EBUSY, text);
    (void)be_inventory_read(be, NULL);
    return paused;
}

/* ---- End -------------------------------------------------------------------------------- */

static void forget(BePaused *paused)
{
    BePauses *pauses = paused->be->pauses;

    g_mutex_lock(&pauses->lock);
    g_hash_table_remove(pauses->held, paused->uuid);
    g_mutex_unlock(&pauses->lock);
    if (paused->fd >= 0) {
        holder_let_go(paused->fd);
        paused->fd = -1;
    }
    be_record_remove(paused->be, RECORD_KIND, paused->uuid);
    (void)be_inventory_read(paused->be, NULL);
    paused_free(paused);
}

static void tell_resumed(const BePaused *paused)
{
    g_autofree char *text = g_strdup_printf(
        "somebody resumed the machine while it was held, paused, for %s: it runs on", paused->what);

    tell(paused, EBUSY, text);
}

static BeMachine end_machine(BePaused *paused, BeConn *conn, GError **error)
{
    g_autoptr(BeVirConnect) virt = be_conn_get(conn, error);

    return virt ? be_machine_destroy_unused(virt, paused->uuid, paused->id, error)
                : BE_MACHINE_UNKNOWN;
}

gboolean be_paused_end(BePaused *paused, GError **error)
{
    BeMachine machine;

    be_crash_point("paused", "end", "before");
    machine = end_machine(paused, paused->be->action_conn, error);
    be_crash_point("paused", "end", "after");
    if (machine != BE_MACHINE_OFF && machine != BE_MACHINE_USED) {
        if (machine != BE_MACHINE_UNKNOWN) {
            g_set_error(error, BE_ERROR, EBUSY, "the machine is starting again");
        }
        leave(paused);
        return FALSE;
    }
    if (machine == BE_MACHINE_USED) {
        tell_resumed(paused);
    }
    forget(paused);
    return TRUE;
}

/* ---- What an earlier process left --------------------------------------------------------- */

typedef enum {
    LEFT_WAIT,                 /* its holder is at it */
    LEFT_LATER,                /* the host does not answer */
    LEFT_OVER,
} LeftFate;

static LeftFate unused_fate(BePaused *paused, GError **error)
{
    if (holder_lives(paused)) {
        return LEFT_WAIT;
    }
    if (paused->id < 0) {
        /* Killed at the very start, and its holder with it: this may be another's. */
        tell(paused, EBUSY,
             "the machine is paused and has not run; it may be left over from a vmsnapfs that was "
             "killed: turn it off (virsh destroy) unless somebody has started it so");
        return LEFT_OVER;
    }
    switch (end_machine(paused, paused->be->query_conn, error)) {
    case BE_MACHINE_OFF:
        return LEFT_OVER;
    case BE_MACHINE_USED:
        tell_resumed(paused);
        return LEFT_OVER;
    case BE_MACHINE_UNKNOWN:
    case BE_MACHINE_STARTING:
    case BE_MACHINE_UNUSED:
        break;
    }
    return LEFT_LATER;
}

static LeftFate left_fate(BePaused *paused, GError **error)
{
    g_autoptr(BeVirConnect) virt = be_conn_get(paused->be->query_conn, error);
    BeMachine machine =
        virt ? be_machine_look(virt, paused->uuid, paused->id, error) : BE_MACHINE_UNKNOWN;

    switch (machine) {
    case BE_MACHINE_UNKNOWN:
        break;
    case BE_MACHINE_OFF:
        return paused->id < 0 && holder_lives(paused) ? LEFT_WAIT : LEFT_OVER;
    case BE_MACHINE_STARTING:
        return LEFT_WAIT;
    case BE_MACHINE_USED:
        tell_resumed(paused);
        return LEFT_OVER;
    case BE_MACHINE_UNUSED:
        return unused_fate(paused, error);
    }
    return LEFT_LATER;
}

/* Whether nothing is left to do about it. */
static gboolean settle_left(BePaused *paused)
{
    gint64 until_us = g_get_monotonic_time() + LEFT_WAIT_US;
    g_autoptr(GError) error = NULL;
    LeftFate fate;

    while ((fate = left_fate(paused, &error)) == LEFT_WAIT
           && g_get_monotonic_time() < until_us) {
        g_usleep(LEFT_POLL_US);
    }
    if (fate == LEFT_OVER) {
        be_record_remove(paused->be, RECORD_KIND, paused->uuid);
        g_info("'%s' is no longer held, paused, for %s", paused->name, paused->what);
        return TRUE;
    }
    g_warning("'%s' may still be held, paused, for %s: %s", paused->name, paused->what,
              error ? error->message : "its holder has not turned it off yet");
    return FALSE;
}

void be_pauses_load(Be *be)
{
    g_autoptr(GPtrArray) records = NULL;

    if (be->read_only) {
        return;
    }
    records = be_record_load(be, RECORD_KIND);
    for (guint i = 0; i < records->len; i++) {
        const BeRecord *record = g_ptr_array_index(records, i);
        BePaused *paused = record_read(be, record->object);

        if (paused) {
            g_ptr_array_add(be->pauses->left, paused);
        } else {
            be_record_set_aside(be, RECORD_KIND, record->id, "it names no domain");
        }
    }
}

/* Takes the list, so that two workers do not settle the same one. */
void be_pauses_recover(Be *be)
{
    g_autoptr(GPtrArray) taken = g_ptr_array_new();

    if (!be->pauses) {
        return;
    }
    g_mutex_lock(&be->pauses->lock);
    for (guint i = 0; i < be->pauses->left->len; i++) {
        BePaused *paused = g_ptr_array_index(be->pauses->left, i);

        if (!paused->settling) {
            paused->settling = TRUE;
            g_ptr_array_add(taken, paused);
        }
    }
    g_mutex_unlock(&be->pauses->lock);
    for (guint i = 0; i < taken->len; i++) {
        BePaused *paused = g_ptr_array_index(taken, i);
        gboolean over = settle_left(paused);

        g_mutex_lock(&be->pauses->lock);
        paused->settling = FALSE;
        if (over) {
            g_ptr_array_remove(be->pauses->left, paused); /* frees it */
        }
        g_mutex_unlock(&be->pauses->lock);
        if (!over) {
            g_source_unref(be_timer_add(be, AGAIN_MS, recover_later, be, NULL));
        }
    }
}

gboolean be_paused_is_left(Be *be, const char *uuid)
{
    gboolean left = FALSE;

    g_mutex_lock(&be->pauses->lock);
    for (guint i = 0; i < be->pauses->left->len && !left; i++) {
        const BePaused *paused = g_ptr_array_index(be->pauses->left, i);

        left = g_str_equal(paused->uuid, uuid);
    }
    g_mutex_unlock(&be->pauses->lock);
    return left;
}
