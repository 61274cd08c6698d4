/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * guestfs-volume.c - launches the appliance, finds file systems, mounts them.
 *
 * The thread of vmsnapfs-files, and one that watches the launch.  A file system is
 * mounted when the first path in it is asked for, so that a broken one harms only those
 * who look into it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/guestfs-helper.h"

#define ROOT_NAME "root"
#define LOOK_US (G_USEC_PER_SEC / 5)
#define BUILDING_S 60          /* whoever builds writes more often */

/* ---- Names --------------------------------------------------------------------------- */

/* "sda", "sdb", ... "sdaa" as numbers; -1 for anything else. */
static int disk_number(const char *name, const char **ret_rest)
{
    int number = 0;

    if (!g_str_has_prefix(name, "sd") || !g_ascii_islower(name[2])) {
        return -1;
    }
    for (name += 2; g_ascii_islower(*name) && number < 100000; name++) {
        number = number * 26 + (*name - 'a' + 1);
    }
    *ret_rest = name;
    return number - 1;
}

/* As device mapper does: a dash within a name is doubled. */
static void append_doubled(GString *out, const char *name)
{
    for (; *name; name++) {
        g_string_append_c(out, *name);
        if (*name == '-') {
            g_string_append_c(out, '-');
        }
    }
}

static gboolean name_is_good(const char *name)
{
    if (!*name || *name == '.' || strlen(name) > 200 || strcmp(name, ROOT_NAME) == 0) {
        return FALSE;
    }
    for (; *name; name++) {
        if ((guchar)*name <= ' ' || *name == '/' || *name == 0x7f) {
            return FALSE;
        }
    }
    return TRUE;
}

/*
 * The appliance's names are those of its own devices; the user knows the disks
 * by the targets of the domain, and volumes by the names in /dev/mapper.
 */
static char *volume_name(const Helper *helper, const char *device)
{
    const char *name = device + strlen("/dev/");
    const char *rest = NULL;
    const char *slash;
    int number;
    g_autoptr(GString) out = g_string_new(NULL);

    if (!g_str_has_prefix(device, "/dev/")) {
        return NULL;
    }
    number = disk_number(name, &rest);
    slash = strchr(name, '/');
    if (number >= 0 && number < (int)helper->targets->len) {
        g_string_append_printf(out, "%s%s",
                               (const char *)g_ptr_array_index(helper->targets, number), rest);
    } else if (g_str_has_prefix(name, "mapper/")) {
        g_string_append(out, slash + 1);
    } else if (slash) {
        g_autofree char *group = g_strndup(name, (gsize)(slash - name));

        append_doubled(out, group);
        g_string_append_c(out, '-');
        append_doubled(out, slash + 1);
    } else {
        g_string_append(out, name);
    }
    return name_is_good(out->str) ? g_strdup(out->str) : NULL;
}

static Volume *volume_find(const Helper *helper, const char *name, gsize length)
{
    for (guint i = 0; i < helper->volumes->len; i++) {
        Volume *volume = g_ptr_array_index(helper->volumes, i);

        if (strlen(volume->name) == length && memcmp(volume->name, name, length) == 0) {
            return volume;
        }
    }
    return NULL;
}

static Volume *volume_add(Helper *helper, char *name, const char *device, const char *type)
{
    Volume *volume = g_new0(Volume, 1);

    volume->name = name;
    volume->device = g_strdup(device);
    volume->type = g_strdup(type);
    volume->mountpoint = g_strdup_printf("/v%u", helper->volumes->len);
    g_ptr_array_add(helper->volumes, volume);
    return volume;
}

/* ---- The start ------------------------------------------------------------------------- */

/* A second thread sends while the first is in guestfs_launch(). */
typedef struct {
    Helper *helper;
    guint32 id;
    GMutex lock;
    GCond changed;
    gboolean over;             /* guarded by lock */
} Start;

static void send_stage(const Start *start, FilesStage stage)
{
    guint8 byte = (guint8)stage;

    helper_send(start->helper, FILES_STAGE, start->id, 0, &byte, 1);
}

/*
 * supermin builds in appliance.d.XXXXXXXX, where it writes all the time, and renames that
 * to appliance.d; one of a build that was killed stays and grows old.
 */
static gboolean is_being_built(const char *place)
{
    g_autoptr(GDir) dir = g_dir_open(place, 0, NULL);
    gint64 now_s = g_get_real_time() / G_USEC_PER_SEC;
    const char *name;
    gboolean found = FALSE;

    while (dir && !found && (name = g_dir_read_name(dir))) {
        g_autofree char *top = g_build_filename(place, name, NULL);
        g_autofree char *root = g_build_filename(top, "root", NULL);
        struct stat attr;

        found = g_str_has_prefix(name, "appliance.d.")
                && (stat(root, &attr) == 0 || stat(top, &attr) == 0)
                && attr.st_mtime > now_s - BUILDING_S;
    }
    return found;
}

/* Whether the appliance is there, and not being built anew after an update. */
static gboolean is_built(const Helper *helper)
{
    g_autofree char *place = g_strdup_printf("%s/.guestfs-%u", helper->cache_dir, geteuid());
    g_autofree char *root = g_build_filename(place, "appliance.d", "root", NULL);

    return access(root, F_OK) == 0 && !is_being_built(place);
}

/* Building may take minutes, booting may not; libguestfs tells nothing of the first 5 s. */
static gpointer watch_stage(gpointer data)
{
    Start *start = data;
    FilesStage sent = FILES_STAGE_BUILD;

    g_mutex_lock(&start->lock);
    while (!start->over) {
        FilesStage stage = is_built(start->helper) ? FILES_STAGE_BOOT : FILES_STAGE_BUILD;

        if (stage != sent) {
            send_stage(start, stage);
            sent = stage;
        }
        g_cond_wait_until(&start->changed, &start->lock, g_get_monotonic_time() + LOOK_US);
    }
    g_mutex_unlock(&start->lock);
    return NULL;
}

static int launch(Start *start)
{
    GThread *watch;
    int result;

    g_mutex_init(&start->lock);
    g_cond_init(&start->changed);
    watch = g_thread_new("stage", watch_stage, start);
    result = guestfs_launch(start->helper->guestfs);
    g_mutex_lock(&start->lock);
    start->over = TRUE;
    g_cond_broadcast(&start->changed);
    g_mutex_unlock(&start->lock);
    g_thread_join(watch);
    g_cond_clear(&start->changed);
    g_mutex_clear(&start->lock);
    return result;
}

static gboolean configure(Helper *helper, guestfs_h *guestfs)
{
    return guestfs_set_backend(guestfs, "direct") == 0
           && (!helper->tcg || guestfs_set_backend_setting(guestfs, "force_tcg", "1") == 0)
           && guestfs_set_cachedir(guestfs, helper->cache_dir) == 0
           && guestfs_set_tmpdir(guestfs, "/tmp") == 0
           && guestfs_set_autosync(guestfs, 0) == 0
           /* The PID namespace does what that process is for. */
           && guestfs_set_recovery_proc(guestfs, 0) == 0;
}

/* Writes (the replay of a journal) go to an overlay that dies with us. */
static gboolean add_disks(Helper *helper, guestfs_h *guestfs)
{
    for (guint i = 0; i < helper->targets->len; i++) {
        g_autofree char *server = g_strdup_printf("unix:/tmp/disk%u", i);
        const char *servers[] = {server, NULL};

        if (guestfs_add_drive_opts(guestfs, "", GUESTFS_ADD_DRIVE_OPTS_READONLY, 1,
                                   GUESTFS_ADD_DRIVE_OPTS_FORMAT, "raw",
                                   GUESTFS_ADD_DRIVE_OPTS_PROTOCOL, "nbd",
                                   GUESTFS_ADD_DRIVE_OPTS_SERVER, (char *const *)servers, -1)
            < 0) {
            return FALSE;
        }
    }
    return TRUE;
}

static void add_volume(Helper *helper, const char *device, const char *type)
{
    char *name = volume_name(helper, device);
    Volume *volume;

    if (!name || volume_find(helper, name, strlen(name)) || strcmp(type, "swap") == 0
        || helper->volumes->len >= FILES_VOLUMES_MAX) {
        g_free(name);
        return;
    }
    volume = volume_add(helper, name, device, type);
    if (strcmp(type, "crypto_LUKS") == 0 || strcmp(type, "BitLocker") == 0) {
        volume->errnum = EACCES;
        volume->text = g_strdup_printf("'%s' is locked (%s), and there is no key for it here",
                                       name, type);
    } else if (strcmp(type, "unknown") == 0) {
        volume->errnum = EIO;
        volume->text = g_strdup_printf("'%s' has no file system that is known", name);
    }
}

/*
 * What is locked is no file system to libguestfs, but it is one to the user.
 * @all: whatever has a type: libguestfs's own list fails as a whole where a single
 * broken btrfs is, whose subvolumes it cannot look for.
 */
static void add_devices(Helper *helper, char **devices, gboolean all)
{
    for (guint i = 0; devices && devices[i]; i++) {
        g_autofree char *type = guestfs_vfs_type(helper->guestfs, devices[i]);

        if (type && *type
            && (all || strcmp(type, "crypto_LUKS") == 0 || strcmp(type, "BitLocker") == 0)) {
            add_volume(helper, devices[i], type);
        }
    }
}

/* Subvolumes of btrfs are directories of the file system they are in. */
static gboolean find_volumes(Helper *helper)
{
    g_auto(GStrv) found = guestfs_list_filesystems(helper->guestfs);
    g_auto(GStrv) disks = guestfs_list_devices(helper->guestfs);
    g_auto(GStrv) partitions = guestfs_list_partitions(helper->guestfs);
    g_auto(GStrv) logical = guestfs_lvs(helper->guestfs);

    if (!found && !guestfs_is_ready(helper->guestfs)) {
        return FALSE;
    }
    volume_add(helper, g_strdup(ROOT_NAME), NULL, "");
    for (guint i = 0; found && found[i] && found[i + 1]; i += 2) {
        if (!g_str_has_prefix(found[i], "btrfsvol:")) {
            add_volume(helper, found[i], found[i + 1]);
        }
    }
    add_devices(helper, disks, !found);
    add_devices(helper, partitions, !found);
    add_devices(helper, logical, !found);
    return TRUE;
}

static void send_volumes(Helper *helper, guint32 id)
{
    g_autoptr(GString) names = g_string_new(NULL);

    for (guint i = 0; i < helper->volumes->len; i++) {
        const Volume *volume = g_ptr_array_index(helper->volumes, i);

        g_string_append_len(names, volume->name, (gssize)strlen(volume->name) + 1);
    }
    helper_send(helper, FILES_END, id, 0, names->str, names->len);
}

void helper_start(Helper *helper, guint32 id)
{
    Start start = {.helper = helper, .id = id};

    if (helper->guestfs) {
        helper_fail(helper, id, EALREADY, "started already");
        return;
    }
    helper->guestfs = guestfs_create_flags(GUESTFS_CREATE_NO_ENVIRONMENT);
    if (!helper->guestfs) {
        helper_fail(helper, id, ENOMEM, "no memory for libguestfs");
        return;
    }
    guestfs_set_error_handler(helper->guestfs, NULL, NULL);
    if (!configure(helper, helper->guestfs) || !add_disks(helper, helper->guestfs)
        || launch(&start) < 0) {
        helper_fail_guestfs(helper, id, "the appliance does not start");
        return;
    }
    send_stage(&start, FILES_STAGE_SCAN);
    if (find_volumes(helper)) {
        send_volumes(helper, id);
    } else {
        helper_fail_guestfs(helper, id, "the disks cannot be looked at");
    }
}

/* ---- Mounting -------------------------------------------------------------------------- */

static const char *mount_options(const char *type)
{
    if (strcmp(type, "xfs") == 0) {
        return "ro,nouuid";    /* two disks may be copies of one another */
    }
    if (strcmp(type, "btrfs") == 0) {
        return "ro,subvolid=5"; /* all subvolumes, whichever is the default one */
    }
    if (strcmp(type, "vfat") == 0) {
        return "ro,utf8";
    }
    return "ro";
}

static void set_failure(Volume *volume, int errnum, char *text)
{
    volume->errnum = errnum;
    g_free(volume->text);
    volume->text = text;
}

static void mount_one(Helper *helper, Volume *volume)
{
    guestfs_h *guestfs = helper->guestfs;
    const char *options = mount_options(volume->type);

    /* Refused where it is there already, which the mount finds out. */
    (void)guestfs_mkmountpoint(guestfs, volume->mountpoint);
    if (guestfs_mount_options(guestfs, options, volume->device, volume->mountpoint) < 0
        && (strcmp(options, "ro") == 0 || !guestfs_is_ready(guestfs)
            || guestfs_mount_options(guestfs, "ro", volume->device, volume->mountpoint) < 0)) {
        set_failure(volume, EIO,
                    g_strdup_printf("the file system '%s' (%s) cannot be mounted: %s",
                                    volume->name, volume->type,
                                    guestfs_last_error(guestfs)));
        return;
    }
    volume->mounted = TRUE;
}

static int by_length(gconstpointer a, gconstpointer b, gpointer user G_GNUC_UNUSED)
{
    const char *const *one = a, *const *two = b;

    return (int)strlen(*one) - (int)strlen(*two);
}

static const char *type_of_device(const Helper *helper, const char *device)
{
    for (guint i = 1; i < helper->volumes->len; i++) {
        const Volume *volume = g_ptr_array_index(helper->volumes, i);

        if (strcmp(volume->device, device) == 0) {
            /* Its default subvolume is what the guest mounts, if it names none. */
            return strcmp(volume->type, "btrfs") == 0 ? "" : volume->type;
        }
    }
    return "";
}

/* What the guest mounts, outer directories first; what fails is left out but for "/". */
static void mount_system(Helper *helper, Volume *volume, char **mountpoints)
{
    g_autoptr(GPtrArray) sorted = g_ptr_array_new();
    g_autoptr(GHashTable) devices = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; mountpoints[i] && mountpoints[i + 1]; i += 2) {
        g_ptr_array_add(sorted, mountpoints[i]);
        g_hash_table_insert(devices, mountpoints[i], mountpoints[i + 1]);
    }
    g_qsort_with_data(sorted->pdata, (int)sorted->len, sizeof(gpointer), by_length, NULL);
    (void)guestfs_mkmountpoint(helper->guestfs, volume->mountpoint);
    for (guint i = 0; i < sorted->len; i++) {
        const char *at = g_ptr_array_index(sorted, i);
        const char *device = g_hash_table_lookup(devices, at);
        g_autofree char *path = g_strconcat(volume->mountpoint, at, NULL);

        if (guestfs_mount_options(helper->guestfs, mount_options(type_of_device(helper, device)),
                                  device, path)
            < 0) {
            if (strcmp(at, "/") == 0) {
                set_failure(volume, EIO,
                            g_strdup_printf("the guest's root cannot be mounted: %s",
                                            guestfs_last_error(helper->guestfs)));
                return;
            }
            fprintf(stderr, "left out of the guest's tree: '%s': %s\n", at,
                    guestfs_last_error(helper->guestfs));
        }
    }
    volume->mounted = TRUE;
}

/*
 * Inspection takes down whatever is mounted; the others are mounted again when
 * they are next asked for.
 */
static void mount_root(Helper *helper, Volume *root)
{
    g_auto(GStrv) systems = NULL;
    g_auto(GStrv) mountpoints = NULL;

    for (guint i = 0; i < helper->volumes->len; i++) {
        Volume *volume = g_ptr_array_index(helper->volumes, i);

        volume->mounted = FALSE;
    }
    (void)guestfs_umount_all(helper->guestfs);
    systems = guestfs_inspect_os(helper->guestfs);
    if (!systems) {
        set_failure(root, EIO, g_strdup_printf("the disks cannot be inspected: %s",
                                               guestfs_last_error(helper->guestfs)));
        return;
    }
    if (!systems[0]) {
        set_failure(root, ENOENT,
                    g_strdup("no operating system was found on the disks; each file system is "
                             "beside 'root' under its own name"));
        return;
    }
    mountpoints = guestfs_inspect_get_mountpoints(helper->guestfs, systems[0]);
    if (!mountpoints) {
        set_failure(root, EIO, g_strdup_printf("what the guest mounts cannot be found: %s",
                                               guestfs_last_error(helper->guestfs)));
        return;
    }
    mount_system(helper, root, mountpoints);
}

char *helper_resolve(Helper *helper, guint32 id, const char *path)
{
    const char *slash = strchr(path, '/');
    gsize length = slash ? (gsize)(slash - path) : strlen(path);
    Volume *volume = volume_find(helper, path, length);

    if (!volume) {
        helper_fail(helper, id, ENOENT, "there is no such file system");
        return NULL;
    }
    if (!volume->mounted && volume->errnum == 0) {
        if (volume->device) {
            mount_one(helper, volume);
        } else {
            mount_root(helper, volume);
        }
    }
    if (volume->errnum) {
        helper_fail(helper, id, volume->errnum, "%s", volume->text);
        return NULL;
    }
    return g_strconcat(volume->mountpoint, path + length, NULL);
}
