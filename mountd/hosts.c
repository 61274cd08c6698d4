/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * hosts.c - reads and checks mountd.conf; see hosts.h.
 *
 * Everything is checked here, the mount options too: a fault is to be told when
 * the file is read, not by a process that is started again and again.
 * Main thread.
 */
#include "hosts.h"

#include <string.h>

#include "mountd/mountopt.h"
#include "mountd/options.h"

#define GROUP_PREFIX "host "
#define NAME_CHARS G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "._-"

void vm_host_free(VmHost *host)
{
    if (!host) {
        return;
    }
    g_free(host->name);
    g_free(host->uri);
    g_free(host->mountpoint);
    g_free(host->options);
    g_free(host);
}

gboolean vm_host_equal(const VmHost *a, const VmHost *b)
{
    return g_str_equal(a->uri, b->uri) && g_str_equal(a->mountpoint, b->mountpoint)
           && g_strcmp0(a->options, b->options) == 0;
}

static gboolean G_GNUC_PRINTF(3, 4)
    fault(GError **error, const char *group, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE, "[%s]: %s", group, text);
    return FALSE;
}

static gboolean keys_check(GKeyFile *file, const char *group, GError **error)
{
    static const char *const known[] = {"uri", "mountpoint", "options", NULL};
    g_auto(GStrv) keys = g_key_file_get_keys(file, group, NULL, error);

    for (char **key = keys; key && *key; key++) {
        if (!g_strv_contains(known, *key)) {
            return fault(error, group, "unknown key '%s'; known are uri, mountpoint, options",
                         *key);
        }
    }
    return keys != NULL;
}

static gboolean options_check(const VmHost *host, const char *group, GError **error)
{
    const char *const argv[] = {"vmsnapfs", "-o", host->options ? host->options : "", "--",
                                host->uri, host->mountpoint, NULL};
    g_autoptr(GError) reason = NULL;
    g_autoptr(VmOptions) options
        = vm_options_parse(G_N_ELEMENTS(argv) - 1, (char *const *)argv, &reason);

    return options ? TRUE : fault(error, group, "%s", reason->message);
}

static gboolean host_check(const VmHost *host, const char *group, GError **error)
{
    if (!*host->name || strspn(host->name, NAME_CHARS) != strlen(host->name)) {
        return fault(error, group, "a host's name has letters, digits, '.', '_' and '-' only");
    }
    if (!host->uri) {
        return fault(error, group, "uri= is missing");
    }
    if (!host->mountpoint || !g_path_is_absolute(host->mountpoint)) {
        return fault(error, group, "mountpoint= is missing or not an absolute path");
    }
    return options_check(host, group, error);
}

static VmHost *host_read(GKeyFile *file, const char *group, GError **error)
{
    g_autoptr(VmHost) host = NULL;
    g_autofree char *uri = NULL;
    g_autofree char *mountpoint = NULL;

    if (!g_str_has_prefix(group, GROUP_PREFIX)) {
        (void)fault(error, group, "unknown group; a host is [host NAME]");
        return NULL;
    }
    if (!keys_check(file, group, error)) {
        return NULL;
    }
    host = g_new0(VmHost, 1);
    host->name = g_strstrip(g_strdup(group + strlen(GROUP_PREFIX)));
    uri = g_key_file_get_string(file, group, "uri", NULL);
    host->uri = uri ? vm_uri_redact(uri, "") : NULL;
    mountpoint = g_key_file_get_string(file, group, "mountpoint", NULL);
    host->mountpoint = mountpoint && g_path_is_absolute(mountpoint)
                           ? g_canonicalize_filename(mountpoint, NULL)
                           : g_strdup(mountpoint);
    /* Not g_key_file_get_string(): its backslashes are not those of -o. */
    host->options = g_key_file_get_value(file, group, "options", NULL);
    return host_check(host, group, error) ? g_steal_pointer(&host) : NULL;
}

static gboolean hosts_add(GPtrArray *hosts, VmHost *host, const char *group, GError **error)
{
    for (guint i = 0; i < hosts->len; i++) {
        const VmHost *other = g_ptr_array_index(hosts, i);

        if (g_str_equal(other->name, host->name)
            || g_str_equal(other->mountpoint, host->mountpoint)) {
            (void)fault(error, group, "its name or mountpoint is that of [host %s] already",
                        other->name);
            vm_host_free(host);
            return FALSE;
        }
    }
    g_ptr_array_add(hosts, host);
    return TRUE;
}

/* GKeyFile would join two groups of one name and take the last of two keys. */
static gboolean groups_are_unique(const char *text, GError **error)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    for (char **line = lines; *line; line++) {
        g_strstrip(*line);
        if (**line == '[' && !g_hash_table_add(seen, g_strdup(*line))) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_PARSE, "%s is there twice",
                        *line);
            return FALSE;
        }
    }
    return TRUE;
}

GPtrArray *vm_hosts_parse(const char *text, GError **error)
{
    g_autoptr(GKeyFile) file = g_key_file_new();
    g_autoptr(GPtrArray) hosts = g_ptr_array_new_with_free_func((GDestroyNotify)vm_host_free);
    g_auto(GStrv) groups = NULL;

    if (!groups_are_unique(text, error)
        || !g_key_file_load_from_data(file, text, strlen(text), G_KEY_FILE_NONE, error)) {
        return NULL;
    }
    groups = g_key_file_get_groups(file, NULL);
    for (char **group = groups; *group; group++) {
        VmHost *host = host_read(file, *group, error);

        if (!host || !hosts_add(hosts, host, *group, error)) {
            return NULL;
        }
    }
    return g_steal_pointer(&hosts);
}

GPtrArray *vm_hosts_load(const char *path, GError **error)
{
    g_autofree char *text = NULL;
    GPtrArray *hosts;

    if (!g_file_get_contents(path, &text, NULL, error)) {
        return NULL;
    }
    hosts = vm_hosts_parse(text, error);
    if (!hosts) {
        g_prefix_error(error, "%s: ", path);
    }
    return hosts;
}
