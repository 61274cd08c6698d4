/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * def.h - what a row of the tree is: the contract of tree.c and its functions.
 *
 * A node of the tree is one FsDef row.  Generic code walks rows and compares no
 * names; what is particular to a file is in the small functions its row names.
 * Those functions never see a FUSE type, never block, and may run on several
 * threads at once.
 */
#pragma once

#include <glib.h>
#include <sys/types.h>

#include "backend/backend.h"
#include "fs/fs.h"
#include "fs/item.h"

typedef struct FsDef FsDef;

typedef enum {
    FS_KIND_DIR,               /* static rows, and children that `list` gives */
    FS_KIND_ATTR,              /* text made at open by `show` or `fetch` */
    FS_KIND_CONTROL,           /* one write is one command */
    FS_KIND_STREAM,            /* point-in-time data */
    FS_KIND_FEED,              /* events as they come; the one file that blocks */
    FS_KIND_LINK,              /* symbolic link whose text is `target` */
    FS_KIND_GUEST,             /* the guest's files, and the directory they are in: guest.h */
} FsKind;

typedef enum {
    FS_HIDDEN = 1 << 0,        /* opens by name, readdir does not list it */
    FS_SLOW = 1 << 1,          /* the host may need some seconds for its text */
    FS_SECRET = 1 << 2,        /* a STREAM for its owner alone */
    FS_DENSE = 1 << 3,         /* a STREAM without holes, which cp reads by the MiB */
} FsFlags;

/**
 * FsFresh: what a row's answers are made of, as a thing that grows old: before
 * lookup, readdir or the text it is asked for again when it is older than 0.5 s.
 */
typedef struct FsFresh FsFresh;
struct FsFresh {
    gboolean (*is_fresh)(const FsFresh *fresh, Fs *fs, FsItem *item);
    /* The host does not answer: no use to ask. */
    gboolean (*is_stale)(const FsFresh *fresh, Fs *fs, FsItem *item);
    void (*refresh)(const FsFresh *fresh, Fs *fs, FsItem *item, BeRefreshDone done,
                    gpointer user);
    BeObjectKind kind;         /* of a domain's objects: which */
};

/**
 * FsCommand: one parsed line of a control file.
 */
typedef struct {
    GPtrArray *words;          /* of char *, without the verb and the options */
    GHashTable *options;       /* key -> value */
    gboolean async;            /* the last word was "async" */
    struct FsAnswer *answer;   /* see fs_command_answer() */
} FsCommand;

/**
 * fs_command_answer: what a read of the control file gives instead of "ok", once the
 * command has succeeded.  Any thread, before `done`, at most once.
 * @text: (transfer full): ends in a newline
 */
void fs_command_answer(const FsCommand *command, char *text);

/**
 * FsAct: where an action that was started ends.  @done is called once with
 * @user unless the starting function returned NULL.
 */
typedef struct {
    Fs *fs;
    Be *be;
    FsItem *item;              /* the object acted on: a domain, a backup */
    const BeCaller *caller;
    BeDone done;
    gpointer user;
    gboolean *ret_slow;        /* set it to TRUE for what takes minutes: no deadline is set */
} FsAct;

/*
 * An action starts a job and returns its reference.  NULL with @error set: it
 * could not be started; NULL without: it is done already.
 */
typedef BeJob *(*FsMake)(const FsAct *act, const char *name, GError **error);
typedef BeJob *(*FsDrop)(const FsAct *act, GError **error);
typedef BeJob *(*FsRun)(const FsAct *act, const FsCommand *command, GError **error);

/**
 * FsVerb: one verb of a control file; an array ends with an empty row.
 */
typedef struct {
    const char *name;
    guint min_words;
    guint max_words;
    const char *const *keys;   /* options it takes, NULL-terminated; NULL: none */
    const char *usage;         /* one line, begins with the verb */
    FsRun run;
} FsVerb;

/**
 * FsXattrs: collects extended attributes, "user.vmsnapfs." + @name.
 */
typedef void (*FsXattrAdd)(const char *name, const char *value, gpointer user);

struct FsDef {
    const char *name;          /* file name; "<vm>" where `list` gives the names */
    FsKind kind;
    mode_t mode;               /* permission bits, before the umask */
    guint flags;               /* FsFlags */
    const FsFresh *fresh;      /* what must be fresh for it; NULL: nothing */

    /* DIR */
    const FsDef *rows;         /* static children, ends with an empty row */
    const FsDef *child;        /* the row of the children that `list` gives */
    FsListing *(*list)(Fs *fs, FsItem *item);
    FsMake make;               /* mkdir in it */
    FsDrop drop;               /* rmdir of it */
    const char *force;         /* the command that does so under a reader; NULL: none does */

    /* ATTR: exactly one of the two; FALSE with @error: the object is gone */
    gboolean (*show)(Fs *fs, FsItem *item, GString *out, GError **error);
    void (*fetch)(Fs *fs, FsItem *item, BeTextDone done, gpointer user);

    /* CONTROL */
    const FsVerb *verbs;

    /* STREAM: a borrowed reference, valid as long as the item; NULL: not prepared, or,
     * where there is no `prepare`, the object has no such file */
    BeStream *(*stream)(FsItem *item);
    /* STREAM whose size is not known beforehand: has the host find it out */
    void (*prepare)(FsItem *item, BeDone done, gpointer user);

    /* a static row that is not always there; NULL: it is */
    gboolean (*exists)(FsItem *item);

    /* LINK: the text, to be freed, or NULL: there is no such link now */
    char *(*target)(Fs *fs, FsItem *item);

    /* GUEST: of the row that the files are below; borrowed, valid as long as the item */
    BeFiles *(*files)(FsItem *item);

    /* DIR and STREAM: the constants of the object, or NULL */
    void (*xattrs)(FsItem *item, FsXattrAdd add, gpointer user);
};

/**
 * fs_tree_root: the row of the mount's root; see tree.c.
 */
extern const FsDef fs_tree_root;

/**
 * fs_tree_check: holds a table against its own rules: names unique and valid,
 * callbacks that fit the kind, modes that fit the callbacks.
 * @root: &fs_tree_root
 * Returns: FALSE with the path of the first row that breaks one.
 */
gboolean fs_tree_check(const FsDef *root, GError **error);

/**
 * fs_tree_walk: calls @visit for each row with its path as the man page spells
 * it, parents first.
 */
typedef void (*FsTreeVisit)(const FsDef *def, const char *path, gpointer user);
void fs_tree_walk(const FsDef *root, FsTreeVisit visit, gpointer user);
