// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the initrd of a guest that runs systemd: makes a root file system of
 * the image on the first virtio disk, of what the initrd has in OVER and of
 * memory for what is written, and gives it to systemd.
 *
 * With DISKSEQ_LIVE on the kernel command line, the image is mounted by a loop
 * device, as that of a live system is.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define DISK	"/dev/vda"
#define OVER	"/over"		/* laid over the image */
#define IMAGE	"/image"
#define WRITTEN	"/written"
#define NEW	"/new"

static void mount_at(const char *source, const char *dir, const char *type,
		     unsigned long flags, const char *options)
{
	mkdir(dir, 0755);
	/* The kernel may have mounted devtmpfs itself. */
	if (mount(source, dir, type, flags, options) && errno != EBUSY)
		err(1, "mount %s at %s", source, dir);
}

/* A loop device that has the disk, and can only be read as that. */
static const char *attach_loop(void)
{
	int disk = open(DISK, O_RDONLY | O_CLOEXEC), index, loop;
	static char path[32];

	index = ioctl(open("/dev/loop-control", O_RDWR | O_CLOEXEC),
		      LOOP_CTL_GET_FREE);
	snprintf(path, sizeof(path), "/dev/loop%d", index);
	loop = open(path, O_RDONLY | O_CLOEXEC);
	if (disk < 0 || loop < 0 || ioctl(loop, LOOP_SET_FD, disk))
		err(1, "cannot attach %s to %s", DISK, path);
	return path;
}

int main(int argc, char **argv)
{
	if (getpid() != 1)
		errx(1, "this is the guest's PID 1, not a program to run");

	mount_at("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	/* what the kernel does not know it leaves in the environment */
	mount_at(getenv("DISKSEQ_LIVE") ? attach_loop() : DISK, IMAGE,
		 "squashfs", MS_RDONLY, NULL);
	mount_at("tmpfs", WRITTEN, "tmpfs", 0, "mode=755");
	mkdir(WRITTEN "/upper", 0755);
	mkdir(WRITTEN "/work", 0755);
	mount_at("overlay", NEW, "overlay", 0, "lowerdir=" OVER ":" IMAGE
		 ",upperdir=" WRITTEN "/upper,workdir=" WRITTEN "/work");
	mount_at("/dev", NEW "/dev", NULL, MS_MOVE, NULL);
	if (chdir(NEW) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
		err(1, "cannot change to the new root");
	/* The programs to run are for who reads /proc/cmdline. */
	execl("/sbin/init", "/sbin/init", NULL);
	err(1, "/sbin/init");
}
