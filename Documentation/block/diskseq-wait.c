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
 * The status is 0 for a partition that is there, 3 for a use of the device that
 * was over first.
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
		if (fd < 0)
			err(1, "%s", path);
		if (!ioctl(fd, LOOP_CONFIGURE, &config))
			break;
		if (errno != EBUSY)
			err(1, "%s: LOOP_CONFIGURE", path);
		close(fd);
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

/* The number of a partition; 0 if there is none. */
static unsigned long long partition_number(int index, int partition)
{
	unsigned long long number = 0;
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/loop%d/loop%dp%d/uevent",
		 index, index, partition);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "DISKSEQ=%llu", &number);
	if (f)
		fclose(f);
	return number;
}

/*
 * Until there is something new. What the events say is not needed, since sysfs
 * says how things stand now; one that was lost makes the socket readable, too.
 */
static void wait_for_news(void)
{
	struct pollfd fds[] = {
		{ .fd = uevents, .events = POLLIN },
		{ .fd = sysfs, .events = POLLPRI },
	};
	char event[8192];

	if (poll(fds, 2, -1) < 0)
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
	int opt, fd, index, partition, stay = 0, tiny = 0, there;
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
	partition = atoi(argv[optind + 1]);

	open_socket(tiny);
	fd = attach(argv[optind], &index);
	/* Through the same descriptor: by its name it may be another's by now. */
	if (ioctl(fd, BLKGETDISKSEQ, &number))
		err(1, "BLKGETDISKSEQ");
	snprintf(path, sizeof(path), "/sys/block/loop%d/diskseq", index);
	sysfs = open(path, O_RDONLY | O_CLOEXEC);
	if (sysfs < 0)
		err(1, "%s", path);
	close(fd);

	while (disk_number() == number &&
	       partition_number(index, partition) != number)
		wait_for_news();
	there = disk_number() == number;
	if (there) {
		printf("/dev/loop%dp%d\n", index, partition);
		fflush(stdout);
	}
	while (stay && disk_number() == number)
		wait_for_news();
	if (stay || !there)
		printf("over\n");
	if (tiny)
		fprintf(stderr, "%d times events were lost, %d times sysfs woke us\n",
			lost, woken);
	return there ? 0 : 3;
}
