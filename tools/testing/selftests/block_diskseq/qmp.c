// SPDX-License-Identifier: GPL-2.0
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "diskseq.h"
#include "qmp.h"

static int port = -1;

/* The path of the virtio port with the monitor, or NULL. */
static const char *qmp_port(void)
{
	static char path[300];
	char name[16], attr[300];
	struct dirent *entry;
	const char *found = NULL;
	FILE *file;
	DIR *dir;

	dir = opendir("/sys/class/virtio-ports");
	if (!dir)
		return NULL;
	while (!found && (entry = readdir(dir))) {
		snprintf(attr, sizeof(attr), "/sys/class/virtio-ports/%s/name",
			 entry->d_name);
		file = fopen(attr, "re");
		if (!file)
			continue;
		if (fgets(name, sizeof(name), file) && !strcmp(name, "qmp\n")) {
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			found = path;
		}
		fclose(file);
	}
	closedir(dir);
	return found;
}

const char *qmp_missing(void)
{
	if (!getenv("DISKSEQ_MEDIA"))
		return "nobody to change the medium: DISKSEQ_MEDIA not set";
	if (!qmp_port())
		return "nobody to change the medium: no virtio port named qmp";
	return NULL;
}

static void read_line(char *line, size_t size)
{
	struct pollfd pfd = { .fd = port, .events = POLLIN };
	size_t len = 0;

	while (len < size - 1) {
		if (poll(&pfd, 1, limit_ms()) != 1 || read(port, line + len, 1) != 1)
			die("QMP: no answer");
		if (line[len] == '\n')
			break;
		len++;
	}
	line[len] = '\0';
}

/*
 * Have QEMU do something. It takes single quotes for double ones. What arrives besides
 * the answer, which has the id of the command, is of no interest: the greeting, QEMU's
 * own events, answers to an earlier process.
 */
static bool __printf(2, 3) qmp(const char *command, const char *arguments, ...)
{
	static unsigned int count;
	char line[4096], id[40];
	va_list args;
	int len;

	snprintf(id, sizeof(id), "%d-%u", (int)getpid(), ++count);
	len = snprintf(line, sizeof(line),
		       "{'execute': '%s', 'id': '%s', 'arguments': {", command, id);
	va_start(args, arguments);
	len += vsnprintf(line + len, sizeof(line) - len, arguments, args);
	va_end(args);
	len += snprintf(line + len, sizeof(line) - len, "}}\n");
	if (write(port, line, len) != len)
		die("QMP: %s", strerror(errno));
	do
		read_line(line, sizeof(line));
	while (!strstr(line, id));
	if (!strstr(line, "\"error\""))
		return true;
	if (strcmp(command, "qmp_capabilities"))
		fprintf(stderr, "# %s: %s\n", command, line);
	return false;
}

void qmp_open(void)
{
	const char *path = qmp_port();

	port = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (port < 0)
		die("QMP: %s", strerror(errno));
	/* refused by a monitor that an earlier process has told so */
	qmp("qmp_capabilities", " ");
}

void qmp_close(void)
{
	close(port);
	port = -1;
}

bool qmp_insert(const char *id, char medium)
{
	return qmp("blockdev-change-medium",
		   "'id': '%s', 'filename': '%s/%s-%c', 'format': 'raw', 'force': true",
		   id, getenv("DISKSEQ_MEDIA"), id, medium);
}

bool qmp_eject(const char *id)
{
	return qmp("eject", "'id': '%s', 'force': true", id);
}

/* The file may still be the medium of a stick that was pulled. */
bool qmp_plug_stick(char medium)
{
	static unsigned int count;
	char node[32];

	snprintf(node, sizeof(node), "stick-%d-%u", (int)getpid(), ++count);
	return qmp("blockdev-add",
		   "'driver': 'raw', 'node-name': '%s', 'file': "
		   "{'driver': 'file', 'locking': 'off', 'filename': '%s/stick-%c'}",
		   node, getenv("DISKSEQ_MEDIA"), medium) &&
	       qmp("device_add", "'driver': 'usb-bot', 'id': 'stickbus'") &&
	       qmp("device_add",
		   "'driver': 'scsi-hd', 'id': 'stick', 'bus': 'stickbus.0', "
		   "'scsi-id': 0, 'lun': 0, 'removable': true, 'drive': '%s'", node) &&
	       qmp("qom-set",
		   "'path': '/machine/peripheral/stickbus', 'property': 'attached', 'value': true");
}

bool qmp_pull_stick(void)
{
	return qmp("device_del", "'id': 'stickbus'");
}
