/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * options.c - the command line of vmsnapfs; see options.h.
 *
 * GOption reads the switches, mountopt.c what stands behind "-o"; here is also
 * what follows from both: the command, the operands, the directories.
 * Main thread, before any other exists.
 */
#include "options.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mountd/mountopt.h"

#define DEFAULT_KEEP_CHECKPOINTS 8
#define DEFAULT_BUSY_POLL 100
#define DEFAULT_SCRATCH_RESERVE (G_GUINT64_CONSTANT(1) << 30)

/* ---- The switches --------------------------------------------------------- */

/**
 * Switches: what GOption fills in.
 */
typedef struct {
    gboolean foreground, debug, help, version, dump_tree, doctor, recover;
    char *debug_domains;
    char *log;
    char *pid_file;
    char **mount_options;
    char **operands;
} Switches;

static void switches_clear(Switches *switches)
{
    g_free(switches->debug_domains);
    g_free(switches->log);
    g_free(switches->pid_file);
    g_strfreev(switches->mount_options);
    g_strfreev(switches->operands);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Switches, switches_clear)

static GOptionContext *context_new(Switches *to)
{
    const GOptionEntry entries[] = {
        {"options", 'o', 0, G_OPTION_ARG_FILENAME_ARRAY, &to->mount_options,
         "Mount options, separated by commas; see below", "OPT[,OPT...]"},
        {"foreground", 'f', 0, G_OPTION_ARG_NONE, &to->foreground,
         "Stay in the foreground and log to stderr", NULL},
        {"debug", 'd', 0, G_OPTION_ARG_NONE, &to->debug,
         "Log everything; --debug=fs,backend: only these parts", NULL},
        {"debug-domains", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &to->debug_domains,
         NULL, NULL},
        {"log", 0, 0, G_OPTION_ARG_FILENAME, &to->log, "Where to log: stderr, journal or a file",
         "WHERE"},
        {"pid-file", 0, 0, G_OPTION_ARG_FILENAME, &to->pid_file,
         "Write the process id there once the mount answers", "FILE"},
        {"doctor", 0, 0, G_OPTION_ARG_NONE, &to->doctor,
         "Check this host and say what is missing (operand: URI)", NULL},
        {"recover", 0, 0, G_OPTION_ARG_NONE, &to->recover,
         "Take away a dead mount (operand: MOUNTPOINT)", NULL},
        {"dump-tree", 0, 0, G_OPTION_ARG_NONE, &to->dump_tree,
         "Print every path of the tree with its mode", NULL},
        {"version", 'V', 0, G_OPTION_ARG_NONE, &to->version, "Print the version", NULL},
        {"help", 'h', 0, G_OPTION_ARG_NONE, &to->help, "Print this text", NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &to->operands, NULL, NULL},
        {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
    };
    GOptionContext *context = g_option_context_new("URI MOUNTPOINT");

    g_option_context_set_help_enabled(context, FALSE);
    g_option_context_add_main_entries(context, entries, NULL);
    return context;
}

/*
 * GOption knows neither "-oro" nor a switch whose value is optional, so these
 * two become "-o ro" and "--debug-domains=LIST" before it sees them.
 */
static char **arguments_normalize(int argc, char *const *argv)
{
    g_autoptr(GPtrArray) out = g_ptr_array_new_with_free_func(g_free);
    gboolean operands = FALSE;

    for (int i = 0; i < argc; i++) {
        if (!operands && g_str_has_prefix(argv[i], "-o") && argv[i][2]) {
            g_ptr_array_add(out, g_strdup("-o"));
            g_ptr_array_add(out, g_strdup(argv[i] + 2));
        } else if (!operands && g_str_has_prefix(argv[i], "--debug=")) {
            g_ptr_array_add(out, g_strconcat("--debug-domains=", strchr(argv[i], '=') + 1, NULL));
        } else {
            operands = operands || g_str_equal(argv[i], "--");
            g_ptr_array_add(out, g_strdup(argv[i]));
        }
    }
    g_ptr_array_add(out, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&out), FALSE);
}

char *vm_options_help(void)
{
    g_auto(Switches) switches = {0};
    g_autoptr(GOptionContext) context = context_new(&switches);
    g_autoptr(GString) text = g_string_new("Mount options:\n");

    vm_mountopt_help(text);
    g_option_context_set_summary(context, "Shows the virtual machines of a libvirt host as "
                                          "directories: mkdir makes a backup,\n"
                                          "rmdir ends it, and its disks are files.");
    g_option_context_set_description(context, text->str);
    return g_option_context_get_help(context, TRUE, NULL);
}

/* ---- What follows from them ----------------------------------------------- */

char *vm_uri_redact(const char *text, const char *replacement)
{
    GString *out = g_string_new(NULL);
    const char *at = text;
    const char *scheme;

    while ((scheme = strstr(at, "://"))) {
        const char *authority = scheme + 3;
        size_t length = strcspn(authority, "/?# \t\r\n'\"<>");
        const char *host = g_strrstr_len(authority, (gssize)length, "@");
        const char *colon = host ? memchr(authority, ':', (size_t)(host - authority)) : NULL;

        if (colon) {
            g_string_append_len(out, at, colon - at);
            g_string_append(out, replacement);
            at = host;
        } else {
            g_string_append_len(out, at, authority - at);
            at = authority;
        }
    }
    g_string_append(out, at);
    return g_string_free(out, FALSE);
}

static char *mountpoint_realpath(const char *path)
{
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    g_autofree char *parent = g_path_get_dirname(absolute);
    g_autofree char *name = g_path_get_basename(absolute);
    char *real = realpath(absolute, NULL);
    char *result = NULL;

    if (real) {
        result = g_strdup(real);
    } else {
        real = realpath(parent, NULL);
        result = real ? g_build_filename(real, name, NULL) : g_steal_pointer(&absolute);
    }
    free(real);
    return result;
}

/*
 * realpath(3) of the mount point itself fails with ENOTCONN on a dead mount in
 * some libraries, so then its parent is resolved.  /dev/fd/N is no directory but
 * an open /dev/fuse: so mount.fuse3 calls us with its option drop_privileges.
 */
static char *mountpoint_resolve(const char *path)
{
    if (g_str_has_prefix(path, VM_PASSED_FUSE)) {
        return g_strdup(path);
    }
    return mountpoint_realpath(path);
}

static gboolean command_set(VmOptions *options, const Switches *switches, GError **error)
{
    const struct {
        gboolean asked;
        VmCommand command;
    } commands[] = {
        {switches->help, VM_COMMAND_HELP},           {switches->version, VM_COMMAND_VERSION},
        {switches->dump_tree, VM_COMMAND_DUMP_TREE}, {switches->doctor, VM_COMMAND_DOCTOR},
        {switches->recover, VM_COMMAND_RECOVER},
    };
    guint asked = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (commands[i].asked && !asked++) {
            options->command = commands[i].command;
        }
    }
    if (asked > 1 && options->command != VM_COMMAND_HELP) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_FAILED,
                    "only one of --version, --dump-tree, --doctor and --recover can be asked for");
        return FALSE;
    }
    return TRUE;
}

static gboolean uri_set(VmOptions *options, const char *uri, GError **error)
{
    if (!*uri || g_str_has_prefix(uri, "-") || !g_utf8_validate(uri, -1, NULL)) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                    "'%s' is not a libvirt URI; one looks like qemu:///system", uri);
        return FALSE;
    }
    options->uri = vm_uri_redact(uri, "");
    options->password_dropped = !g_str_equal(uri, options->uri);
    return TRUE;
}

static gboolean operands_set(VmOptions *options, char **operands, GError **error)
{
    static const struct {
        guint min, max;
        const char *usage;
    } wanted[] = {
        [VM_COMMAND_MOUNT] = {2, 2, "vmsnapfs [OPTION...] URI MOUNTPOINT"},
        [VM_COMMAND_HELP] = {0, G_MAXUINT, ""},
        [VM_COMMAND_VERSION] = {0, 0, "vmsnapfs --version"},
        [VM_COMMAND_DUMP_TREE] = {0, 0, "vmsnapfs --dump-tree"},
        [VM_COMMAND_DOCTOR] = {0, 1, "vmsnapfs --doctor [URI]"},
        [VM_COMMAND_RECOVER] = {1, 1, "vmsnapfs --recover MOUNTPOINT"},
    };
    guint n = operands ? g_strv_length(operands) : 0;

    if (n < wanted[options->command].min || n > wanted[options->command].max) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_FAILED, "usage: %s; see --help",
                    wanted[options->command].usage);
        return FALSE;
    }
    if (options->command == VM_COMMAND_RECOVER) {
        options->mountpoint = mountpoint_resolve(operands[0]);
        return TRUE;
    }
    if (options->command == VM_COMMAND_DOCTOR) {
        return uri_set(options, n ? operands[0] : geteuid() == 0 ? "qemu:///system"
                                                                 : "qemu:///session", error);
    }
    if (options->command != VM_COMMAND_MOUNT) {
        return TRUE;
    }
    if (*operands[0] == '/' && strstr(operands[1], ":///")) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_FAILED,
                    "the URI comes first: vmsnapfs %s %s", operands[1], operands[0]);
        return FALSE;
    }
    options->mountpoint = mountpoint_resolve(operands[1]);
    return uri_set(options, operands[0], error);
}

static void directories_complete(VmOptions *options)
{
    gboolean system = geteuid() == 0;

    if (!options->state_dir) {
        options->state_dir = system ? g_strdup("/var/lib/vmsnapfs")
                                    : g_build_filename(g_get_user_state_dir(), "vmsnapfs", NULL);
    }
    if (!options->run_dir) {
        options->run_dir = system ? g_strdup("/run/vmsnapfs")
                                  : g_build_filename(g_get_user_runtime_dir(), "vmsnapfs", NULL);
    }
    if (!options->scratch_dir) {
        options->scratch_dir = g_build_filename(options->state_dir, "scratch", NULL);
    }
}

static gboolean switches_apply(VmOptions *options, Switches *switches, GError **error)
{
    for (char **text = switches->mount_options; text && *text; text++) {
        if (!vm_mountopt_apply(options, *text, error)) {
            return FALSE;
        }
    }
    options->foreground = switches->foreground;
    options->log = g_steal_pointer(&switches->log);
    if (switches->pid_file) {
        options->pid_file = g_canonicalize_filename(switches->pid_file, NULL);
    }
    if (switches->debug_domains || switches->debug) {
        g_free(options->debug);
        options->debug = g_strdup(switches->debug_domains ? switches->debug_domains : "all");
    }
    if (!options->foreground && options->log && g_str_equal(options->log, "stderr")
        && options->command == VM_COMMAND_MOUNT) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
                    "--log=stderr needs -f: in the background there is no stderr");
        return FALSE;
    }
    return TRUE;
}

static VmOptions *options_new(void)
{
    VmOptions *options = g_new0(VmOptions, 1);

    options->command = VM_COMMAND_MOUNT;
    options->mkdir_on = TRUE;
    options->uid = getuid();
    options->gid = getgid();
    options->data_gid = G_MAXUINT32;
    options->scratch_reserve = DEFAULT_SCRATCH_RESERVE;
    options->busy_poll = DEFAULT_BUSY_POLL;
    options->keep_checkpoints = DEFAULT_KEEP_CHECKPOINTS;
    options->kernel = g_string_new(NULL);
    return options;
}

VmOptions *vm_options_parse(int argc, char *const *argv, GError **error)
{
    g_auto(Switches) switches = {0};
    g_auto(GStrv) arguments = arguments_normalize(argc, argv);
    g_autoptr(GOptionContext) context = context_new(&switches);
    g_autoptr(VmOptions) options = options_new();

    if (!g_option_context_parse_strv(context, &arguments, error)
        || !command_set(options, &switches, error)
        || !switches_apply(options, &switches, error)
        || !operands_set(options, switches.operands, error)) {
        return NULL;
    }
    directories_complete(options);
    return g_steal_pointer(&options);
}

void vm_options_free(VmOptions *options)
{
    if (!options) {
        return;
    }
    g_free(options->uri);
    g_free(options->mountpoint);
    g_free(options->debug);
    g_free(options->log);
    g_free(options->pid_file);
    g_free(options->quiesce);
    g_free(options->chain);
    g_free(options->domains);
    g_free(options->scratch_dir);
    g_free(options->files);
    g_free(options->state_dir);
    g_free(options->run_dir);
    g_string_free(options->kernel, TRUE);
    g_free(options);
}
