// SPDX-License-Identifier: GPL-2.0
/*
 * What no program of util-linux does to a loop device. To an attached one: another
 * file (LOOP_CHANGE_FD), another offset, a partition scan (LOOP_SET_STATUS64). To
 * a free one: to attach it without a partition scan, by one of the two ioctls.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "diskseq.h"

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

static void get_status(int loop, struct loop_info64 *info)
{
	if (ioctl(loop, LOOP_GET_STATUS64, info))
		die("LOOP_GET_STATUS64: %s", strerror(errno));
}

static void set_status(int loop, const struct loop_info64 *info)
{
	/* who has read through the page cache may make this wait */
	while (ioctl(loop, LOOP_SET_STATUS64, info))
		if (errno != EAGAIN)
			die("LOOP_SET_STATUS64: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	struct loop_config config = { };
	const char *what = argc == 4 ? argv[2] : argc == 3 ? "partscan" : "";
	struct loop_info64 info;
	int loop;

	if (!strcmp(what, "partscan") ? strcmp(argv[2], what) :
	    strcmp(what, "file") && strcmp(what, "offset") &&
	    strcmp(what, "configure") && strcmp(what, "set")) {
		fprintf(stderr, "usage: change LOOP file FILE\n"
			"       change LOOP offset BYTES\n"
			"       change LOOP partscan\n"
			"       change LOOP configure|set FILE\n");
		return 2;
	}
	loop = open_file(argv[1]);
	if (!strcmp(what, "file")) {
		if (ioctl(loop, LOOP_CHANGE_FD, open_file(argv[3])))
			die("LOOP_CHANGE_FD: %s", strerror(errno));
	} else if (!strcmp(what, "configure")) {
		config.fd = open_file(argv[3]);
		if (ioctl(loop, LOOP_CONFIGURE, &config))
			die("LOOP_CONFIGURE: %s", strerror(errno));
	} else if (!strcmp(what, "set")) {
		if (ioctl(loop, LOOP_SET_FD, open_file(argv[3])))
			die("LOOP_SET_FD: %s", strerror(errno));
	} else {
		get_status(loop, &info);
		if (!strcmp(what, "offset"))
			info.lo_offset = strtoull(argv[3], NULL, 0);
		else
			info.lo_flags |= LO_FLAGS_PARTSCAN;
		set_status(loop, &info);
	}
	return 0;
}
