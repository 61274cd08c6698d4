/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guestfs-jail.c - where libguestfs and its QEMU run: see jail_enter().
 *
 * What reads a hostile disk must not reach the host when it is taken over: it
 * finds a root directory with programs and no data, no network, no process of
 * others, no capability but over the owners and modes of files, and nothing that
 * stays when it ends.  It ends with the daemon: the daemon kills the first of
 * the two processes, or the kernel does when the daemon dies, and with the
 * first dies the second, which is number 1 of its PID namespace, and with that
 * all others.  The one thread of a young process.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/guestfs-helper.h"

#define NEW_ROOT "/tmp"

/* What the appliance is built from, and the programs that build and run it. */
static const char *const programs[] = {"/usr",   "/bin", "/sbin", "/lib",         "/lib32",
                                       "/lib64", "/etc", "/boot", "/var/lib/dpkg", "/var/lib/rpm"};

static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "kvm"};

static void die(const char *what) __attribute__((noreturn));

static void die(const char *what)
{
    fprintf(stderr, "the jail of the appliance: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        die(path);
    }
    close(fd);
}

/* Somebody who is not root is himself in there, and nobody else. */
static void map_user(uid_t uid, gid_t gid)
{
    g_autofree char *uids = g_strdup_printf("%u %u 1", uid, uid);
    g_autofree char *gids = g_strdup_printf("%u %u 1", gid, gid);

    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/uid_map", uids);
    write_file("/proc/self/gid_map", gids);
}

/* ---- The first process ------------------------------------------------------- */

static void wait_for(pid_t child, const sigset_t *signals) __attribute__((noreturn));

/*
 * Number 1 of a PID namespace is reaped when all the others are gone, so that
 * whoever waits for us knows that nothing is left.
 */
static void wait_for(pid_t child, const sigset_t *signals)
{
    int status = 0;

    while (waitpid(child, &status, WNOHANG) != child) {
        int number = sigwaitinfo(signals, NULL);

        if (number == SIGTERM || number == SIGINT) {
            kill(child, SIGKILL);
        }
    }
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void fork_into_namespace(void)
{
    sigset_t signals;
    struct pollfd alive = {.events = POLLIN};
    int ends[2];
    pid_t child;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    if (pipe2(ends, O_CLOEXEC) < 0) {
        die("pipe");
    }
    child = fork();
    if (child < 0) {
        die("fork");
    }
    if (child > 0) {
        close(FILES_FD);
        close(ends[0]);
        wait_for(child, &signals);
    }
    sigprocmask(SIG_UNBLOCK, &signals, NULL);
    close(ends[1]);
    /* A parent that died before prctl() sends no signal any more, but has closed its end. */
    alive.fd = ends[0];
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || poll(&alive, 1, 0) != 0) {
        _exit(1);
    }
    close(ends[0]);
}

/* ---- The root of the second --------------------------------------------------- */

static void seal(const char *path, guint64 attributes)
{
    struct mount_attr attr = {.attr_set = attributes};

    if (mount_setattr(AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof(attr)) < 0) {
        die(path);
    }
}

static void make_directories(const char *path)
{
    if (g_mkdir_with_parents(path, 0755) < 0) {
        die(path);
    }
}

/* A directory of the host, or the link that stands for one, as /bin does. */
static void show_program_directory(const char *path)
{
    g_autofree char *inside = g_strconcat(NEW_ROOT, path, NULL);
    g_autofree char *target = NULL;
    struct stat attr;

    if (lstat(path, &attr) < 0) {
        return;
    }
    if (S_ISLNK(attr.st_mode)) {
        target = g_file_read_link(path, NULL);
        if (!target || symlink(target, inside) < 0) {
            die(inside);
        }
    } else if (S_ISDIR(attr.st_mode)) {
        make_directories(inside);
        if (mount(path, inside, NULL, MS_BIND | MS_REC, NULL) < 0) {
            die(path);
        }
        seal(inside, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    }
}

static void show_device(const char *name)
{
    g_autofree char *path = g_strconcat("/dev/", name, NULL);
    g_autofree char *inside = g_strconcat(NEW_ROOT, path, NULL);
    int fd;

    if (access(path, F_OK) < 0) {
        return;
    }
    fd = open(inside, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || mount(path, inside, NULL, MS_BIND, NULL) < 0) {
        die(path);
    }
    close(fd);
}

static void show_cache(int cache_fd)
{
    g_autofree char *source = g_strdup_printf("/proc/self/fd/%d", cache_fd);

    make_directories(NEW_ROOT JAIL_CACHE);
    if (mount(source, NEW_ROOT JAIL_CACHE, NULL, MS_BIND, NULL) < 0) {
        die("the cache");
    }
    seal(NEW_ROOT JAIL_CACHE, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
}

/* The appliance's writes (a journal that is replayed) go to memory, so far. */
static void build_root(int cache_fd)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0
        || mount("tmpfs", NEW_ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=512m,mode=0755") < 0) {
        die("a root of its own");
    }
    for (gsize i = 0; i < G_N_ELEMENTS(programs); i++) {
        show_program_directory(programs[i]);
    }
    make_directories(NEW_ROOT "/dev");
    for (gsize i = 0; i < G_N_ELEMENTS(devices); i++) {
        show_device(devices[i]);
    }
    if (symlink("/proc/self/fd", NEW_ROOT "/dev/fd") < 0) {
        die("/dev/fd");
    }
    show_cache(cache_fd);
    make_directories(NEW_ROOT "/tmp");
    make_directories(NEW_ROOT "/var/tmp");
    make_directories(NEW_ROOT "/proc");
    if (mount("proc", NEW_ROOT "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0) {
        die("/proc");
    }
}

/* pivot_root(2): the old root lands on the new one, and is taken off it. */
static void enter_root(void)
{
    if (chdir(NEW_ROOT) < 0 || syscall(SYS_pivot_root, ".", ".") < 0
        || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) {
        die("pivot_root");
    }
}

/*
 * To build an appliance: tar gives files to their owners, and programs' files are
 * read that are not everybody's.  Where there is nothing to write to but /tmp and
 * the cache, that is no power over anything.
 */
static const unsigned long kept_capabilities[] = {CAP_DAC_OVERRIDE, CAP_CHOWN, CAP_FOWNER};

static void drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    guint32 kept = 0;

    for (gsize i = 0; i < G_N_ELEMENTS(kept_capabilities); i++) {
        kept |= 1U << kept_capabilities[i];
    }
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++) {
        if ((cap >= 32 || !(kept & (1U << cap))) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
            die("capabilities");
        }
    }
    data[0].effective = data[0].permitted = kept;
    if (syscall(SYS_capset, &header, data) < 0) {
        die("capabilities");
    }
}

void jail_enter(const char *cache_dir)
{
    int flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
    uid_t uid = geteuid();
    gid_t gid = getegid();
    int cache_fd;

    if (unshare(flags | (uid ? CLONE_NEWUSER : 0)) < 0) {
        die("namespaces");
    }
    if (uid) {
        map_user(uid, gid);
    }
    fork_into_namespace();
    /* Now, for nothing can be bound from another mount namespace. */
    cache_fd = open(cache_dir, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (cache_fd < 0) {
        die(cache_dir);
    }
    build_root(cache_fd);
    close(cache_fd);
    enter_root();
    drop_capabilities();
}
