/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mountd.c - vmsnapfs-mountd: the mounts of many hosts.
 *
 * Reads the configuration, lets supervise.c keep a process for each host, and
 * hands it the signals.  Main thread only, all from GLib's main loop.
 */
#include <errno.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "mountd/hosts.h"
#include "mountd/log.h"
#include "mountd/supervise.h"

#ifndef VMSNAPFS_VERSION
#error "the build defines VMSNAPFS_VERSION"
#endif

#define PROGRAM "vmsnapfs"
#define CONFIG "/etc/vmsnapfs/mountd.conf"

typedef struct {
    char *config;
    char *log;
    char *program;
    gboolean debug, version, help;
    VmSupervisor *supervisor;
} Mountd;

/* ---- Signals ------------------------------------------------------------------- */

static gboolean on_stop(gpointer user)
{
    Mountd *mountd = user;

    g_message("ending");
    vm_supervisor_stop(mountd->supervisor);
    return G_SOURCE_CONTINUE;
}

static gboolean on_reload(gpointer user)
{
    Mountd *mountd = user;
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) hosts = NULL;

    (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" G_GINT64_FORMAT, g_get_monotonic_time());
    hosts = vm_hosts_load(mountd->config, &error);
    if (hosts) {
        vm_supervisor_set_hosts(mountd->supervisor, hosts);
    } else {
        g_warning("the configuration stays as it was: %s", error->message);
    }
    (void)sd_notify(0, "READY=1");
    return G_SOURCE_CONTINUE;
}

/* Caught and not ignored: what is ignored stays so in the children. */
static void on_pipe(int signum G_GNUC_UNUSED)
{
}

static void signals_listen(Mountd *mountd)
{
    struct sigaction action = {.sa_handler = on_pipe, .sa_flags = SA_RESTART};

    (void)sigaction(SIGPIPE, &action, NULL);
    (void)g_unix_signal_add(SIGTERM, on_stop, mountd);
    (void)g_unix_signal_add(SIGINT, on_stop, mountd);
    (void)g_unix_signal_add(SIGHUP, on_reload, mountd);
}

/* ---- Start ----------------------------------------------------------------------- */

static void mountd_clear(Mountd *mountd)
{
    vm_supervisor_free(mountd->supervisor);
    g_free(mountd->config);
    g_free(mountd->log);
    g_free(mountd->program);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Mountd, mountd_clear)

static GOptionContext *context_new(Mountd *mountd)
{
    const GOptionEntry entries[] = {
        {"config", 'c', 0, G_OPTION_ARG_FILENAME, &mountd->config,
         "Configuration, instead of " CONFIG, "FILE"},
        {"debug", 'd', 0, G_OPTION_ARG_NONE, &mountd->debug, "Log everything, for all hosts", NULL},
        {"log", 0, 0, G_OPTION_ARG_FILENAME, &mountd->log,
         "Where to log: stderr (default), journal or a file", "WHERE"},
        {"program", 0, 0, G_OPTION_ARG_FILENAME, &mountd->program, "The vmsnapfs to run", "FILE"},
        {"version", 'V', 0, G_OPTION_ARG_NONE, &mountd->version, "Print the version", NULL},
        {"help", 'h', 0, G_OPTION_ARG_NONE, &mountd->help, "Print this text", NULL},
        {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
    };
    GOptionContext *context = g_option_context_new(NULL);

    g_option_context_set_help_enabled(context, FALSE);
    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_summary(context, "Keeps the mounts of many libvirt hosts alive.");
    return context;
}

/* The one that was installed, or built, together with us. */
static char *program_find(void)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *directory = self ? g_path_get_dirname(self) : NULL;
    g_autofree char *beside = directory ? g_build_filename(directory, PROGRAM, NULL) : NULL;

    if (beside && access(beside, X_OK) == 0) {
        return g_steal_pointer(&beside);
    }
    return g_find_program_in_path(PROGRAM);
}

static gboolean mountd_complete(Mountd *mountd, GError **error)
{
    char *program = mountd->program ? g_canonicalize_filename(mountd->program, NULL)
                                    : program_find();
    char *config = g_canonicalize_filename(mountd->config ? mountd->config : CONFIG, NULL);

    g_free(mountd->program);
    mountd->program = program;
    g_free(mountd->config);
    mountd->config = config;
    if (!program) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_NOENT,
                    "there is no " PROGRAM " beside this program or in PATH");
        return FALSE;
    }
    return vm_log_init(mountd->log ? mountd->log : "stderr", mountd->debug ? "all" : NULL, error);
}

static int mountd_run(Mountd *mountd)
{
    VmSupervisorConfig config = {.log = mountd->log, .debug = mountd->debug};
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) hosts = NULL;

    if (!mountd_complete(mountd, &error) || !(hosts = vm_hosts_load(mountd->config, &error))) {
        vm_complain("%s", error->message);
        return 1;
    }
    if (hosts->len == 0) {
        g_warning("there is no host in '%s'", mountd->config);
    }
    (void)umask(0077);
    if (chdir("/") < 0) {
        g_warning("cannot change to /: %s", g_strerror(errno));
    }
    config.program = mountd->program;
    mountd->supervisor = vm_supervisor_new(&config);
    signals_listen(mountd);
    vm_supervisor_set_hosts(mountd->supervisor, hosts);
    return vm_supervisor_run(mountd->supervisor) ? 0 : 1;
}

static int print_help(GOptionContext *context)
{
    g_autofree char *help = g_option_context_get_help(context, TRUE, NULL);

    return fputs(help, stdout) < 0;
}

int main(int argc, char **argv)
{
    g_auto(Mountd) mountd = {0};
    g_autoptr(GOptionContext) context = context_new(&mountd);
    g_autoptr(GError) error = NULL;
    g_auto(GStrv) arguments = g_strdupv(argv);

    g_set_prgname("vmsnapfs-mountd");
    if (!g_option_context_parse_strv(context, &arguments, &error)) {
        vm_complain("%s", error->message);
        return 1;
    }
    if (argc > 1 && g_strv_length(arguments) > 1) {
        vm_complain("'%s' is too much; see --help", arguments[1]);
        return 1;
    }
    if (mountd.help) {
        return print_help(context);
    }
    if (mountd.version) {
        return printf("vmsnapfs-mountd %s\n", VMSNAPFS_VERSION) < 0;
    }
    return mountd_run(&mountd);
}
