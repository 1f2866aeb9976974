// SPDX-License-Identifier: GPL-2.0
/*
 * Mounts the medium that has a number, read-only, and no other one: an example for
 * Documentation/block/diskseq.rst.
 *
 *	cc -o diskseq-mount diskseq-mount.c
 *	./diskseq-mount NUMBER[-partN] TYPE DIRECTORY
 *
 * The name is that of a link in /dev/disk/by-diskseq/, TYPE a file system's. The
 * status is 0 if it is mounted, 3 if the number is over, 1 if something else is wrong;
 * nothing is mounted then.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/fs.h>

#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ	_IOR(0x12, 128, __u64)
#endif

#define OVER	3

static unsigned long long read_number(const char *path)
{
	unsigned long long number = 0;
	FILE *f = fopen(path, "re");

	if (f && fscanf(f, "%llu", &number) != 1)
		number = 0;
	if (f)
		fclose(f);
	return number;
}

/* The number that the disk has now, of a descriptor of it or of its partition. */
static unsigned long long disk_number(int fd, int partition)
{
	struct stat st;
	char path[64];

	if (fstat(fd, &st))
		err(1, "fstat");
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%sdiskseq",
		 major(st.st_rdev), minor(st.st_rdev), partition ? "../" : "");
	return read_number(path);
}

/* Whether any disk has the number. */
static int is_anywhere(unsigned long long number)
{
	glob_t disks;
	size_t i;
	int found = 0;

	if (glob("/sys/block/*/diskseq", 0, NULL, &disks))
		return 0;
	for (i = 0; i < disks.gl_pathc; i++)
		found |= read_number(disks.gl_pathv[i]) == number;
	globfree(&disks);
	return found;
}

/*
 * A partition keeps its number, and stays for as long as it is in use, even if the
 * medium that it was on has gone: so ask for both.
 */
static int is_there(int fd, unsigned long long number, int partition)
{
	unsigned long long own;

	return !ioctl(fd, BLKGETDISKSEQ, &own) && own == number &&
	       disk_number(fd, partition) == number;
}

/* A mount of the device that nobody sees before it is moved to a directory. */
static int mount_nowhere(const char *device, const char *type)
{
	int fs = fsopen(type, FSOPEN_CLOEXEC);

	if (fs < 0)
		err(1, "%s", type);
	if (fsconfig(fs, FSCONFIG_SET_STRING, "source", device, 0) ||
	    fsconfig(fs, FSCONFIG_SET_FLAG, "ro", NULL, 0) ||
	    fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -1;
	return fsmount(fs, FSMOUNT_CLOEXEC,
		       MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID);
}

int main(int argc, char **argv)
{
	unsigned long long number;
	char path[64], *rest;
	int fd, mnt, error, partition;

	if (argc != 4)
		errx(2, "usage: diskseq-mount NUMBER[-partN] TYPE DIRECTORY");
	number = strtoull(argv[1], &rest, 10);
	partition = !strncmp(rest, "-part", 5);
	if (!number || (*rest && !partition))
		errx(2, "%s: give NUMBER or NUMBER-partN", argv[1]);

	/* Open: whatever the link names by now. */
	snprintf(path, sizeof(path), "/dev/disk/by-diskseq/%s", argv[1]);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && (errno == ENOENT || errno == ENXIO || errno == ENOMEDIUM) &&
	    !is_anywhere(number))
		errx(OVER, "%s: there is no such medium", argv[1]);
	/* ENOENT: udev has not made the link yet, or makes none for such a disk */
	if (fd < 0)
		err(1, "%s", path);

	/* Check. */
	if (!is_there(fd, number, partition))
		errx(OVER, "%s: the device has another medium", argv[1]);

	/* Use what is open, not what has its name. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	mnt = mount_nowhere(path, argv[2]);
	error = errno;

	/* A medium that can be replaced while it is open may have been by now. */
	if (!is_there(fd, number, partition))
		errx(OVER, "%s: the medium was replaced", argv[1]);
	errno = error;
	if (mnt < 0)
		err(1, "mount");
	if (move_mount(mnt, "", AT_FDCWD, argv[3], MOVE_MOUNT_F_EMPTY_PATH))
		err(1, "%s", argv[3]);
	return 0;
}
