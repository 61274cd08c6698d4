/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * main.c - vmsnapfs: one libvirt host, one mount.
 *
 * Order of start: options, log, who has the mount point, [fork], limits, backend
 * and its lock, signal thread, the dead mount of a predecessor, mount, backend's
 * threads, service; ready when the kernel has been answered.  The end is the same
 * backwards.  Nothing after the start calls exit(): each way out of here passes
 * the clean-up below it.
 *
 * Threads: all of it is the main thread, except mount_stop() (signal thread) and
 * mount_ready() (a thread of fs/).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/backend.h"
#include "fs/fs.h"
#include "mountd/doctor.h"
#include "mountd/log.h"
#include "mountd/options.h"
#include "mountd/readahead.h"
#include "mountd/ready.h"
#include "mountd/signals.h"
#include "mountd/stale.h"

#ifndef VMSNAPFS_VERSION
#error "the build defines VMSNAPFS_VERSION"
#endif

#define OPEN_FILES 65536
#define STOP_SECONDS 75        /* be_stop() has 60 */

/**
 * Mount: the one that this process is there for.
 */
typedef struct {
    const VmOptions *options;
    VmReady *ready;
    Be *be;
    Fs *fs;
    gint stop;                 /* atomic: 1 when asked to end */
    gboolean hangs;            /* the host does not answer: threads wait in libvirt */
} Mount;

/* ---- Called from other threads -------------------------------------------- */

static void mount_stop(gpointer user)
{
    Mount *mount = user;

    g_atomic_int_set(&mount->stop, 1);
    fs_exit(mount->fs);
}

static void mount_ready(gpointer user)
{
    Mount *mount = user;
    g_autofree char *status = g_strdup_printf("serving %s at %s", mount->options->uri,
                                              mount->options->mountpoint);

    vm_readahead_raise(mount->options->mountpoint);
    g_message("%s, version %s", status, VMSNAPFS_VERSION);
    vm_ready_announce(mount->ready, status);
}

/* ---- Preparing the process ------------------------------------------------ */

/* Whoever closed one of them would see our first file or socket in its place. */
static gboolean standard_files_open(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    } while (fd >= 0 && fd <= STDERR_FILENO && fcntl(fd, F_SETFD, 0) == 0);
    return fd < 0 || close(fd) == 0;
}

/*
 * A process in the background that keeps its caller's pipes open makes the
 * caller's reader wait for ever.
 */
static void inherited_files_close(const VmOptions *options)
{
    if (options->command == VM_COMMAND_MOUNT && !options->foreground
        && !g_str_has_prefix(options->mountpoint, VM_PASSED_FUSE)) {
        (void)close_range(STDERR_FILENO + 1, ~0U, 0);
    }
}

static void limit_set(int resource, rlim_t wanted, const char *name)
{
    struct rlimit limit;

    if (getrlimit(resource, &limit) < 0) {
        return;
    }
    limit.rlim_cur = MIN(wanted, limit.rlim_max);
    if (setrlimit(resource, &limit) < 0) {
        g_info("cannot set %s: %s", name, g_strerror(errno));
    }
}

/*
 * Our memory holds data of the guests' disks, so a core file would be a copy of
 * it on the host.  The process stays dumpable: its owner may look at it in /proc.
 */
static void process_prepare(const VmOptions *options)
{
    (void)umask(0077);
    if (chdir("/") < 0) {
        g_warning("cannot change to /: %s", g_strerror(errno));
    }
    if (!options->debug) {
        limit_set(RLIMIT_CORE, 0, "RLIMIT_CORE");
    }
    limit_set(RLIMIT_NOFILE, OPEN_FILES, "RLIMIT_NOFILE");
}

/* ---- One mount, from start to end ----------------------------------------- */

static Be *backend_new(const VmOptions *options, GError **error)
{
    BeConfig config = {
        .uri = options->uri,
        .state_dir = options->state_dir,
        .run_dir = options->run_dir,
        .scratch_dir = options->scratch_dir,
        .domains_glob = options->domains,
        .read_only = options->read_only,
        .scratch_reserve = options->scratch_reserve,
        .offline = options->offline_paused ? BE_OFFLINE_PAUSED : BE_OFFLINE_IMAGE,
        .recover = options->recover_end ? BE_RECOVER_END : BE_RECOVER_ADOPT,
        .idle_end = options->idle_end,
        .busy_poll_us = options->busy_poll,
        .keep_checkpoints = options->keep_checkpoints,
        .appliances = options->appliances,
        .appliance_idle = options->appliance_idle,
        .checkpoints = options->checkpoints_off ? BE_CHECKPOINTS_NONE : BE_CHECKPOINTS_AUTO,
        .chain = options->chain,
    };

    if (options->quiesce) {
        (void)be_quiesce_parse(options->quiesce, &config.quiesce);
    }
    return be_new(&config, error);
}

static FsFilesMode files_mode(const char *word)
{
    if (g_strcmp0(word, "off") == 0) {
        return FS_FILES_OFF;
    }
    return g_strcmp0(word, "listed") == 0 ? FS_FILES_LISTED : FS_FILES_HIDDEN;
}

static Fs *filesystem_new(const VmOptions *options, Be *be, GError **error)
{
    const FsConfig config = {
        .mountpoint = options->mountpoint,
        .version = VMSNAPFS_VERSION,
        .uid = options->uid,
        .gid = options->gid,
        .data_gid = options->data_gid,
        .umask = options->umask,
        .read_only = options->read_only,
        .allow_other = options->allow_other,
        .mkdir_off = !options->mkdir_on,
        .files = files_mode(options->files),
        .links_raw = options->links_raw,
        .debug = vm_log_wants_debug("fs"),
        .action_timeout = options->action_timeout,
        .fuse_options = options->kernel->len ? options->kernel->str : NULL,
    };

    return fs_new(&config, be, error);
}

/* The mount point is ours from here on, and nobody is answered yet. */
static gboolean mounted_serve(Mount *mount, GError **error)
{
    if (!be_start(mount->be, error)) {
        return FALSE;
    }
    if (!g_atomic_int_get(&mount->stop)) {
        fs_loop(mount->fs, mount_ready, mount);
    }
    g_message("ending the service of %s at %s", mount->options->uri, mount->options->mountpoint);
    vm_ready_stopping(STOP_SECONDS);
    mount->hangs = !be_stop(mount->be);
    fs_finish(mount->fs);
    return TRUE;
}

static gboolean filesystem_run(Mount *mount, GError **error)
{
    gboolean ok = FALSE;

    if (!vm_signals_start(mount_stop, mount, error)) {
        return FALSE;
    }
    if (vm_stale_clean(mount->options->mountpoint, error) && fs_mount(mount->fs, error)) {
        ok = mounted_serve(mount, error);
        fs_unmount(mount->fs);
    }
    vm_signals_stop();
    return ok;
}

static gboolean mount_run(Mount *mount, GError **error)
{
    gboolean ok = FALSE;

    mount->be = backend_new(mount->options, error);
    if (!mount->be) {
        return FALSE;
    }
    mount->fs = filesystem_new(mount->options, mount->be, error);
    if (mount->fs) {
        ok = filesystem_run(mount, error);
    }
    if (!mount->hangs) {
        fs_free(mount->fs);
        be_free(mount->be);
    }
    return ok;
}

/*
 * Threads that hang in libvirt may come back while the libraries are being taken
 * down, so nothing is: the process just ends.
 */
static void leave_at_once(VmReady *ready)
{
    vm_ready_free(ready);
    (void)fflush(NULL);
    _exit(0);
}

static int complain(const GError *error)
{
    vm_complain("%s", error->message);
    return 1;
}

static int command_mount(const VmOptions *options)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmReady) ready = vm_ready_new(options->pid_file);
    Mount mount = {.options = options, .ready = ready};
    int status = 0;

    if (!vm_stale_check(options->mountpoint, &error)) {
        return complain(error);
    }
    if (!options->foreground) {
        int pid = vm_ready_fork(ready, &status, &error);

        if (pid != 0) {
            return pid > 0 ? status : complain(error);
        }
    }
    process_prepare(options);
    if (options->password_dropped) {
        g_warning("the password in the URI is not used: everybody could read it in ps(1) and "
                  "mount(8), and libvirt takes it from auth.conf only");
    }
    if (!mount_run(&mount, &error)) {
        return complain(error);
    }
    if (mount.hangs) {
        leave_at_once(g_steal_pointer(&ready));
    }
    return 0;
}

static int command_recover(const char *mountpoint)
{
    g_autoptr(GError) error = NULL;
    guint count = 0;

    if (!vm_stale_recover(mountpoint, &count, &error)) {
        return complain(error);
    }
    if (count == 0) {
        g_message("there is no dead mount at '%s'", mountpoint);
    } else {
        g_message("%u dead mount%s taken away", count, count == 1 ? "" : "s");
    }
    return 0;
}

static int command_run(const VmOptions *options)
{
    switch (options->command) {
    case VM_COMMAND_MOUNT:
        return command_mount(options);
    case VM_COMMAND_HELP: {
        g_autofree char *help = vm_options_help();

        return fputs(help, stdout) < 0;
    }
    case VM_COMMAND_VERSION:
        return printf("vmsnapfs %s\n", VMSNAPFS_VERSION) < 0;
    case VM_COMMAND_DUMP_TREE:
        fs_dump_tree(stdout);
        return 0;
    case VM_COMMAND_DOCTOR:
        return vm_doctor(options);
    case VM_COMMAND_RECOVER:
        return command_recover(options->mountpoint);
    }
    return 1;
}

/* ps(1) shows the command line as long as we live. */
static void password_blank(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        g_autofree char *redacted = vm_uri_redact(argv[i], "");
        size_t length = strlen(argv[i]);

        memset(argv[i], 0, length);
        memcpy(argv[i], redacted, MIN(strlen(redacted), length));
    }
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmOptions) options = NULL;
    int status = be_holder_main(argc, argv);

    if (status >= 0) {
        return status;
    }
    g_set_prgname("vmsnapfs");
    if (!standard_files_open()) {
        return 1;
    }
    options = vm_options_parse(argc, argv, &error);
    password_blank(argc, argv);
    if (!options) {
        return complain(error);
    }
    inherited_files_close(options);
    if (!vm_log_init(options->log, options->debug, &error)) {
        return complain(error);
    }
    status = command_run(options);
    if (fflush(stdout) != 0) {
        vm_complain("cannot write: %s", g_strerror(errno));
        status = 1;
    }
    return status;
}
