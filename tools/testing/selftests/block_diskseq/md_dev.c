// SPDX-License-Identifier: GPL-2.0
/*
 * Steps of the assembly of an md array.
 */
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <linux/major.h>
#include <linux/raid/md_u.h>

#include "diskseq.h"
#include "md_dev.h"

/* of what mdu_array_info_t and mdu_disk_info_t call state */
#define ARRAY_CLEAN		0x1
#define DISK_ACTIVE		0x2
#define DISK_IN_SYNC		0x4

#define CHUNK_BYTES		(64 << 10)

int md_set_info(int fd, int level, int disks)
{
	mdu_array_info_t info = {
		.minor_version = 90,
		.level = level,
		.size = level == 1 ? IMAGE_BYTES / 1024 : 0,
		.nr_disks = disks,
		.raid_disks = disks,
		.not_persistent = 1,
		.state = ARRAY_CLEAN,
		.active_disks = disks,
		.working_disks = disks,
		.chunk_size = level == 1 ? 0 : CHUNK_BYTES,
	};

	return ioctl(fd, SET_ARRAY_INFO, &info) ? errno : 0;
}

/* @disk is open, and becomes the one with that number. */
int md_add_disk(int fd, int disk, int nr)
{
	mdu_disk_info_t info = {
		.number = nr,
		.raid_disk = nr,
		.state = DISK_ACTIVE | DISK_IN_SYNC,
	};
	struct stat st;

	if (fstat(disk, &st))
		die("fstat: %s", strerror(errno));
	info.major = major(st.st_rdev);
	info.minor = minor(st.st_rdev);
	return ioctl(fd, ADD_NEW_DISK, &info) ? errno : 0;
}

int md_run(int fd)
{
	return ioctl(fd, RUN_ARRAY, NULL) ? errno : 0;
}
