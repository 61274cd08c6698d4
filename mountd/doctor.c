/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * doctor.c - the checks of this machine, and their list; see doctor.h.
 *
 * Main thread; no other exists but inside vm_doctor_ask_libvirt().
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mountd/doctor-priv.h"
#include "mountd/log.h"
#include "mountd/stale.h"

#define SOCKET_PATH_MAX 107
#define BELOW_RUN_DIR 34       /* "/", a random name, "/" and the socket: as be_new() */
#define APPARMOR_LOCAL "/etc/apparmor.d/local/abstractions/libvirt-qemu"

void vm_doctor_say(VmDoctor *doctor, VmVerdict verdict, const char *what, const char *format, ...)
{
    static const char *const words[] = {
        [VM_VERDICT_OK] = "OK", [VM_VERDICT_WARN] = "WARN", [VM_VERDICT_BAD] = "BAD"};
    g_autofree char *text = NULL;
    g_autofree char *redacted = NULL;
    g_autofree char *safe = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    redacted = vm_uri_redact(text, ":***");
    safe = vm_log_escape(redacted);
    printf("%-4s  %-14s  %s\n", words[verdict], what, safe);
    (void)fflush(stdout);
    doctor->bad = doctor->bad || verdict == VM_VERDICT_BAD;
}

/* ---- FUSE ------------------------------------------------------------------ */

static void check_fuse(VmDoctor *doctor)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

    if (fd >= 0) {
        (void)close(fd);
        vm_doctor_say(doctor, VM_VERDICT_OK, "/dev/fuse", "can be opened");
    } else {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "/dev/fuse", "%s; %s", g_strerror(errno),
                      errno == EACCES ? "users need it to have mode 0666" : "try: modprobe fuse");
    }
}

static void check_fusermount(VmDoctor *doctor)
{
    g_autofree char *path = g_find_program_in_path("fusermount3");
    struct stat st;

    if (!path) {
        vm_doctor_say(doctor, geteuid() == 0 ? VM_VERDICT_WARN : VM_VERDICT_BAD, "fusermount3",
                      "not in PATH; only root can mount: install the package fuse3");
    } else if (geteuid() != 0 && (stat(path, &st) < 0 || !(st.st_mode & S_ISUID))) {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "fusermount3",
                      "%s is not set-uid root, so only root can mount", path);
    } else {
        vm_doctor_say(doctor, VM_VERDICT_OK, "fusermount3", "%s", path);
    }
}

static gboolean file_has_line(const char *path, const char *line)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return FALSE;
    }
    lines = g_strsplit(text, "\n", -1);
    for (char **at = lines; *at; at++) {
        if (g_str_equal(g_strstrip(*at), line)) {
            return TRUE;
        }
    }
    return FALSE;
}

static void check_allow_other(VmDoctor *doctor)
{
    if (geteuid() == 0) {
        return;
    }
    if (file_has_line("/etc/fuse.conf", "user_allow_other")) {
        vm_doctor_say(doctor, VM_VERDICT_OK, "allow_other", "is allowed to users");
    } else {
        vm_doctor_say(doctor, doctor->options->allow_other ? VM_VERDICT_BAD : VM_VERDICT_WARN,
                      "allow_other",
                      "is not allowed to users: QEMU and other users cannot see your mounts; add "
                      "the line user_allow_other to /etc/fuse.conf");
    }
}

/* Returns: whether @mount is alive. */
static gboolean check_mount(VmDoctor *doctor, const VmMount *mount)
{
    g_autofree char *server = NULL;

    switch (vm_mount_state(mount->mountpoint)) {
    case VM_MOUNT_ALIVE:
        return TRUE;
    case VM_MOUNT_DEAD:
        vm_doctor_say(doctor, VM_VERDICT_BAD, "mounts", "'%s' is dead: vmsnapfs --recover '%s'",
                      mount->mountpoint, mount->mountpoint);
        return FALSE;
    case VM_MOUNT_SILENT:
        server = vm_mount_server(mount);
        vm_doctor_say(doctor, VM_VERDICT_BAD, "mounts", "'%s' does not answer: %s hangs",
                      mount->mountpoint, server);
        return FALSE;
    }
    return FALSE;
}

static void check_mounts(VmDoctor *doctor)
{
    g_autoptr(GPtrArray) mounts = vm_mounts_read(NULL);
    guint alive = 0;
    guint ours = 0;

    for (guint i = 0; mounts && i < mounts->len; i++) {
        const VmMount *mount = g_ptr_array_index(mounts, i);

        if (g_str_equal(mount->fstype, VM_FSTYPE)
            && vm_mounts_at(mounts, mount->mountpoint) == mount) {
            ours++;
            alive += check_mount(doctor, mount) ? 1 : 0;
        }
    }
    if (alive == ours) {
        vm_doctor_say(doctor, VM_VERDICT_OK, "mounts", "%u alive, none dead", alive);
    }
}

/* ---- Directories ------------------------------------------------------------ */

/* Returns: @path or its nearest parent that exists. */
static char *existing_part(const char *path)
{
    char *part = g_strdup(path);

    while (access(part, F_OK) < 0 && part[0] && part[1]) {
        char *parent = g_path_get_dirname(part);

        g_free(part);
        part = parent;
    }
    return part;
}

static void G_GNUC_NORETURN child_enter(const char *path, uid_t uid, gid_t gid)
{
    _exit(setgroups(0, NULL) == 0 && setresgid(gid, gid, gid) == 0
          && setresuid(uid, uid, uid) == 0 && access(path, X_OK) == 0 ? 0 : 1);
}

/* Asked as that user: modes alone do not tell, there may be ACLs. */
static gboolean user_can_enter(const char *path, uid_t uid, gid_t gid)
{
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
        child_enter(path, uid, gid);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid > 0 && status == 0;
}

static void check_reach(VmDoctor *doctor, const char *what, const char *path)
{
    g_autofree char *part = existing_part(path);
    const VmHostInfo *host = doctor->host;

    if (!host || !host->has_qemu_user || geteuid() != 0) {
        return;
    }
    if (user_can_enter(part, host->qemu_uid, host->qemu_gid)) {
        vm_doctor_say(doctor, VM_VERDICT_OK, what, "QEMU (uid %u) can reach '%s'", host->qemu_uid,
                      path);
    } else {
        vm_doctor_say(doctor, VM_VERDICT_BAD, what,
                      "QEMU (uid %u) cannot enter '%s': chmod o+x it and its parents",
                      host->qemu_uid, part);
    }
}

static void check_scratch(VmDoctor *doctor)
{
    const char *path = doctor->options->scratch_dir;
    g_autofree char *part = existing_part(path);
    g_autofree char *room = NULL;
    g_autofree char *reserve = g_format_size_full(doctor->options->scratch_reserve,
                                                  G_FORMAT_SIZE_IEC_UNITS);
    struct statvfs st;
    guint64 bytes;

    if (statvfs(part, &st) < 0) {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "scratch", "'%s': %s", part, g_strerror(errno));
        return;
    }
    bytes = (guint64)st.f_bavail * st.f_frsize;
    room = g_format_size_full(bytes, G_FORMAT_SIZE_IEC_UNITS);
    if (bytes <= doctor->options->scratch_reserve) {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "scratch",
                      "%s free at '%s', and %s have to stay free: use -o scratch= or "
                      "-o scratch-reserve=", room, path, reserve);
    } else {
        vm_doctor_say(doctor, VM_VERDICT_OK, "scratch",
                      "%s free at '%s'; a running backup needs what the guest overwrites meanwhile",
                      room, path);
    }
    check_reach(doctor, "scratch", path);
}

static void check_run_dir(VmDoctor *doctor)
{
    const char *path = doctor->options->run_dir;

    if (strlen(path) + BELOW_RUN_DIR > SOCKET_PATH_MAX) {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "run-dir",
                      "'%s' has %zu bytes, sockets allow %d: use -o run-dir=", path, strlen(path),
                      SOCKET_PATH_MAX - BELOW_RUN_DIR);
    } else {
        vm_doctor_say(doctor, VM_VERDICT_OK, "run-dir", "'%s' is short enough", path);
    }
    check_reach(doctor, "run-dir", path);
}

/* ---- Others ------------------------------------------------------------------ */

static void check_qemu_nbd(VmDoctor *doctor)
{
    g_autofree char *path = g_find_program_in_path("qemu-nbd");

    if (path) {
        vm_doctor_say(doctor, VM_VERDICT_OK, "qemu-nbd", "%s", path);
    } else {
        vm_doctor_say(doctor, VM_VERDICT_WARN, "qemu-nbd",
                      "not in PATH: machines that are off cannot be backed up; install the package "
                      "qemu-utils");
    }
}

/*
 * Returns: what the drop-in does not mention, or NULL: our two directories have
 * to be there by name.
 */
static const char *apparmor_lacks(const VmOptions *options)
{
    const char *const wanted[] = {options->run_dir, options->scratch_dir};
    g_autofree char *text = NULL;

    if (!g_file_get_contents(APPARMOR_LOCAL, &text, NULL, NULL)) {
        return wanted[0];
    }
    for (size_t i = 0; i < G_N_ELEMENTS(wanted); i++) {
        if (!strstr(text, wanted[i])) {
            return wanted[i];
        }
    }
    return NULL;
}

static gboolean apparmor_is_enabled(void)
{
    g_autofree char *enabled = NULL;

    return g_file_get_contents("/sys/module/apparmor/parameters/enabled", &enabled, NULL, NULL)
           && *enabled == 'Y';
}

static void check_apparmor(VmDoctor *doctor)
{
    gboolean enabled = apparmor_is_enabled();
    const char *lacks;

    if (!doctor->host ? !enabled : !doctor->host->apparmor) {
        vm_doctor_say(doctor, VM_VERDICT_OK, "AppArmor",
                      enabled ? "enabled, but libvirt does not confine guests" : "not enabled");
        return;
    }
    lacks = apparmor_lacks(doctor->options);
    if (lacks) {
        vm_doctor_say(doctor, VM_VERDICT_BAD, "AppArmor",
                      "keeps QEMU out of '%s': append contrib/apparmor/libvirt-qemu, with your "
                      "directories, to %s; it counts for machines started afterwards",
                      lacks, APPARMOR_LOCAL);
    } else {
        vm_doctor_say(doctor, VM_VERDICT_OK, "AppArmor", "the drop-in is in place");
    }
}

/*
 * "qemu:///system" has no authority, "qemu+ssh://host/system" has one; a
 * transport with an empty one, as "qemu+unix:///", is local as well.
 */
static gboolean uri_is_local(const char *uri)
{
    const char *authority = strstr(uri, "://");

    return authority && authority[3] == '/';
}

int vm_doctor(const VmOptions *options)
{
    static void (*const here[])(VmDoctor *) = {check_fuse, check_fusermount, check_allow_other,
                                               check_mounts};
    static void (*const with_guests[])(VmDoctor *) = {check_scratch, check_run_dir, check_qemu_nbd,
                                                      vm_doctor_check_files, check_apparmor};
    VmDoctor doctor = {.options = options, .local = uri_is_local(options->uri)};

    for (size_t i = 0; i < G_N_ELEMENTS(here); i++) {
        here[i](&doctor);
    }
    vm_doctor_ask_libvirt(&doctor);
    for (size_t i = 0; i < G_N_ELEMENTS(with_guests) && doctor.local; i++) {
        with_guests[i](&doctor);
    }
    if (!doctor.local) {
        vm_doctor_say(&doctor, VM_VERDICT_WARN, "remote host",
                      "scratch space, rights and AppArmor are checked there: run --doctor on it");
    }
    vm_host_info_free(doctor.host);
    return doctor.bad ? 1 : 0;
}
