/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * hostxml.c - reads capabilities and domain XML; see hostxml.h.
 *
 * Pure functions: any thread.
 */
#include "hostxml.h"

#include <stdlib.h>
#include <string.h>

void vm_host_info_free(VmHostInfo *info)
{
    if (!info) {
        return;
    }
    g_free(info->emulator);
    g_free(info->arch);
    g_free(info);
}

/* What has been read of the element we are in. */
typedef struct {
    VmHostInfo *info;
    char *model;               /* of the <secmodel> */
    char *guest_arch;          /* of the <guest> */
    gboolean native_emulator;
    gboolean label_wanted;     /* in the <baselabel> of a QEMU process */
} CapabilitiesParse;

static gboolean parent_is(GMarkupParseContext *context, const char *name)
{
    const GSList *stack = g_markup_parse_context_get_element_stack(context);

    return stack && stack->next && g_str_equal(stack->next->data, name);
}

static const char *attribute(const char **names, const char **values, const char *name)
{
    for (; *names; names++, values++) {
        if (g_str_equal(*names, name)) {
            return *values;
        }
    }
    return NULL;
}

static void capabilities_start(GMarkupParseContext *context, const char *element,
                               const char **names, const char **values, gpointer user,
                               GError **error G_GNUC_UNUSED)
{
    CapabilitiesParse *parse = user;

    if (g_str_equal(element, "arch") && parent_is(context, "guest")) {
        g_free(parse->guest_arch);
        parse->guest_arch = g_strdup(attribute(names, values, "name"));
    } else if (g_str_equal(element, "baselabel")) {
        const char *type = attribute(names, values, "type");

        parse->label_wanted = g_strcmp0(type, "kvm") == 0 || g_strcmp0(type, "qemu") == 0;
    }
}

static void secmodel_seen(CapabilitiesParse *parse, const char *model)
{
    g_free(parse->model);
    parse->model = g_strdup(model);
    parse->info->apparmor = parse->info->apparmor || g_str_equal(model, "apparmor");
    parse->info->selinux = parse->info->selinux || g_str_equal(model, "selinux");
}

/* DAC labels are "+64055:+64055". */
static void label_seen(CapabilitiesParse *parse, const char *label)
{
    VmHostInfo *info = parse->info;
    char *end = NULL;

    if (!parse->label_wanted || g_strcmp0(parse->model, "dac") != 0 || *label != '+') {
        return;
    }
    info->qemu_uid = (guint)strtoul(label + 1, &end, 10);
    if (end[0] == ':' && end[1] == '+') {
        info->qemu_gid = (guint)strtoul(end + 2, &end, 10);
        info->has_qemu_user = *end == '\0';
    }
}

static void emulator_seen(CapabilitiesParse *parse, const char *path)
{
    gboolean native = g_strcmp0(parse->guest_arch, parse->info->arch) == 0;

    if (!parse->info->emulator || (native && !parse->native_emulator)) {
        g_free(parse->info->emulator);
        parse->info->emulator = g_strdup(path);
        parse->native_emulator = native;
    }
}

static void capabilities_text(GMarkupParseContext *context, const char *text, gsize length,
                              gpointer user, GError **error G_GNUC_UNUSED)
{
    CapabilitiesParse *parse = user;
    const char *element = g_markup_parse_context_get_element(context);
    g_autofree char *value = g_strstrip(g_strndup(text, length));

    if (g_str_equal(element, "arch") && parent_is(context, "cpu") && !parse->info->arch) {
        parse->info->arch = g_strdup(value);
    } else if (g_str_equal(element, "model") && parent_is(context, "secmodel")) {
        secmodel_seen(parse, value);
    } else if (g_str_equal(element, "baselabel")) {
        label_seen(parse, value);
    } else if (g_str_equal(element, "emulator")) {
        emulator_seen(parse, value);
    }
}

VmHostInfo *vm_host_info_parse(const char *capabilities)
{
    static const GMarkupParser parser = {.start_element = capabilities_start,
                                         .text = capabilities_text};
    CapabilitiesParse parse = {.info = g_new0(VmHostInfo, 1)};
    GMarkupParseContext *context = g_markup_parse_context_new(&parser, 0, &parse, NULL);

    (void)g_markup_parse_context_parse(context, capabilities, -1, NULL);
    g_markup_parse_context_free(context);
    g_free(parse.model);
    g_free(parse.guest_arch);
    return parse.info;
}

static void domain_start(GMarkupParseContext *context, const char *element, const char **names,
                         const char **values, gpointer user, GError **error G_GNUC_UNUSED)
{
    VmAgent *agent = user;

    if (!g_str_equal(element, "target") || !parent_is(context, "channel")
        || g_strcmp0(attribute(names, values, "name"), "org.qemu.guest_agent.0") != 0) {
        return;
    }
    *agent = g_strcmp0(attribute(names, values, "state"), "connected") == 0
                 ? VM_AGENT_CONNECTED
                 : VM_AGENT_DISCONNECTED;
}

VmAgent vm_agent_parse(const char *domain_xml)
{
    static const GMarkupParser parser = {.start_element = domain_start};
    VmAgent agent = VM_AGENT_NONE;
    GMarkupParseContext *context = g_markup_parse_context_new(&parser, 0, &agent, NULL);

    (void)g_markup_parse_context_parse(context, domain_xml, -1, NULL);
    g_markup_parse_context_free(context);
    return agent;
}
