/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-channel.c - what is said to a guest's agent without libvirt, and what is believed
 * of what comes back: a guest may say anything.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/freeze-channel.h"
#include "backend/xml.h"

#define SYNC "\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": 4711}}\n"
#define FOUND "\xff{\"return\": 4711}\n"

typedef struct {
    int ours;                  /* as the channel's */
    int agents;
} Ends;

static void open_ends(Ends *ends, gconstpointer user G_GNUC_UNUSED)
{
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), ==, 0);
    ends->ours = fds[0];
    ends->agents = fds[1];
}

static void close_ends(Ends *ends, gconstpointer user G_GNUC_UNUSED)
{
    close(ends->ours);
    if (ends->agents >= 0) {
        close(ends->agents);
    }
}

static void agent_says(const Ends *ends, const char *text)
{
    g_assert_cmpint(send(ends->agents, text, strlen(text), 0), ==, (gssize)strlen(text));
}

static void assert_agent_heard(const Ends *ends, const char *text)
{
    char heard[256] = "";

    g_assert_cmpint(recv(ends->agents, heard, sizeof(heard) - 1, 0), >, 0);
    g_assert_cmpstr(heard, ==, text);
}

static gint64 soon(void)
{
    return g_get_monotonic_time() + G_USEC_PER_SEC / 20;
}

static void test_found(Ends *ends, gconstpointer user)
{
    const char *said = user;
    g_autoptr(GError) error = NULL;
    char rest[2];

    g_assert_true(be_channel_send_sync(ends->ours, 4711, &error));
    assert_agent_heard(ends, SYNC);
    agent_says(ends, said);
    g_assert_true(be_channel_sync(ends->ours, 4711, soon(), &error));
    g_assert_no_error(error);
    /* What comes after it is the next answer. */
    g_assert_cmpint(recv(ends->ours, rest, 2, 0), ==, strstr(said, FOUND "x") ? 1 : -1);
}

static void test_not_found(Ends *ends, gconstpointer user)
{
    g_autoptr(GError) error = NULL;

    agent_says(ends, user);
    g_assert_false(be_channel_sync(ends->ours, 4711, soon(), &error));
    g_assert_error(error, BE_ERROR, ETIMEDOUT);
}

static void test_thawed(Ends *ends, gconstpointer user G_GNUC_UNUSED)
{
    g_autoptr(GError) error = NULL;

    agent_says(ends, "{\"return\": 2}\n");
    g_assert_true(be_channel_thaw(ends->ours, soon(), &error));
    g_assert_no_error(error);
    assert_agent_heard(ends, "{\"execute\": \"guest-fsfreeze-thaw\"}\n");
}

static void test_not_thawed(Ends *ends, gconstpointer user)
{
    g_autoptr(GError) error = NULL;

    agent_says(ends, user);
    g_assert_false(be_channel_thaw(ends->ours, soon(), &error));
    g_assert_error(error, BE_ERROR, EIO);
    g_assert_nonnull(strstr(error->message, "the guest agent said: "));
}

static void test_gone(Ends *ends, gconstpointer user G_GNUC_UNUSED)
{
    g_autoptr(GError) error = NULL;

    close(ends->agents);
    ends->agents = -1;
    g_assert_false(be_channel_sync(ends->ours, 4711, soon(), &error));
    g_assert_error(error, BE_ERROR, EHOSTUNREACH);
    g_clear_error(&error);
    g_assert_false(be_channel_thaw(ends->ours, soon(), &error));
    g_assert_error(error, BE_ERROR, EHOSTUNREACH);
}

/* Neither memory nor the stack of a parser is the guest's to exhaust. */
static void test_too_long(Ends *ends, gconstpointer user G_GNUC_UNUSED)
{
    g_autofree char *nested = g_strnfill(8192, '[');
    g_autoptr(GError) error = NULL;

    agent_says(ends, nested);
    g_assert_false(be_channel_sync(ends->ours, 4711, soon(), &error));
    g_assert_error(error, BE_ERROR, EIO);
}

static void add(const char *path, const char *said, void (*test)(Ends *, gconstpointer))
{
    g_test_add(path, Ends, said, open_ends, test, close_ends);
}

#define DOMAIN(alias)                                                                         \
    "<domain type='qemu'><name>a</name><uuid>5e3b0f5a-3c0e-4f5c-9d3f-2b1f0c6a7e11</uuid>"      \
    "<devices><channel type='unix'><source mode='bind' path='/run/agent'/>"                    \
    "<target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/>"               \
    "<alias name='" alias "'/></channel></devices></domain>"

/* The alias becomes part of a command to QEMU. */
static void test_alias(void)
{
    g_autoptr(BeXmlDomain) domain = be_xml_domain_parse(DOMAIN("channel0"), NULL);
    g_autoptr(BeXmlDomain) hostile = be_xml_domain_parse(DOMAIN("channel0&quot;}"), NULL);

    g_assert_false(domain->agent_connected);
    g_assert_cmpstr(domain->agent_alias, ==, "channel0");
    g_assert_cmpstr(domain->agent_socket, ==, "/run/agent");
    g_assert_nonnull(hostile);
    g_assert_null(hostile->agent_alias);
    g_assert_null(hostile->agent_socket);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/channel/alias", test_alias);
    add("/channel/found/at-once", FOUND, test_found);
    add("/channel/found/next-line-stays", FOUND "x", test_found);
    add("/channel/found/after-a-complaint", "{\"error\": \"?\"}\n" FOUND, test_found);
    add("/channel/found/after-half-an-answer", "{\"return\": [1, 2" FOUND, test_found);
    add("/channel/found/after-another-sync", "\xff{\"return\": 4710}\n" FOUND, test_found);
    add("/channel/not-found/without-the-sentinel", "{\"return\": 4711}\n", test_not_found);
    add("/channel/not-found/another-one", "\xff{\"return\": 47110}\n", test_not_found);
    add("/channel/not-found/text", "\xff{\"return\": \"4711\"}\n", test_not_found);
    add("/channel/not-found/null", "\xff{\"return\": null}\n", test_not_found);
    add("/channel/not-found/array", "\xff[4711]\n", test_not_found);
    add("/channel/not-found/half", "\xff{\"return\": 4711}", test_not_found);
    add("/channel/thawed", NULL, test_thawed);
    add("/channel/not-thawed/error", "{\"error\": {\"desc\": \"no\"}}\n", test_not_thawed);
    add("/channel/not-thawed/empty", "\n", test_not_thawed);
    add("/channel/not-thawed/object", "{\"return\": {}}\n", test_not_thawed);
    add("/channel/gone", NULL, test_gone);
    add("/channel/too-long", NULL, test_too_long);
    return g_test_run();
}
