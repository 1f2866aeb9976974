// SPDX-License-Identifier: GPL-2.0
/*
 * The changes to an attached loop device that no program of util-linux makes:
 * another file (LOOP_CHANGE_FD), another offset (LOOP_SET_STATUS64).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "diskseq.h"

int main(int argc, char **argv)
{
	struct loop_info64 info;
	int loop, file;

	if (argc != 4 || (strcmp(argv[2], "file") && strcmp(argv[2], "offset"))) {
		fprintf(stderr, "usage: change LOOP file FILE\n"
			"       change LOOP offset BYTES\n");
		return 2;
	}
	loop = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (loop < 0)
		die("%s: %s", argv[1], strerror(errno));
	if (!strcmp(argv[2], "file")) {
		file = open(argv[3], O_RDONLY | O_CLOEXEC);
		if (file < 0)
			die("%s: %s", argv[3], strerror(errno));
		if (ioctl(loop, LOOP_CHANGE_FD, file))
			die("LOOP_CHANGE_FD: %s", strerror(errno));
	} else {
		if (ioctl(loop, LOOP_GET_STATUS64, &info))
			die("LOOP_GET_STATUS64: %s", strerror(errno));
		info.lo_offset = strtoull(argv[3], NULL, 0);
		/* who has read through the page cache may make this wait */
		while (ioctl(loop, LOOP_SET_STATUS64, &info))
			if (errno != EAGAIN)
				die("LOOP_SET_STATUS64: %s", strerror(errno));
	}
	return 0;
}
