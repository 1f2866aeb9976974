// SPDX-License-Identifier: GPL-2.0
/*
 * Writes a line to a file again and again, every 5 ms, until it is killed: more often than a
 * shell can, and not so often that a command that the line makes fail never succeeds.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "diskseq.h"

int main(int argc, char **argv)
{
	int fd;

	if (argc != 3) {
		fprintf(stderr, "usage: repeat LINE FILE\n");
		return 2;
	}
	fd = open(argv[2], O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", argv[2], strerror(errno));
	while (write(fd, argv[1], strlen(argv[1])) >= 0)
		poll(NULL, 0, 5);
	die("%s: %s", argv[2], strerror(errno));
}
