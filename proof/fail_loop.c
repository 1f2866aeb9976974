// SPDX-License-Identifier: GPL-2.0
/*
 * Operations on loop devices and on partitions.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>

#include "inject.h"

#define NEW_INDEX	901

static struct loop lo = { .fd = -1 };
static int plain, three, two, broken_table;
static int part = -1, other = -1, control = -1;

static void set_up(void)
{
	char noise[SECTOR];

	loop_create(&lo);
	let_requests_fail(lo.name);
	plain = image_create('p', 1);
	three = image_create('t', 2);
	image_table(three, 0, TABLE_GPT, 3, "three");
	image_table(three, IMAGE_SECTORS, TABLE_MSDOS, 2, "");
	two = image_create('w', 2);
	image_table(two, 0, TABLE_MSDOS, 2, "");
	/* a header of a GPT with a wrong checksum, and a table that ends nowhere */
	broken_table = image_create('b', 1);
	image_table(broken_table, 0, TABLE_GPT, 3, "b");
	image_sector('x', 1, NULL, noise);
	if (pwrite(broken_table, noise, SECTOR - 16, SECTOR + 16) < 0 ||
	    pwrite(broken_table, noise, SECTOR, (IMAGE_SECTORS - 1) * SECTOR) < 0)
		die("image: %s", strerror(errno));
	watch(lo.name);
}

static void close_all(void)
{
	int *fd[] = { &part, &other };
	int i;

	for (i = 0; i < 2; i++) {
		if (*fd[i] >= 0)
			close(*fd[i]);
		*fd[i] = -1;
	}
}

/* Detached and open. */
static void restore(void)
{
	close_all();
	if (lo.fd < 0)
		loop_reopen(&lo);
	if (loop_is_bound(&lo))
		loop_detach(&lo);
	if (ftruncate(plain, IMAGE_BYTES))
		die("image: %s", strerror(errno));
}

static void tear_down(void)
{
	restore();
	loop_destroy(&lo);
}

/* Attach. */

static int set_fd(void)
{
	return called(ioctl(lo.fd, LOOP_SET_FD, plain));
}

static int configure(void)
{
	return called(loop_configure(&lo, plain, 0));
}

static int configure_parts(void)
{
	return called(loop_configure(&lo, three, op->arg | LO_FLAGS_PARTSCAN));
}

static int configure_broken(void)
{
	return called(loop_configure(&lo, broken_table, LO_FLAGS_PARTSCAN));
}

/* While it is attached. */

static void attach_plain(void)
{
	loop_attach(&lo, plain, 0);
}

static void attach_three(void)
{
	loop_attach(&lo, three, op->arg | LO_FLAGS_PARTSCAN);
}

static void attach_unscanned(void)
{
	loop_attach(&lo, three, 0);
}

static int change_fd(void)
{
	return called(ioctl(lo.fd, LOOP_CHANGE_FD, two));
}

static int set_status64(void)
{
	struct loop_info64 info = { .lo_offset = IMAGE_BYTES, .lo_flags = LO_FLAGS_PARTSCAN };

	return called(ioctl(lo.fd, LOOP_SET_STATUS64, &info));
}

static int set_status(void)
{
	struct loop_info info = { .lo_offset = IMAGE_BYTES, .lo_flags = LO_FLAGS_PARTSCAN };

	return called(ioctl(lo.fd, LOOP_SET_STATUS, &info));
}

static int set_partscan(void)
{
	struct loop_info64 info = { .lo_flags = LO_FLAGS_PARTSCAN };

	return called(ioctl(lo.fd, LOOP_SET_STATUS64, &info));
}

static int set_limit(void)
{
	struct loop_info64 info = { .lo_sizelimit = IMAGE_BYTES / 2 };

	return called(ioctl(lo.fd, LOOP_SET_STATUS64, &info));
}

static void attach_growing(void)
{
	attach_plain();
	if (ftruncate(plain, 2 * IMAGE_BYTES))
		die("image: %s", strerror(errno));
}

static int set_capacity(void)
{
	return called(ioctl(lo.fd, LOOP_SET_CAPACITY));
}

/* Detach. */

static int clr_fd(void)
{
	int err = called(ioctl(lo.fd, LOOP_CLR_FD));

	if (!err)
		loop_close(&lo);
	return err;
}

static int close_it(void)
{
	loop_close(&lo);
	return 0;
}

static void attach_and_hold(void)
{
	attach_three();
	part = loop_open_part(&lo, 1, O_RDONLY);
	if (ioctl(lo.fd, LOOP_CLR_FD))
		die("%s: LOOP_CLR_FD: %s", lo.name, strerror(errno));
	loop_close(&lo);
}

static int close_part(void)
{
	close(part);
	part = -1;
	return 0;
}

/* Partitions. */

static int add_part(void)
{
	return called(blkpg_add(lo.fd, 7, 300, 8));
}

static int del_part(void)
{
	return called(blkpg_del(lo.fd, 2));
}

static int reread(void)
{
	return called(ioctl(lo.fd, BLKRRPART));
}

/* Another medium, while a partition of the old one was in use: the next open looks. */
static void pend(void)
{
	attach_three();
	part = loop_open_part(&lo, 1, O_RDONLY);
	if (ioctl(lo.fd, LOOP_CHANGE_FD, two))
		die("%s: LOOP_CHANGE_FD: %s", lo.name, strerror(errno));
	close_part();
}

static int open_disk(void)
{
	other = open(lo.path, O_RDONLY | O_CLOEXEC);
	return other < 0 ? errno : 0;
}

static int open_part(void)
{
	char path[48];

	snprintf(path, sizeof(path), "%sp1", lo.path);
	other = open(path, O_RDONLY | O_CLOEXEC);
	return other < 0 ? errno : 0;
}

/* Those who wait. */

static int poll_number(void)
{
	char path[64], line[32];
	struct pollfd pfd = { .events = POLLPRI };
	int err = 0;

	snprintf(path, sizeof(path), "/sys/block/%s/diskseq", lo.name);
	pfd.fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pfd.fd < 0 || read(pfd.fd, line, sizeof(line)) <= 0 || poll(&pfd, 1, 0) < 0)
		err = errno;
	close(pfd.fd);
	return err;
}

static int listen_to_events(void)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	int err = fd < 0 || bind(fd, (void *)&addr, sizeof(addr)) ? errno : 0;

	close(fd);
	return err;
}

/* Devices. */

static void watch_new(void)
{
	char name[16];

	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		die("/dev/loop-control: %s", strerror(errno));
	snprintf(name, sizeof(name), "loop%d", NEW_INDEX);
	watch(name);
}

static int add_device(void)
{
	return called(ioctl(control, LOOP_CTL_ADD, NEW_INDEX));
}

static int remove_device(void)
{
	return called(ioctl(control, LOOP_CTL_REMOVE, NEW_INDEX));
}

static void must_add(void)
{
	must(add_device(), "LOOP_CTL_ADD");
}

static void must_remove(void)
{
	must(remove_device(), "LOOP_CTL_REMOVE");
}

#define DEVICE	.set_up = set_up, .restore = restore, .tear_down = tear_down

const struct operation loop_operations[] = {
	{ "loop_set_fd", DEVICE, .act = set_fd, .taken = 1 },
	{ "loop_configure", DEVICE, .act = configure, .taken = 1 },
	{ "loop_configure_parts", DEVICE, .act = configure_parts, .taken = 1 },
	{ "loop_configure_read_only", DEVICE, .act = configure_parts, .taken = 1,
	  .arg = LO_FLAGS_READ_ONLY },
	{ "loop_configure_broken_table", DEVICE, .act = configure_broken, .taken = 1 },
	{ "loop_change_fd", DEVICE, .prepare = attach_three, .act = change_fd, .taken = 1,
	  .arg = LO_FLAGS_READ_ONLY },
	{ "loop_set_status64_offset", DEVICE, .prepare = attach_three, .act = set_status64,
	  .taken = 1 },
	{ "loop_set_status_offset", DEVICE, .prepare = attach_three, .act = set_status,
	  .taken = 1 },
	{ "loop_set_status_partscan", DEVICE, .prepare = attach_unscanned,
	  .act = set_partscan },
	{ "loop_set_status_limit", DEVICE, .prepare = attach_plain, .act = set_limit },
	{ "loop_set_capacity", DEVICE, .prepare = attach_growing, .act = set_capacity },
	{ "loop_clr_fd", DEVICE, .prepare = attach_three, .act = clr_fd, .taken = 1 },
	{ "loop_autoclear", DEVICE, .prepare = attach_three, .act = close_it, .taken = 1,
	  .arg = LO_FLAGS_AUTOCLEAR },
	{ "loop_last_close_of_partition", DEVICE, .prepare = attach_and_hold,
	  .act = close_part, .taken = 1 },
	{ "loop_ctl_add", .set_up = watch_new, .act = add_device, .restore = must_remove,
	  .flags = MAKES_DISK, .taken = 1 },
	{ "loop_ctl_remove", .set_up = watch_new, .prepare = must_add, .act = remove_device },
	{ "blkpg_add", DEVICE, .prepare = attach_three, .act = add_part },
	{ "blkpg_del", DEVICE, .prepare = attach_three, .act = del_part },
	{ "blkrrpart", DEVICE, .prepare = attach_three, .act = reread },
	{ "open_pending", DEVICE, .prepare = pend, .act = open_disk,
	  .arg = LO_FLAGS_READ_ONLY, .flags = NO_LOOK },
	{ "open_partition_pending", DEVICE, .prepare = pend, .act = open_part,
	  .arg = LO_FLAGS_READ_ONLY, .flags = NO_LOOK, .err = ENXIO },
	{ "poll_number", DEVICE, .act = poll_number },
	{ "listen", DEVICE, .act = listen_to_events },
	{ }
};
