// SPDX-License-Identifier: GPL-2.0
/*
 * Attaches an image to a loop device, waits for one of its partitions and prints
 * the partition's path: an example for Documentation/block/diskseq.rst.
 *
 *	cc -o diskseq-wait diskseq-wait.c
 *	./diskseq-wait [-d] [-t] IMAGE PARTITION-NUMBER
 *
 * -d then waits until the device is somebody else's, or nobody's; -t gives the
 * socket so small a buffer that it loses most events, which does not matter, and
 * says at the end what has been lost.
 * The status is 0 for a partition that could be opened, 3 for a use of the device
 * that was over first.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/netlink.h>

#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ	_IOR(0x12, 128, __u64)
#endif

static int uevents, sysfs;	/* what is polled */
static int lost, woken;		/* how often events were lost, and sysfs woke us */

static void open_socket(int tiny)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int size = 1;		/* the kernel makes it the least that it takes */

	uevents = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC,
			 NETLINK_KOBJECT_UEVENT);
	if (uevents < 0)
		err(1, "socket");
	if (tiny && setsockopt(uevents, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)))
		err(1, "SO_RCVBUF");
	if (bind(uevents, (struct sockaddr *)&addr, sizeof(addr)))
		err(1, "bind");
}

/* Attach to the first device that nobody takes before us; its index in *index. */
static int attach(const char *image, int *index)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int file = open(image, O_RDWR | O_CLOEXEC);
	struct loop_config config = {
		.fd = file,
		.info.lo_flags = LO_FLAGS_PARTSCAN,
	};
	char path[32];
	int fd;

	if (control < 0)
		err(1, "/dev/loop-control");
	if (file < 0)
		err(1, "%s", image);
	for (;;) {
		*index = ioctl(control, LOOP_CTL_GET_FREE);
		if (*index < 0)
			err(1, "LOOP_CTL_GET_FREE");
		snprintf(path, sizeof(path), "/dev/loop%d", *index);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0) {
			if (!ioctl(fd, LOOP_CONFIGURE, &config))
				break;
			if (errno != EBUSY)
				err(1, "%s: LOOP_CONFIGURE", path);
			close(fd);
		} else if (errno != ENXIO && errno != ENOENT) {
			err(1, "%s", path);
		}
		/* somebody was faster, or has claimed the free device */
		usleep(1000);
	}
	close(file);
	close(control);
	return fd;
}

/* The number now, and from here on poll() tells of a later one. */
static unsigned long long disk_number(void)
{
	char buf[32];
	ssize_t len = pread(sysfs, buf, sizeof(buf) - 1, 0);

	if (len < 0 && errno == ENODEV)
		return 0;		/* the disk has gone */
	if (len <= 0)
		err(1, "diskseq");
	buf[len] = '\0';
	return strtoull(buf, NULL, 10);
}

/*
 * A descriptor of the partition, which keeps it; -1 if it cannot be opened, or is
 * that of another medium.
 */
static int open_partition(const char *path, unsigned long long number)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	unsigned long long own;

	if (fd < 0) {
		if (errno != ENOENT && errno != ENXIO)
			err(1, "%s", path);
		return -1;
	}
	if (ioctl(fd, BLKGETDISKSEQ, &own))
		err(1, "%s: BLKGETDISKSEQ", path);
	if (own == number)
		return fd;
	close(fd);
	return -1;
}

/*
 * Until there is something new. What the events say is not needed, since sysfs
 * and the partition say how things stand now; one that was lost makes the socket
 * readable, too. Kernels without the rules do not wake who polls sysfs.
 */
static void wait_for_news(void)
{
	struct pollfd fds[] = {
		{ .fd = uevents, .events = POLLIN },
		{ .fd = sysfs, .events = POLLPRI },
	};
	char event[8192];

	if (poll(fds, 2, 1000) < 0)
		err(1, "poll");
	if (fds[1].revents & POLLPRI)
		woken++;
	for (;;) {
		if (recv(uevents, event, sizeof(event), 0) >= 0)
			continue;
		if (errno == EAGAIN)
			return;
		if (errno != ENOBUFS)
			err(1, "recv");
		lost++;
	}
}

int main(int argc, char **argv)
{
	int opt, disk, index, part, stay = 0, tiny = 0, there;
	unsigned long long number;
	char path[64];

	while ((opt = getopt(argc, argv, "dt")) >= 0) {
		if (opt == '?')
			return 2;
		stay |= opt == 'd';
		tiny |= opt == 't';
	}
	if (argc - optind != 2)
		errx(2, "usage: diskseq-wait [-d] [-t] IMAGE PARTITION-NUMBER");

	open_socket(tiny);
	disk = attach(argv[optind], &index);
	/* Through the same descriptor: by its name it may be another's by now. */
	if (ioctl(disk, BLKGETDISKSEQ, &number))
		err(1, "BLKGETDISKSEQ");
	snprintf(path, sizeof(path), "/sys/block/loop%d/diskseq", index);
	sysfs = open(path, O_RDONLY | O_CLOEXEC);
	if (sysfs < 0)
		err(1, "%s", path);
	/* Others may detach it from now on; udev scans it again. */
	close(disk);

	snprintf(path, sizeof(path), "/dev/loop%dp%d", index, atoi(argv[optind + 1]));
	for (;;) {
		part = open_partition(path, number);
		/* In this order: one that is in use outlives its medium. */
		there = disk_number() == number;
		if (part >= 0 || !there)
			break;
		wait_for_news();
	}
	if (there) {
		printf("%s\n", path);
		fflush(stdout);
	}
	/* Until here a program would use it: while it is open, it stays. */
	if (part >= 0)
		close(part);
	while (stay && disk_number() == number)
		wait_for_news();
	if (stay || !there)
		printf("over\n");
	if (tiny)
		fprintf(stderr, "%d times events were lost, %d times sysfs woke us\n",
			lost, woken);
	return there ? 0 : 3;
}
