/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * test-options.c - what mountd/ reads: command line, mountinfo, mountd.conf and
 * libvirt's XML, without a mount.
 */
#include <glib.h>
#include <string.h>
#include <unistd.h>

#include "mountd/hosts.h"
#include "mountd/hostxml.h"
#include "mountd/log.h"
#include "mountd/mountopt.h"
#include "mountd/mounts.h"
#include "mountd/options.h"

/* ---- Helpers -------------------------------------------------------------- */

/* @line: arguments separated by '|', without the program's name */
static VmOptions *parse(const char *line, GError **error)
{
    g_autofree char *whole = g_strconcat("vmsnapfs", *line ? "|" : "", line, NULL);
    g_auto(GStrv) argv = g_strsplit(whole, "|", -1);

    return vm_options_parse((int)g_strv_length(argv), argv, error);
}

static VmOptions *parse_good(const char *line)
{
    g_autoptr(GError) error = NULL;
    VmOptions *options = parse(line, &error);

    g_assert_no_error(error);
    g_assert_nonnull(options);
    return options;
}

static void assert_bad(const char *line, const char *fragment)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmOptions) options = parse(line, &error);

    g_assert_null(options);
    g_assert_nonnull(error);
    g_assert_true(error->domain == G_OPTION_ERROR);
    if (!strstr(error->message, fragment)) {
        g_test_message("'%s' does not mention '%s'", error->message, fragment);
        g_test_fail();
    }
}

/* ---- The command line ----------------------------------------------------- */

static void test_defaults(void)
{
    g_autoptr(VmOptions) options = parse_good("qemu:///system|/");

    g_assert_cmpint(options->command, ==, VM_COMMAND_MOUNT);
    g_assert_cmpstr(options->uri, ==, "qemu:///system");
    g_assert_cmpstr(options->mountpoint, ==, "/");
    g_assert_false(options->foreground);
    g_assert_false(options->read_only);
    g_assert_false(options->allow_other);
    g_assert_true(options->mkdir_on);
    g_assert_null(options->debug);
    g_assert_cmpuint(options->uid, ==, getuid());
    g_assert_cmpuint(options->gid, ==, getgid());
    g_assert_cmpuint(options->data_gid, ==, G_MAXUINT32);
    g_assert_cmpuint(options->umask, ==, 0);
    g_assert_cmpuint(options->busy_poll, ==, 100);
    g_assert_cmpuint(options->kernel->len, ==, 0);
    g_assert_true(g_path_is_absolute(options->state_dir));
    g_assert_true(g_path_is_absolute(options->run_dir));
    g_assert_true(g_str_has_prefix(options->scratch_dir, options->state_dir));
}

static void test_switches_anywhere(void)
{
    g_autoptr(VmOptions) options
        = parse_good("qemu:///session|-oro,umask=027|/|-f|--debug=fs,backend|-o|uid=7");

    g_assert_cmpstr(options->uri, ==, "qemu:///session");
    g_assert_true(options->foreground);
    g_assert_true(options->read_only);
    g_assert_cmpstr(options->debug, ==, "fs,backend");
    g_assert_cmpuint(options->umask, ==, 027);
    g_assert_cmpuint(options->uid, ==, 7);
}

static void test_debug_takes_no_operand(void)
{
    g_autoptr(VmOptions) options = parse_good("-d|qemu:///system|/");
    g_autoptr(VmOptions) with = parse_good("--debug|qemu:///system|/|-o|debug");

    g_assert_cmpstr(options->debug, ==, "all");
    g_assert_cmpstr(with->debug, ==, "all");
    g_assert_cmpstr(with->uri, ==, "qemu:///system");
}

static void test_commands(void)
{
    static const struct {
        const char *line;
        VmCommand command;
    } rows[] = {
        {"--help", VM_COMMAND_HELP},           {"--version", VM_COMMAND_VERSION},
        {"--dump-tree", VM_COMMAND_DUMP_TREE}, {"--doctor", VM_COMMAND_DOCTOR},
        {"--recover|/", VM_COMMAND_RECOVER},   {"--help|what|ever|this", VM_COMMAND_HELP},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(VmOptions) options = parse_good(rows[i].line);

        g_assert_cmpint(options->command, ==, rows[i].command);
    }
    assert_bad("--doctor|--version", "only one of");
    assert_bad("--dump-tree|x", "--dump-tree");
    assert_bad("--recover", "--recover MOUNTPOINT");
    assert_bad("", "URI MOUNTPOINT");
    assert_bad("qemu:///system", "URI MOUNTPOINT");
    assert_bad("a|b|c", "URI MOUNTPOINT");
}

static void test_operands_that_are_wrong(void)
{
    assert_bad("/mnt|qemu:///system", "the URI comes first: vmsnapfs qemu:///system /mnt");
    assert_bad("--|-x|/mnt", "not a libvirt URI");
    assert_bad("|/mnt", "not a libvirt URI");
    assert_bad("--nonsense|qemu:///system|/mnt", "--nonsense");
    assert_bad("--log=stderr|qemu:///system|/mnt", "needs -f");
}

static void test_mountpoint_is_canonical(void)
{
    g_autoptr(VmOptions) options = parse_good("test:///default|/proc/self/../../usr//./bin/");
    g_autoptr(VmOptions) missing = parse_good("test:///default|/usr/nowhere/");
    g_autoptr(VmOptions) passed = parse_good("test:///default|/dev/fd/0");

    g_assert_cmpstr(options->mountpoint, ==, "/usr/bin");
    g_assert_cmpstr(missing->mountpoint, ==, "/usr/nowhere");
    g_assert_cmpstr(passed->mountpoint, ==, "/dev/fd/0");
}

/* ---- What stands behind -o ------------------------------------------------ */

static void test_every_value(void)
{
    g_autoptr(VmOptions) options = parse_good(
        "-o|ro,allow_other,uid=root,gid=root,data-gid=64055,domains=web*,mkdir=off,scratch=/s,"
        "scratch-reserve=2G,state-dir=/a//b/,run-dir=/r,action-timeout=90,"
        "idle-end=3600,busy-poll=0,keep-checkpoints=0,recover=end,offline=paused|qemu:///system|/");

    g_assert_true(options->read_only);
    g_assert_true(options->allow_other);
    g_assert_cmpuint(options->uid, ==, 0);
    g_assert_cmpuint(options->gid, ==, 0);
    g_assert_cmpuint(options->data_gid, ==, 64055);
    g_assert_cmpstr(options->domains, ==, "web*");
    g_assert_false(options->mkdir_on);
    g_assert_cmpstr(options->scratch_dir, ==, "/s");
    g_assert_cmpuint(options->scratch_reserve, ==, G_GUINT64_CONSTANT(2) << 30);
    g_assert_cmpstr(options->state_dir, ==, "/a/b");
    g_assert_cmpstr(options->run_dir, ==, "/r");
    g_assert_cmpuint(options->action_timeout, ==, 90);
    g_assert_cmpuint(options->idle_end, ==, 3600);
    g_assert_cmpuint(options->busy_poll, ==, 0);
    g_assert_cmpuint(options->keep_checkpoints, ==, 0);
    g_assert_true(options->recover_end);
    g_assert_true(options->offline_paused);
}

static void test_last_one_counts(void)
{
    g_autoptr(VmOptions) options
        = parse_good("-o|ro,domains=a,mkdir=off|-o|rw,domains=b,mkdir=on|test:///default|/");

    g_assert_false(options->read_only);
    g_assert_cmpstr(options->domains, ==, "b");
    g_assert_true(options->mkdir_on);
}

static void test_words_of_mount_and_fstab(void)
{
    g_autoptr(VmOptions) options = parse_good(
        "-o|rw,dev,suid,defaults,auto,noauto,user,nouser,user=joe,_netdev,nofail,relatime,"
        "x-systemd.automount,x-systemd.idle-timeout=1min,,comment=x,default_permissions|"
        "-o|nodev,nosuid,noexec,exec,noatime,dirsync|test:///default|/");

    g_assert_cmpstr(options->kernel->str, ==, "nodev,nosuid,noexec,exec,noatime,dirsync");
}

static void test_escaped_comma(void)
{
    g_autoptr(VmOptions) options
        = parse_good("-o|domains=a\\,b\\\\c\\d,ro|test:///default|/");

    g_assert_cmpstr(options->domains, ==, "a,b\\c\\d");
    g_assert_true(options->read_only);
}

static void test_wrong_words(void)
{
    static const struct {
        const char *words;
        const char *fragment;
    } rows[] = {
        {"bogus", "unknown mount option 'bogus'"},
        {"alow_other", "did you mean 'allow_other'"},
        {"data_gid=0", "did you mean 'data-gid'"},
        {"ro=1", "takes no value"},
        {"uid", "needs a value: uid=USER"},
        {"uid=", "there is no user ''"},
        {"uid=4294967295", "not of the form"},
        {"uid=-1", "there is no user '-1'"},
        {"uid=0x0", "not of the form"},
        {"gid=no such group", "there is no group 'no such group'"},
        {"umask=8", "not of the form OCTAL"},
        {"umask=1777", "not of the form OCTAL"},
        {"mkdir=maybe", "not of the form on|off"},
        {"scratch=", "not of the form DIR"},
        {"scratch-reserve=1X", "not of the form BYTES"},
        {"scratch-reserve=1KK", "not of the form BYTES"},
        {"scratch-reserve=-1", "not of the form BYTES"},
        {"scratch-reserve=99999999T", "not of the form BYTES"},
        {"scratch-reserve=99999999999999999999", "not of the form BYTES"},
        {"action-timeout=1.5", "not of the form SECONDS"},
        {"action-timeout=999999", "not of the form SECONDS"},
        {"keep-checkpoints=-1", "not of the form N"},
        {"idle-end=604801", "not of the form SECONDS"},
        {"busy-poll=1001", "not of the form MICROSECONDS"},
        {"recover=yes", "not of the form adopt|end"},
        {"offline=yes", "not of the form image|paused"},
        {"auto_unmount", "is refused"},
        {"noatime=1", "unknown mount option 'noatime'"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *line = g_strconcat("-o|", rows[i].words, "|test:///default|/", NULL);

        g_test_message("%s", rows[i].words);
        assert_bad(line, rows[i].fragment);
    }
}

static void test_bytes_have_units(void)
{
    static const struct {
        const char *text;
        guint64 bytes;
    } rows[] = {
        {"0", 0},
        {"512", 512},
        {"1k", 1024},
        {"3M", 3 << 20},
        {"1T", G_GUINT64_CONSTANT(1) << 40},
        {"8388607T", G_GUINT64_CONSTANT(8388607) << 40},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *line
            = g_strconcat("-oscratch-reserve=", rows[i].text, "|test:///default|/", NULL);
        g_autoptr(VmOptions) options = parse_good(line);

        g_assert_cmpuint(options->scratch_reserve, ==, rows[i].bytes);
    }
}

static void test_help_names_every_option(void)
{
    g_autofree char *help = vm_options_help();
    g_autofree const char **names = vm_mountopt_names();

    for (const char **name = names; *name; name++) {
        g_autofree char *line = g_strconcat("\n  ", *name, NULL);

        g_assert_nonnull(strstr(help, line));
    }
    g_assert_nonnull(strstr(help, "--doctor"));
}

/* ---- Secrets and log ------------------------------------------------------ */

/* faults.md row 119 */
static void test_password_is_redacted(void)
{
    static const struct {
        const char *text, *shown, *used;
    } rows[] = {
        {"qemu:///system", "qemu:///system", "qemu:///system"},
        {"esx://root:s3:cr@et@host/?a=b:c@d", "esx://root:***@host/?a=b:c@d",
         "esx://root@host/?a=b:c@d"},
        {"qemu+tcp://h:16509/system", "qemu+tcp://h:16509/system", "qemu+tcp://h:16509/system"},
        {"x://[::1]:7/a@b", "x://[::1]:7/a@b", "x://[::1]:7/a@b"},
        {"cannot reach 'a://u:p@h', b://v:q@i!", "cannot reach 'a://u:***@h', b://v:***@i!",
         "cannot reach 'a://u@h', b://v@i!"},
        {"://:@", "://:***@", "://@"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *shown = vm_uri_redact(rows[i].text, ":***");
        g_autofree char *used = vm_uri_redact(rows[i].text, "");

        g_assert_cmpstr(shown, ==, rows[i].shown);
        g_assert_cmpstr(used, ==, rows[i].used);
    }
}

static void test_password_is_dropped(void)
{
    g_autoptr(VmOptions) options = parse_good("test://me:secret@/default|/");

    g_assert_cmpstr(options->uri, ==, "test://me@/default");
    g_assert_true(options->password_dropped);
}

/* faults.md row 114 */
static void test_log_is_escaped(void)
{
    static const struct {
        const char *text, *escaped;
    } rows[] = {
        {"plain 'web1' \303\244", "plain 'web1' \303\244"},
        {"a\nb\tc\rd", "a\\nb\\tc\\x0dd"},
        {"\033[2J\177", "\\x1b[2J\\x7f"},
        {"\302\233[0m", "\\x9b[0m"},
        {"\377\303", "\\xff\\xc3"},
        {"", ""},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *escaped = vm_log_escape(rows[i].text);

        g_assert_cmpstr(escaped, ==, rows[i].escaped);
    }
}

/* ---- mountinfo ------------------------------------------------------------ */

static const char mountinfo[]
    = "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
      "36 35 98:0 /sub /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw\n"
      "50 27 0:51 / /mnt/a\\040b\\011c\\134d\\012 rw - fuse.vmsnapfs qemu:///system rw\n"
      "51 27 0:52 / /mnt/host rw shared:1 - fuse.vmsnapfs qemu:///old rw\n"
      "53 51 0:53 / /mnt/host rw shared:2 - fuse.vmsnapfs qemu:///new rw\n"
      "52 27 0:52 / /mnt/bind rw - fuse.vmsnapfs qemu:///old rw\n"
      "60 27 0:60 / /mnt/\\0 rw - tmpfs a\\040b rw\n"
      "nonsense\n"
      "70 27 0:70 / /mnt/short rw\n"
      "71 27 0:71 / /mnt/dash rw -\n"
      "x 27 0:72 / /mnt/number rw - tmpfs t rw\n";

static void test_mountinfo_is_unescaped(void)
{
    g_autoptr(GPtrArray) mounts = vm_mounts_parse(mountinfo);
    const VmMount *second = g_ptr_array_index(mounts, 1);
    const VmMount *third = g_ptr_array_index(mounts, 2);
    const VmMount *odd = g_ptr_array_index(mounts, 6);

    g_assert_cmpuint(mounts->len, ==, 7);
    g_assert_cmpuint(second->id, ==, 36);
    g_assert_cmpuint(second->parent, ==, 35);
    g_assert_cmpstr(second->device, ==, "98:0");
    g_assert_cmpstr(second->root, ==, "/sub");
    g_assert_cmpstr(second->fstype, ==, "ext3");
    g_assert_cmpstr(second->source, ==, "/dev/root");
    g_assert_cmpstr(third->mountpoint, ==, "/mnt/a b\tc\\d\n");
    g_assert_cmpstr(third->fstype, ==, VM_FSTYPE);
    g_assert_cmpstr(odd->mountpoint, ==, "/mnt/\\0");
    g_assert_cmpstr(odd->source, ==, "a b");
}

static void test_uppermost_mount(void)
{
    g_autoptr(GPtrArray) mounts = vm_mounts_parse(mountinfo);

    g_assert_cmpstr(vm_mounts_at(mounts, "/mnt/host")->source, ==, "qemu:///new");
    g_assert_cmpstr(vm_mounts_at(mounts, "/mnt/bind")->device, ==, "0:52");
    g_assert_null(vm_mounts_at(mounts, "/mnt"));
}

static void test_empty_mountinfo(void)
{
    g_autoptr(GPtrArray) mounts = vm_mounts_parse("");
    g_autoptr(GPtrArray) real = vm_mounts_read(NULL);

    g_assert_cmpuint(mounts->len, ==, 0);
    g_assert_nonnull(real);
    g_assert_nonnull(vm_mounts_at(real, "/proc"));
}

/* ---- mountd.conf ---------------------------------------------------------- */

static void test_hosts(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) hosts = vm_hosts_parse("# comment\n"
                                                "[host local]\n"
                                                "uri=qemu:///system\n"
                                                "mountpoint=/mnt//a/\n"
                                                "\n"
                                                "[host node-2.x]\n"
                                                "uri = qemu+ssh://me:secret@node2/system\n"
                                                "mountpoint = /mnt/b c\n"
                                                "options = ro,domains=a\\,b\n",
                                                &error);
    const VmHost *first;
    const VmHost *second;

    g_assert_no_error(error);
    g_assert_cmpuint(hosts->len, ==, 2);
    first = g_ptr_array_index(hosts, 0);
    second = g_ptr_array_index(hosts, 1);
    g_assert_cmpstr(first->name, ==, "local");
    g_assert_cmpstr(first->mountpoint, ==, "/mnt/a");
    g_assert_null(first->options);
    g_assert_cmpstr(second->name, ==, "node-2.x");
    g_assert_cmpstr(second->uri, ==, "qemu+ssh://me@node2/system");
    g_assert_cmpstr(second->mountpoint, ==, "/mnt/b c");
    g_assert_cmpstr(second->options, ==, "ro,domains=a\\,b");
    g_assert_true(vm_host_equal(first, first));
    g_assert_false(vm_host_equal(first, second));
}

#define HOST(name, more) "[host " name "]\nuri=test:///default\nmountpoint=/" name "\n" more "\n"

static void test_wrong_hosts(void)
{
    static const struct {
        const char *text, *fragment;
    } rows[] = {
        {"[global]\n", "[global]: unknown group"},
        {HOST("a", "") HOST("a", ""), "[host a] is there twice"},
        {HOST("a", "mountopts=ro"), "[host a]: unknown key 'mountopts'"},
        {HOST("a", "options=bogus"), "[host a]: unknown mount option 'bogus'"},
        {HOST("a", "options=auto_unmount"), "is refused"},
        {HOST("a", "") HOST("b", "mountpoint=/a/"), "[host b]: its name or mountpoint"},
        {"[host a]\nuri=x:///\nmountpoint=relative\n", "not an absolute path"},
        {"[host a]\nuri=x:///\n", "mountpoint= is missing"},
        {"[host a]\nmountpoint=/a\n", "uri= is missing"},
        {"[host a]\nuri=\nmountpoint=/a\n", "not a libvirt URI"},
        {"[host a/b]\nuri=x:///\nmountpoint=/a\n", "a host's name"},
        {"uri=x\n", "group"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GPtrArray) hosts = vm_hosts_parse(rows[i].text, &error);

        g_assert_null(hosts);
        g_assert_nonnull(error);
        g_test_message("%s", error->message);
        g_assert_nonnull(strstr(error->message, rows[i].fragment));
    }
}

/* ---- libvirt's XML -------------------------------------------------------- */

static const char capabilities[]
    = "<capabilities><host><cpu><arch>x86_64</arch><model>EPYC</model></cpu>"
      "<secmodel><model>apparmor</model><doi>0</doi></secmodel>"
      "<secmodel><model>dac</model><doi>0</doi>"
      "<baselabel type='qemu'>+64055:+107</baselabel></secmodel></host>"
      "<guest><arch name='i686'><emulator>/bin/qemu-system-i386</emulator></arch></guest>"
      "<guest><arch name='x86_64'><emulator>/bin/qemu-system-x86_64</emulator>"
      "<machine>q35</machine></arch></guest></capabilities>";

static void test_capabilities(void)
{
    g_autoptr(VmHostInfo) info = vm_host_info_parse(capabilities);

    g_assert_cmpstr(info->arch, ==, "x86_64");
    g_assert_cmpstr(info->emulator, ==, "/bin/qemu-system-x86_64");
    g_assert_true(info->apparmor);
    g_assert_false(info->selinux);
    g_assert_true(info->has_qemu_user);
    g_assert_cmpuint(info->qemu_uid, ==, 64055);
    g_assert_cmpuint(info->qemu_gid, ==, 107);
}

static void test_capabilities_cut_off(void)
{
    for (size_t length = 0; length < strlen(capabilities); length++) {
        g_autofree char *text = g_strndup(capabilities, length);
        g_autoptr(VmHostInfo) info = vm_host_info_parse(text);

        g_assert_nonnull(info);
    }
}

static void test_agent(void)
{
    static const char *const head = "<domain><devices><channel type='unix'>";
    static const char *const tail = "</channel></devices></domain>";
    static const struct {
        const char *target;
        VmAgent agent;
    } rows[] = {
        {"<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>",
         VM_AGENT_CONNECTED},
        {"<target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/>",
         VM_AGENT_DISCONNECTED},
        {"<target type='virtio' name='org.qemu.guest_agent.0'/>", VM_AGENT_DISCONNECTED},
        {"<target type='virtio' name='com.redhat.spice.0' state='connected'/>", VM_AGENT_NONE},
        {"", VM_AGENT_NONE},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *xml = g_strconcat(head, rows[i].target, tail, NULL);

        g_assert_cmpint(vm_agent_parse(xml), ==, rows[i].agent);
    }
    g_assert_cmpint(vm_agent_parse("no XML"), ==, VM_AGENT_NONE);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/options/defaults", test_defaults);
    g_test_add_func("/options/switches-anywhere", test_switches_anywhere);
    g_test_add_func("/options/debug-takes-no-operand", test_debug_takes_no_operand);
    g_test_add_func("/options/commands", test_commands);
    g_test_add_func("/options/wrong-operands", test_operands_that_are_wrong);
    g_test_add_func("/options/mountpoint-is-canonical", test_mountpoint_is_canonical);
    g_test_add_func("/mountopt/every-value", test_every_value);
    g_test_add_func("/mountopt/last-one-counts", test_last_one_counts);
    g_test_add_func("/mountopt/words-of-mount-and-fstab", test_words_of_mount_and_fstab);
    g_test_add_func("/mountopt/escaped-comma", test_escaped_comma);
    g_test_add_func("/mountopt/wrong-words", test_wrong_words);
    g_test_add_func("/mountopt/bytes-have-units", test_bytes_have_units);
    g_test_add_func("/mountopt/help-names-every-option", test_help_names_every_option);
    g_test_add_func("/log/password-is-redacted", test_password_is_redacted);
    g_test_add_func("/log/password-is-dropped", test_password_is_dropped);
    g_test_add_func("/log/escape", test_log_is_escaped);
    g_test_add_func("/mounts/unescape", test_mountinfo_is_unescaped);
    g_test_add_func("/mounts/uppermost", test_uppermost_mount);
    g_test_add_func("/mounts/empty", test_empty_mountinfo);
    g_test_add_func("/hosts/good", test_hosts);
    g_test_add_func("/hosts/wrong", test_wrong_hosts);
    g_test_add_func("/hostxml/capabilities", test_capabilities);
    g_test_add_func("/hostxml/capabilities-cut-off", test_capabilities_cut_off);
    g_test_add_func("/hostxml/agent", test_agent);
    return g_test_run();
}
