/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * doctor-libvirt.c - the checks that need a connection; see doctor-priv.h.
 *
 * Main thread; answers come on threads of the backend, which are all gone when
 * vm_doctor_ask_libvirt() returns.
 */
#include <ftw.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend.h"
#include "mountd/doctor-priv.h"

#define ANSWER_US (15 * G_USEC_PER_SEC)
#define MAX_MACHINES_ASKED 50

/**
 * Answer: one text that is waited for.  Whoever drops it last frees it: the
 * backend may answer long after we have given up.
 */
typedef struct {
    gatomicrefcount refs;
    GMutex lock;
    GCond cond;
    gboolean done;             /* guarded by lock */
    char *text;                /* guarded by lock */
    char *error;               /* guarded by lock */
} Answer;

static void answer_unref(Answer *answer)
{
    if (!g_atomic_ref_count_dec(&answer->refs)) {
        return;
    }
    g_mutex_clear(&answer->lock);
    g_cond_clear(&answer->cond);
    g_free(answer->text);
    g_free(answer->error);
    g_free(answer);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Answer, answer_unref)

/* Returns: an answer with a reference for the caller and one for answer_set(). */
static Answer *answer_new(void)
{
    Answer *answer = g_new0(Answer, 1);

    g_atomic_ref_count_init(&answer->refs);
    g_atomic_ref_count_inc(&answer->refs);
    g_mutex_init(&answer->lock);
    g_cond_init(&answer->cond);
    return answer;
}

static void answer_set(const char *text, const GError *error, gpointer user)
{
    Answer *answer = user;

    g_mutex_lock(&answer->lock);
    answer->text = g_strdup(text);
    answer->error = error ? g_strdup(error->message) : NULL;
    answer->done = TRUE;
    g_cond_signal(&answer->cond);
    g_mutex_unlock(&answer->lock);
    answer_unref(answer);
}

/* Returns: the text, or NULL with @ret_error set. */
static char *answer_wait(Answer *answer, gint64 deadline_us, char **ret_error)
{
    char *text;

    g_mutex_lock(&answer->lock);
    while (!answer->done && g_cond_wait_until(&answer->cond, &answer->lock, deadline_us)) {
    }
    text = g_strdup(answer->text);
    if (!text) {
        *ret_error = g_strdup(answer->error ? answer->error : "no answer in time");
    }
    g_mutex_unlock(&answer->lock);
    return text;
}

/* The test driver names a "test-hv". */
static gboolean is_qemu(const char *emulator)
{
    g_autofree char *name = emulator ? g_path_get_basename(emulator) : NULL;

    return name && (g_str_has_prefix(name, "qemu") || g_str_has_prefix(name, "kvm"));
}

static void check_emulator(VmDoctor *doctor)
{
    char *argv[] = {doctor->host->emulator, (char *)"--version", NULL};
    g_autofree char *text = NULL;
    int status = 0;

    if (!is_qemu(argv[0])) {
        vm_doctor_say(doctor, VM_VERDICT_WARN, "QEMU",
                      "this host has no QEMU; what other drivers can do is shown, backups are not");
    } else if (!doctor->local) {
        vm_doctor_say(doctor, VM_VERDICT_OK, "QEMU", "%s, on the host", argv[0]);
    } else if (g_spawn_sync("/", argv, NULL, G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, &text, NULL,
                            &status, NULL)
               && status == 0) {
        text[strcspn(text, "\n")] = '\0';
        vm_doctor_say(doctor, VM_VERDICT_OK, "QEMU", "%s", text);
    } else {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "QEMU", "'%s --version' fails", argv[0]);
    }
}

static VmAgent agent_of(Be *be, const BeDomain *domain, gint64 deadline_us)
{
    g_autoptr(Answer) answer = answer_new();
    g_autofree char *error = NULL;
    g_autofree char *xml = NULL;

    be_domain_xml_fetch(be, domain->uuid, answer_set, answer);
    xml = answer_wait(answer, deadline_us, &error);
    return xml ? vm_agent_parse(xml) : VM_AGENT_NONE;
}

static void check_agents(VmDoctor *doctor, Be *be, const BeDomainList *domains)
{
    gint64 deadline_us = g_get_monotonic_time() + ANSWER_US;
    g_autoptr(GString) without = g_string_new(NULL);
    guint running = 0;
    guint connected = 0;

    for (guint i = 0; i < domains->domains->len && running < MAX_MACHINES_ASKED; i++) {
        const BeDomain *domain = g_ptr_array_index(domains->domains, i);

        if (domain->state != BE_DOMAIN_RUNNING) {
            continue;
        }
        running++;
        if (agent_of(be, domain, deadline_us) == VM_AGENT_CONNECTED) {
            connected++;
        } else {
            g_string_append_printf(without, "%s'%s'", without->len ? ", " : "", domain->name);
        }
    }
    if (without->len) {
        vm_doctor_say(doctor, VM_VERDICT_WARN, "guest agents",
                      "%u of %u running machines have one; without it backups are no better than "
                      "after a power failure: install qemu-guest-agent in %s",
                      connected, running, without->str);
    } else if (running == 0) {
        vm_doctor_say(doctor, VM_VERDICT_OK, "guest agents", "no machine runs that could have one");
    } else {
        vm_doctor_say(doctor, VM_VERDICT_OK, "guest agents", "in every running machine (%u)",
                      running);
    }
}

static void check_connected(VmDoctor *doctor, Be *be)
{
    g_autoptr(Answer) answer = answer_new();
    g_autofree char *error = NULL;
    g_autofree char *capabilities = NULL;
    g_autoptr(BeDomainList) domains = NULL;

    be_capabilities_fetch(be, answer_set, answer);
    capabilities = answer_wait(answer, g_get_monotonic_time() + ANSWER_US, &error);
    if (!capabilities) {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "libvirt",
                      "%s: %s; is libvirtd running, and may you use it?", be_uri(be), error);
        return;
    }
    domains = be_domains(be);
    vm_doctor_say(doctor, VM_VERDICT_OK, "libvirt", "%s answers; machines: %u", be_uri(be),
                  domains->domains->len);
    doctor->host = vm_host_info_parse(capabilities);
    check_emulator(doctor);
    if (is_qemu(doctor->host->emulator)) {
        check_agents(doctor, be, domains);
    }
}

/* ---- Directories of its own ------------------------------------------------ */

static int remove_entry(const char *path, const struct stat *st G_GNUC_UNUSED,
                        int flag G_GNUC_UNUSED, struct FTW *ftw G_GNUC_UNUSED)
{
    return remove(path);
}

static gboolean backend_check(VmDoctor *doctor, const char *directory, GError **error)
{
    g_autofree char *state_dir = g_build_filename(directory, "state", NULL);
    g_autofree char *run_dir = g_build_filename(directory, "run", NULL);
    g_autofree char *scratch_dir = g_build_filename(directory, "scratch", NULL);
    const BeConfig config = {
        .uri = doctor->options->uri,
        .state_dir = state_dir,
        .run_dir = run_dir,
        .scratch_dir = scratch_dir,
        .domains_glob = doctor->options->domains,
        .read_only = doctor->options->read_only,
    };
    Be *be = be_new(&config, error);
    gboolean started = be && be_start(be, error);

    if (started) {
        check_connected(doctor, be);
        be_stop(be);
    }
    if (be) {
        be_free(be);
    }
    return started;
}

void vm_doctor_ask_libvirt(VmDoctor *doctor)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *directory = g_dir_make_tmp("vmsnapfs-doctor-XXXXXX", &error);

    if (!directory || !backend_check(doctor, directory, &error)) {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "libvirt", "%s: %s", doctor->options->uri,
                      error->message);
    }
    if (directory) {
        (void)nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    }
}
