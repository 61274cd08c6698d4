/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * options.h - what the command line of vmsnapfs asks for.
 *
 * Pure but for the user and group database and the environment; called before
 * the first thread exists.  Errors are in the domain G_OPTION_ERROR.
 */
#pragma once

#include <glib.h>
#include <sys/types.h>

/* A mount point that is an open /dev/fuse (fuse_session_mount() knows it too). */
#define VM_PASSED_FUSE "/dev/fd/"

typedef enum {
    VM_COMMAND_MOUNT,
    VM_COMMAND_HELP,
    VM_COMMAND_VERSION,
    VM_COMMAND_DUMP_TREE,
    VM_COMMAND_DOCTOR,
    VM_COMMAND_RECOVER,
} VmCommand;

/**
 * VmOptions: the command line, checked and completed: after a successful parse
 * every path is absolute and every directory has its default.
 */
typedef struct {
    VmCommand command;
    char *uri;                 /* never with a password */
    gboolean password_dropped; /* the URI came with one */
    char *mountpoint;          /* canonical; NULL where the command needs none */
    gboolean foreground;
    char *debug;               /* log domains, comma separated; "all"; NULL: none */
    char *log;                 /* "stderr", "journal", a file; NULL: as fits */
    char *pid_file;            /* or NULL */

    /* -o; one row of the table in mountopt.c for each */
    gboolean read_only;
    gboolean allow_other;
    gboolean mkdir_on;
    guint32 uid;
    guint32 gid;
    guint32 data_gid;          /* G_MAXUINT32: the same as gid */
    guint32 umask;
    guint32 action_timeout;    /* seconds; 0: the file system's default */
    guint32 appliances;        /* 0: the backend's default */
    guint32 appliance_idle;    /* seconds; 0: the backend's default */
    gboolean links_raw;
    char *files;               /* "hidden", "listed", "off"; NULL: hidden */
    guint64 scratch_reserve;
    guint32 idle_end;          /* seconds; 0: never */
    guint32 busy_poll;         /* microseconds; 0: never */
    guint32 keep_checkpoints;  /* of each chain; 0: all */
    gboolean recover_end;
    gboolean offline_paused;
    gboolean checkpoints_off;
    char *chain;               /* NULL: the default */
    char *quiesce;             /* "try", "require", "off"; NULL: the default */
    char *domains;             /* glob, or NULL: all */
    char *scratch_dir;
    char *state_dir;
    char *run_dir;
    GString *kernel;           /* comma separated, possibly empty */
} VmOptions;

/**
 * vm_options_parse: reads a command line.
 * @argv: as main() has it, with the program name; not changed
 *
 * Returns: the options, or NULL with a sentence that names the wrong word.
 */
VmOptions *vm_options_parse(int argc, char *const *argv, GError **error);

void vm_options_free(VmOptions *options);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmOptions, vm_options_free)

/**
 * vm_options_help: Returns: the text of --help; free with g_free().
 */
char *vm_options_help(void);

/**
 * vm_uri_redact: replaces the password of each URI in a text.
 * @text: a URI, or any text that may have some in it
 * @replacement: what stands for ":password" afterwards, ":***" or ""
 *
 * Returns: a new string; free with g_free().
 */
char *vm_uri_redact(const char *text, const char *replacement);
