/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * log.c - GLib's log writer; see log.h.
 *
 * Any thread.  A line is one write(2), so lines of several threads do not mix;
 * the lock guards only the choice of where to.  Names come from guests and
 * hosts and may hold anything: what is written is escaped and has no password.
 */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "mountd/options.h"

#define PREFIX "vmsnapfs-"

/*
 * GLib's writer function is one for the whole process, so is this.
 */
static struct {
    GMutex lock;
    int fd;                    /* guarded by lock; -1: the journal */
    gboolean follow;           /* no target of its own; constant after init */
    char **debug;              /* NULL: none; constant after init */
} log_to = {.fd = STDERR_FILENO};

char *vm_log_escape(const char *text)
{
    GString *out = g_string_new(NULL);

    for (const char *at = text; *at;) {
        gunichar c = g_utf8_get_char_validated(at, -1);

        if (c == '\n') {
            g_string_append(out, "\\n");
        } else if (c == '\t') {
            g_string_append(out, "\\t");
        } else if (c >= (gunichar)-2 || c < 0x20 || (c >= 0x7f && c < 0xa0)) {
            g_string_append_printf(out, "\\x%02x", c < 0xa0 ? (guint)c : (guint)(guchar)*at);
        } else {
            g_string_append_unichar(out, c);
        }
        at += c >= (gunichar)-2 ? 1 : g_utf8_skip[(guchar)*at];
    }
    return g_string_free(out, FALSE);
}

static char *text_make_safe(const char *text)
{
    g_autofree char *redacted = vm_uri_redact(text, ":***");

    return vm_log_escape(redacted);
}

static const char *domain_short(const char *domain)
{
    if (!domain) {
        return "main";
    }
    return g_str_has_prefix(domain, PREFIX) ? domain + strlen(PREFIX) : domain;
}

gboolean vm_log_wants_debug(const char *domain)
{
    for (char **wanted = log_to.debug; wanted && *wanted; wanted++) {
        if (g_str_equal(*wanted, "all")
            || g_str_equal(domain_short(*wanted), domain_short(domain))) {
            return TRUE;
        }
    }
    return FALSE;
}

static const char *level_name(GLogLevelFlags level)
{
    if (level & G_LOG_LEVEL_ERROR) {
        return "ERROR";
    }
    if (level & G_LOG_LEVEL_CRITICAL) {
        return "CRITICAL";
    }
    if (level & G_LOG_LEVEL_WARNING) {
        return "WARNING";
    }
    if (level & G_LOG_LEVEL_MESSAGE) {
        return "message";
    }
    return level & G_LOG_LEVEL_INFO ? "info" : "debug";
}

/* syslog's numbers, as GLib gives them to the journal itself. */
static const char *level_priority(GLogLevelFlags level)
{
    if (level & G_LOG_LEVEL_ERROR) {
        return "3";
    }
    if (level & (G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING)) {
        return "4";
    }
    if (level & G_LOG_LEVEL_MESSAGE) {
        return "5";
    }
    return level & G_LOG_LEVEL_INFO ? "6" : "7";
}

static void write_to_journal(GLogLevelFlags level, const char *domain, const char *text)
{
    const GLogField fields[] = {
        {"MESSAGE", text, -1},
        {"PRIORITY", level_priority(level), -1},
        {"GLIB_DOMAIN", domain, -1},
        {"SYSLOG_IDENTIFIER", g_get_prgname() ? g_get_prgname() : "vmsnapfs", -1},
    };

    (void)g_log_writer_journald(level, fields, G_N_ELEMENTS(fields), NULL);
}

static void write_to_fd(int fd, GLogLevelFlags level, const char *domain, const char *text)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_local();
    g_autofree char *time = g_date_time_format(now, "%Y-%m-%d %H:%M:%S.%f");
    g_autofree char *line = g_strdup_printf("%.23s %s[%d] %s %s: %s\n", time, g_get_prgname(),
                                            (int)getpid(), level_name(level), domain, text);

    if (write(fd, line, strlen(line)) < 0) {
        return;                /* nowhere left to say so */
    }
}

static const char *field_find(const GLogField *fields, gsize n, const char *key)
{
    for (gsize i = 0; i < n; i++) {
        if (g_str_equal(fields[i].key, key) && fields[i].length < 0) {
            return fields[i].value;
        }
    }
    return NULL;
}

static GLogWriterOutput log_writer(GLogLevelFlags level, const GLogField *fields, gsize n,
                                   gpointer user G_GNUC_UNUSED)
{
    const char *domain = field_find(fields, n, "GLIB_DOMAIN");
    const char *message = field_find(fields, n, "MESSAGE");
    g_autofree char *text = NULL;
    int fd;

    if (!message || ((level & G_LOG_LEVEL_DEBUG) && !vm_log_wants_debug(domain))) {
        return G_LOG_WRITER_HANDLED;
    }
    text = text_make_safe(message);
    g_mutex_lock(&log_to.lock);
    fd = log_to.fd;
    g_mutex_unlock(&log_to.lock);
    if (fd < 0) {
        write_to_journal(level, domain_short(domain), text);
    } else {
        write_to_fd(fd, level, domain_short(domain), text);
    }
    return G_LOG_WRITER_HANDLED;
}

gboolean vm_log_init(const char *target, const char *debug, GError **error)
{
    log_to.follow = !target;
    log_to.debug = debug ? g_strsplit(debug, ",", -1) : NULL;
    if (target && g_str_equal(target, "journal")) {
        log_to.fd = -1;
    } else if (target && !g_str_equal(target, "stderr")) {
        int fd = open(target, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);

        if (fd < 0) {
            g_set_error(error, G_FILE_ERROR, (int)g_file_error_from_errno(errno),
                        "cannot open the log '%s': %s", target, g_strerror(errno));
            return FALSE;
        }
        log_to.fd = fd;
    }
    g_log_set_writer_func(log_writer, NULL, NULL);
    return TRUE;
}

void vm_log_background(void)
{
    g_mutex_lock(&log_to.lock);
    if (log_to.follow) {
        log_to.fd = -1;
    }
    g_mutex_unlock(&log_to.lock);
}

void vm_complain(const char *format, ...)
{
    g_autofree char *text = NULL;
    g_autofree char *safe = NULL;
    g_autofree char *line = NULL;
    va_list args;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    safe = text_make_safe(text);
    line = g_strdup_printf("%s: %s\n", g_get_prgname(), safe);
    if (write(STDERR_FILENO, line, strlen(line)) < 0) {
        return;                /* nowhere left to say so */
    }
}
