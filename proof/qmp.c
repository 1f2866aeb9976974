// SPDX-License-Identifier: GPL-2.0
/*
 * QEMU's monitor, through which media are changed (as
 * tools/testing/selftests/block_diskseq/media.c does).
 */
#include <dirent.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qmp.h"

static int port = -1;

static const char *qmp_port(void)
{
	static char path[300];
	char attr[300], name[16];
	struct dirent *entry;
	bool found = false;
	FILE *file;
	DIR *dir = opendir("/sys/class/virtio-ports");

	while (dir && !found && (entry = readdir(dir))) {
		snprintf(attr, sizeof(attr), "/sys/class/virtio-ports/%s/name", entry->d_name);
		file = fopen(attr, "re");
		if (!file)
			continue;
		found = fgets(name, sizeof(name), file) && !strcmp(name, "qmp\n");
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fclose(file);
	}
	if (dir)
		closedir(dir);
	return found ? path : NULL;
}

const char *qmp_missing(void)
{
	return !getenv("DISKSEQ_MEDIA") ? "DISKSEQ_MEDIA is not set" :
	       !qmp_port() ? "no virtio port named qmp" : NULL;
}

void qmp_open(void)
{
	port = open(qmp_port(), O_RDWR | O_CLOEXEC);
	if (port < 0)
		die("QMP: %s", strerror(errno));
	qmp("qmp_capabilities", " ");
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

/* Answers to one that was killed, and QEMU's own events, are passed over. */
bool qmp(const char *command, const char *arguments, ...)
{
	static unsigned int count;
	char line[4096], id[40];
	va_list args;
	int len;

	snprintf(id, sizeof(id), "%d-%u", (int)getpid(), ++count);
	len = snprintf(line, sizeof(line), "{'execute': '%s', 'id': '%s', 'arguments': {",
		       command, id);
	va_start(args, arguments);
	len += vsnprintf(line + len, sizeof(line) - len, arguments, args);
	va_end(args);
	len += snprintf(line + len, sizeof(line) - len, "}}\n");
	if (write(port, line, len) != len)
		die("QMP: %s", strerror(errno));
	do
		read_line(line, sizeof(line));
	while (!strstr(line, id));
	return !strstr(line, "\"error\"");
}

bool qmp_insert(const char *id, char medium)
{
	return qmp("blockdev-change-medium",
		   "'id': '%s', 'filename': '%s/%s-%c', 'format': 'raw', 'force': true",
		   id, getenv("DISKSEQ_MEDIA"), id, medium);
}
