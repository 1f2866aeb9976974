// SPDX-License-Identifier: GPL-2.0
/*
 * Runs a command and tells what the kernel announced of disks meanwhile, a line
 * an event: its action, the device, its number ("-" if it has none), and what
 * it says that has changed. Synthetic events, which are udev's, are left out;
 * with -a they are not.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diskseq.h"

static void tell(const struct uevent *ev)
{
	bool digit = strchr("0123456789", ev->disk[strlen(ev->disk) - 1]);

	printf("%s %s", ev->action, ev->disk);
	if (ev->partno)
		printf("%s%d", digit ? "p" : "", ev->partno);
	if (ev->has_diskseq)
		printf(" %llu", (unsigned long long)ev->diskseq);
	else
		printf(" -");
	printf("%s%s%s\n", ev->media_change ? " media" : "",
	       ev->resize ? " resize" : "", ev->synthetic ? " synthetic" : "");
}

int main(int argc, char **argv)
{
	bool all = argc > 1 && !strcmp(argv[1], "-a");
	struct monitor mon;
	struct uevent ev;
	const char *mark;
	pid_t pid;
	int status;

	argv += 1 + all;
	if (!*argv) {
		fprintf(stderr, "usage: uevents [-a] COMMAND...\n");
		return 2;
	}
	monitor_open(&mon, NULL);
	pid = spawn();
	if (!pid) {
		execvp(*argv, argv);
		die("%s: %s", *argv, strerror(errno));
	}
	status = child_status(pid);
	mark = mark_now();
	while (monitor_next_before(&mon, &ev, mark))
		if (all || !ev.synthetic)
			tell(&ev);
	return status;
}
