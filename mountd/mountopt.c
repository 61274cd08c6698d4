/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * mountopt.c - the words behind "-o"; see mountopt.h.
 *
 * One table for the words that mean something to us, two lists for those that
 * mount(8) and fstab have for others.  Main thread, before any other exists.
 */
#include "mountopt.h"

#include <grp.h>
#include <pwd.h>
#include <string.h>

#define MAX_ACTION_TIMEOUT 3600
#define MAX_APPLIANCES 64
#define MAX_IDLE (7 * 24 * 3600)
#define MAX_BUSY_POLL 1000

typedef struct OptionRow OptionRow;

/*
 * Puts @value (NULL where the row has no metavar) into @field.  A FALSE without
 * an error means that the value is not of the kind that the metavar says.
 */
typedef gboolean (*OptionSet)(const char *value, gpointer field, GError **error);

struct OptionRow {
    const char *name;
    const char *metavar;       /* NULL: the word takes no value */
    OptionSet set;
    size_t field;              /* offset in VmOptions */
    const char *help;
};

static gboolean set_true(const char *value G_GNUC_UNUSED, gpointer field,
                         GError **error G_GNUC_UNUSED)
{
    *(gboolean *)field = TRUE;
    return TRUE;
}

static gboolean set_false(const char *value G_GNUC_UNUSED, gpointer field,
                          GError **error G_GNUC_UNUSED)
{
    *(gboolean *)field = FALSE;
    return TRUE;
}

static gboolean set_switch(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    if (!g_str_equal(value, "on") && !g_str_equal(value, "off")) {
        return FALSE;
    }
    *(gboolean *)field = g_str_equal(value, "on");
    return TRUE;
}

static gboolean set_string(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    char **string = field;

    if (!*value) {
        return FALSE;
    }
    g_free(*string);
    *string = g_strdup(value);
    return TRUE;
}

static gboolean set_directory(const char *value, gpointer field, GError **error)
{
    g_autofree char *path = *value ? g_canonicalize_filename(value, NULL) : g_strdup("");

    return set_string(path, field, error);
}

static gboolean set_quiesce(const char *value, gpointer field, GError **error)
{
    static const char *const words[] = {"try", "require", "off", NULL};

    return g_strv_contains(words, value) && set_string(value, field, error);
}

static gboolean set_recover(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    if (!g_str_equal(value, "adopt") && !g_str_equal(value, "end")) {
        return FALSE;
    }
    *(gboolean *)field = g_str_equal(value, "end");
    return TRUE;
}

static gboolean set_offline(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    if (!g_str_equal(value, "image") && !g_str_equal(value, "paused")) {
        return FALSE;
    }
    *(gboolean *)field = g_str_equal(value, "paused");
    return TRUE;
}

static gboolean set_files(const char *value, gpointer field, GError **error)
{
    static const char *const words[] = {"hidden", "listed", "off", NULL};

    return g_strv_contains(words, value) && set_string(value, field, error);
}

static gboolean set_links(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    *(gboolean *)field = g_str_equal(value, "raw");
    return *(gboolean *)field || g_str_equal(value, "inside");
}

static gboolean set_checkpoint(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    if (!g_str_equal(value, "auto") && !g_str_equal(value, "none")) {
        return FALSE;
    }
    *(gboolean *)field = g_str_equal(value, "none");
    return TRUE;
}

static gboolean set_debug(const char *value G_GNUC_UNUSED, gpointer field, GError **error)
{
    return set_string("all", field, error);
}

static gboolean set_number(const char *value, guint base, guint64 max, guint32 *ret_number)
{
    guint64 number;

    if (!g_ascii_string_to_unsigned(value, base, 0, max, &number, NULL)) {
        return FALSE;
    }
    *ret_number = (guint32)number;
    return TRUE;
}

static gboolean set_keep(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    return set_number(value, 10, 100000, field);
}

static gboolean set_umask(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    return set_number(value, 8, 0777, field);
}

static gboolean set_seconds(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    return set_number(value, 10, MAX_ACTION_TIMEOUT, field);
}

static gboolean set_idle(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    return set_number(value, 10, MAX_IDLE, field);
}

static gboolean set_busy_poll(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    return set_number(value, 10, MAX_BUSY_POLL, field);
}

static gboolean set_appliances(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    return set_number(value, 10, MAX_APPLIANCES, field) && *(guint32 *)field > 0;
}

/* The highest number is (uid_t)-1, "no change" to the kernel and no user. */
static gboolean set_user(const char *value, gpointer field, GError **error)
{
    const struct passwd *user;

    if (g_ascii_isdigit(*value)) {
        return set_number(value, 10, G_MAXUINT32 - 1, field);
    }
    user = *value ? getpwnam(value) : NULL;
    if (!user) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, "there is no user '%s'",
                    value);
        return FALSE;
    }
    *(guint32 *)field = user->pw_uid;
    return TRUE;
}

static gboolean set_group(const char *value, gpointer field, GError **error)
{
    const struct group *group;

    if (g_ascii_isdigit(*value)) {
        return set_number(value, 10, G_MAXUINT32 - 1, field);
    }
    group = *value ? getgrnam(value) : NULL;
    if (!group) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, "there is no group '%s'",
                    value);
        return FALSE;
    }
    *(guint32 *)field = group->gr_gid;
    return TRUE;
}

static gboolean set_bytes(const char *value, gpointer field, GError **error G_GNUC_UNUSED)
{
    static const char units[] = "KMGT";
    const char *unit;
    char *end = NULL;
    guint64 number;
    guint shift = 0;

    if (!g_ascii_isdigit(*value)) {
        return FALSE;
    }
    number = g_ascii_strtoull(value, &end, 10);
    if (*end) {
        unit = strchr(units, g_ascii_toupper(*end));
        if (!unit || end[1]) {
            return FALSE;
        }
        shift = 10 * (guint)(unit - units + 1);
    }
    if (number > (G_MAXUINT64 >> 1) >> shift) {
        return FALSE;
    }
    *(guint64 *)field = number << shift;
    return TRUE;
}

#define FIELD(name) offsetof(VmOptions, name)

/*
 * One row for each word that means something to us.  --help prints it, the man
 * page vmsnapfs(8) has an item for each.
 */
static const OptionRow option_rows[] = {
    {"ro", NULL, set_true, FIELD(read_only), "look only: nothing can be made, ended or commanded"},
    {"rw", NULL, set_false, FIELD(read_only), "the opposite, and the default"},
    {"allow_other", NULL, set_true, FIELD(allow_other),
     "let other users in, as far as the modes go"},
    {"uid", "USER", set_user, FIELD(uid), "owner of the files (number or name)"},
    {"gid", "GROUP", set_group, FIELD(gid), "group of the files (number or name)"},
    {"umask", "OCTAL", set_umask, FIELD(umask), "bits taken away from the modes"},
    {"data-gid", "GROUP", set_group, FIELD(data_gid), "group of the disk files, for an appliance"},
    {"domains", "GLOB", set_string, FIELD(domains), "show only the machines with such names"},
    {"mkdir", "on|off", set_switch, FIELD(mkdir_on), "off: only the control files make objects"},
    {"quiesce", "try|require|off", set_quiesce, FIELD(quiesce),
     "whether a backup freezes the guest's file systems"},
    {"offline", "image|paused", set_offline, FIELD(offline_paused),
     "how a machine that is off is backed up: from its images, or started paused"},
    {"files", "hidden|listed|off", set_files, FIELD(files),
     "the directories with the guests' own files"},
    {"links", "inside|raw", set_links, FIELD(links_raw),
     "raw: a guest's links show its own text, wherever it leads"},
    {"appliances", "COUNT", set_appliances, FIELD(appliances),
     "how many machines' files can be read at once"},
    {"appliance-idle", "SECONDS", set_seconds, FIELD(appliance_idle),
     "an appliance that nobody uses ends after that"},
    {"checkpoint", "auto|none", set_checkpoint, FIELD(checkpoints_off),
     "whether a backup leaves a checkpoint for the next to start from"},
    {"chain", "NAME", set_string, FIELD(chain), "which backups these continue (default)"},
    {"scratch", "DIR", set_directory, FIELD(scratch_dir), "where running backups keep old data"},
    {"scratch-reserve", "BYTES", set_bytes, FIELD(scratch_reserve),
     "room that must stay free there (K, M, G, T)"},
    {"state-dir", "DIR", set_directory, FIELD(state_dir), "journal and records"},
    {"run-dir", "DIR", set_directory, FIELD(run_dir), "sockets"},
    {"action-timeout", "SECONDS", set_seconds, FIELD(action_timeout),
     "an action that takes longer answers ETIMEDOUT"},
    {"idle-end", "SECONDS", set_idle, FIELD(idle_end),
     "end a backup that nobody has read for so long (0: never, the default)"},
    {"busy-poll", "MICROSECONDS", set_busy_poll, FIELD(busy_poll),
     "how long to look for the next request before sleeping (0: never; default 100)"},
    {"keep-checkpoints", "N", set_keep, FIELD(keep_checkpoints),
     "how many checkpoints of ours stay for each chain (0: all; default 8)"},
    {"recover", "adopt|end", set_recover, FIELD(recover_end),
     "what to do with a backup that a killed vmsnapfs left running"},
    {"debug", NULL, set_debug, FIELD(debug), "log everything, the same as -d"},
};

/* Handed to mount(2), which knows what they mean. */
static const char *const kernel_words[] = {
    "nosuid", "nodev", "noexec", "exec", "noatime", "sync", "async", "dirsync",
};

/*
 * For mount(8), systemd or another file system; accepted so that one line of
 * fstab serves.  "dev" and "suid" come from mount.fuse3 whenever root mounts:
 * they are never granted.  default_permissions is always on.
 */
static const char *const foreign_words[] = {
    "",         "defaults", "auto",     "noauto",     "user",        "nouser",      "users",
    "nousers",  "owner",    "noowner",  "group",      "nogroup",     "_netdev",     "nofail",
    "dev",      "suid",     "relatime", "norelatime", "strictatime", "atime",       "diratime",
    "lazytime", "mand",     "nomand",   "silent",     "loud",        "iversion",    "noiversion",
    "bg",       "fg",       "comment",  "nodiratime", "nolazytime",  "nostrictatime",
    "default_permissions",
};

static gboolean word_is_in(const char *const *words, size_t n, const char *word)
{
    for (size_t i = 0; i < n; i++) {
        if (g_str_equal(words[i], word)) {
            return TRUE;
        }
    }
    return FALSE;
}

static const OptionRow *row_find(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(option_rows); i++) {
        if (g_str_equal(option_rows[i].name, name)) {
            return &option_rows[i];
        }
    }
    return NULL;
}

/* Levenshtein's distance: how many letters to change, add or drop. */
static guint word_distance(const char *a, const char *b)
{
    size_t length = strlen(b);
    g_autofree guint *row = g_new(guint, length + 1);

    for (size_t j = 0; j <= length; j++) {
        row[j] = (guint)j;
    }
    for (size_t i = 0; a[i]; i++) {
        guint diagonal = row[0];

        row[0] = (guint)i + 1;
        for (size_t j = 0; j < length; j++) {
            guint change = diagonal + (a[i] != b[j]);

            diagonal = row[j + 1];
            row[j + 1] = MIN(change, MIN(row[j], diagonal) + 1);
        }
    }
    return row[length];
}

static void unknown_error(const char *name, GError **error)
{
    const char *closest = NULL;
    guint best = 3;

    for (size_t i = 0; i < G_N_ELEMENTS(option_rows) && strlen(name) < 64; i++) {
        guint distance = word_distance(name, option_rows[i].name);

        if (distance < best && distance < strlen(name)) {
            best = distance;
            closest = option_rows[i].name;
        }
    }
    g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_UNKNOWN_OPTION,
                closest ? "unknown mount option '%s'; did you mean '%s'?"
                        : "unknown mount option '%s'",
                name, closest);
}

static gboolean row_apply(const OptionRow *row, VmOptions *options, const char *value,
                          GError **error)
{
    g_autoptr(GError) reason = NULL;

    if (!value != !row->metavar) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                    value ? "the mount option '%s' takes no value"
                          : "the mount option '%s' needs a value: %s=%s",
                    row->name, row->name, row->metavar);
        return FALSE;
    }
    if (row->set(value, (char *)options + row->field, &reason)) {
        return TRUE;
    }
    if (reason) {
        g_set_error(error, reason->domain, reason->code, "mount option '%s': %s", row->name,
                    reason->message);
    } else {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                    "mount option '%s': '%s' is not of the form %s", row->name, value,
                    row->metavar);
    }
    return FALSE;
}

static gboolean word_apply(VmOptions *options, const char *word, GError **error)
{
    const char *equals = strchr(word, '=');
    g_autofree char *name = equals ? g_strndup(word, (gsize)(equals - word)) : g_strdup(word);
    const OptionRow *row = row_find(name);

    if (row) {
        return row_apply(row, options, equals ? equals + 1 : NULL, error);
    }
    if (g_str_has_prefix(name, "x-") || g_str_has_prefix(name, "X-")
        || word_is_in(foreign_words, G_N_ELEMENTS(foreign_words), name)) {
        return TRUE;
    }
    if (!equals && word_is_in(kernel_words, G_N_ELEMENTS(kernel_words), name)) {
        g_string_append_printf(options->kernel, "%s%s", options->kernel->len ? "," : "", name);
        return TRUE;
    }
    if (g_str_equal(name, "auto_unmount")) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                    "'auto_unmount' is refused: a job that mirrors the mount would see an empty "
                    "directory instead of an error; see --recover");
        return FALSE;
    }
    unknown_error(name, error);
    return FALSE;
}

gboolean vm_mountopt_apply(VmOptions *options, const char *text, GError **error)
{
    g_autoptr(GString) word = g_string_new(NULL);

    for (const char *at = text;; at++) {
        if (*at == '\\' && (at[1] == ',' || at[1] == '\\')) {
            g_string_append_c(word, *++at);
        } else if (*at && *at != ',') {
            g_string_append_c(word, *at);
        } else {
            if (!word_apply(options, word->str, error)) {
                return FALSE;
            }
            g_string_truncate(word, 0);
            if (!*at) {
                return TRUE;
            }
        }
    }
}

const char **vm_mountopt_names(void)
{
    const char **names = g_new0(const char *, G_N_ELEMENTS(option_rows) + 1);

    for (size_t i = 0; i < G_N_ELEMENTS(option_rows); i++) {
        names[i] = option_rows[i].name;
    }
    return names;
}

void vm_mountopt_help(GString *out)
{
    for (size_t i = 0; i < G_N_ELEMENTS(option_rows); i++) {
        const OptionRow *row = &option_rows[i];
        g_autofree char *word = row->metavar ? g_strconcat(row->name, "=", row->metavar, NULL)
                                             : g_strdup(row->name);

        g_string_append_printf(out, "  %-24s  %s\n", word, row->help);
    }
}
