// SPDX-License-Identifier: GPL-2.0
/*
 * nbd: a process that has a device and its servers for itself, and several that
 * connect and disconnect the same one.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuzz.h"
#include "nbd_dev.h"

#define WRITE_FIRST	200
#define WRITE_COUNT	200
#define PARTS		2

enum state { OFF, BY_NETLINK, BY_IOCTL };

static struct disk *d;
static struct nbd n;
static enum state state;
static char id[2];
static int current;		/* which image */
static uint64_t stamp[2][IMAGE_SECTORS];
static bool stored[IMAGE_SECTORS];	/* the server has it */
static uint64_t serial;

static void init(struct nbd *nbd, int index, char first)
{
	memset(nbd, 0, sizeof(*nbd));
	nbd->index = index;
	snprintf(nbd->name, sizeof(nbd->name), "nbd%d", index);
	nbd->fd = nbd->part = nbd->held = -1;
	nbd->image[0] = image_create(first, 2);
	nbd->image[1] = image_create(first + 1, 2);
	image_table(nbd->image[1], 0, TABLE_GPT, PARTS, "n");
	nbd->sysfs = diskseq_open_sysfs(nbd->name);
	nbd->orders = shared_memory(sizeof(*nbd->orders));
	nbd->returned = shared_memory(sizeof(*nbd->returned));
}

void nbd_alone_begin(struct worker *w)
{
	char path[64];
	int i;

	id[0] = 'a' + (w->life * 2) % 26;
	id[1] = id[0] + 1;
	init(&n, w->arg, id[0]);
	d = disk_find(n.name);
	for (i = 0; i < IMAGE_SECTORS; i++)
		stamp[0][i] = stamp[1][i] = i;
	op_begin(d, "take over");
	disconnect_index(n.index);
	/* a killed client's device is free when the kernel has noticed */
	snprintf(path, sizeof(path), "/sys/block/%s/pid", n.name);
	while (!access(path, F_OK)) {
		disconnect_index(n.index);
		poll(NULL, 0, 5);
	}
	op_end(0);
	state = OFF;
}

static void image_check(const char *when)
{
	uint64_t s;

	for (s = WRITE_FIRST; s < WRITE_FIRST + WRITE_COUNT; s++)
		if (stored[s] && !sector_is(n.image[current], s, id[current],
					    stamp[current][s], NULL))
			broken(14, d, "sector %llu of image %c is not at its server, which had it by fsync() %s",
			       (unsigned long long)s, id[current], when);
}

static void connect_netlink(void)
{
	uint64_t before = number_by_name(d);
	int which = draw(2), sockets = 1 + draw(2), i, err;
	/* the servers of a connection that is there are not to be forgotten */
	struct nbd other = n;

	op_begin(d, "connect image %c by netlink, %d sockets", id[which], sockets);
	owe(d, 2);
	err = connect_by_netlink(&other, n.image[which],
				 NBD_FLAG_HAS_FLAGS | (sockets > 1 ? NBD_FLAG_CAN_MULTI_CONN : 0),
				 0, sockets);
	settle(d, 2, err);
	op_end(err);
	/* whoever has it open keeps it from being connected, too */
	if (err != EBUSY && (err || state != OFF))
		broken(state == OFF ? 15 : 12, d, "connect: %s", strerror(err));
	if (!err != (number_by_name(d) > before))
		broken(err ? 12 : 3, d, "has %llu, before the connect it had %llu",
		       (unsigned long long)number_by_name(d), (unsigned long long)before);
	if (err)
		return;
	n = other;
	state = BY_NETLINK;
	current = which;
	for (i = 0; i < IMAGE_SECTORS; i++)
		stored[i] = true;
	medium_is(number_by_name(d), id[which]);
}

static void connect_ioctl(void)
{
	uint64_t before = number_by_name(d);
	int which = draw(2), i, err;

	if (state != OFF)
		return;
	op_begin(d, "connect image %c by ioctl", id[which]);
	owe(d, 2);
	err = connect_by_ioctl(&n, n.image[which], NBD_FLAG_HAS_FLAGS);
	settle(d, 2, err);
	op_end(err);
	if (err) {
		/* somebody has it open since it was connected before */
		if (err != EBUSY)
			broken(15, d, "connect: %s", strerror(err));
		return;
	}
	if (number_by_name(d) <= before)
		broken(3, d, "it is connected and has no new number");
	state = BY_IOCTL;
	current = which;
	for (i = 0; i < IMAGE_SECTORS; i++)
		stored[i] = true;
	medium_is(number_by_name(d), id[which]);
}

static void ended(uint64_t before)
{
	int i;

	if (!number_follows(d, before))
		broken(3, d, "it was disconnected and has no new number");
	for (i = 0; i < SERVERS; i++)
		end_server(&n, i);
	image_check("before it was disconnected");
	state = OFF;
}

static void disconnect(void)
{
	uint64_t before = number_by_name(d);
	unsigned int way = draw(3);
	int err;

	if (state == OFF) {
		op_begin(d, "disconnect what is not connected");
		err = op_end(disconnect_index(n.index));
		if (number_by_name(d) != before)
			broken(12, d, "has another number after a refused disconnect");
		return;
	}
	op_begin(d, "disconnect, %s", way == 0 && state == BY_IOCTL ? "by ioctl" :
		 way == 1 && state == BY_IOCTL ? "NBD_CLEAR_SOCK" : "by netlink");
	if (state != BY_IOCTL || way == 2)
		err = disconnect_index(n.index);
	else if (way == 0)
		err = disconnect_by_ioctl(&n);
	else
		err = op_clear_sock(&n);
	if (state == BY_IOCTL)
		client_ended(&n);
	op_end(err);
	if (err)
		broken(15, d, "disconnect: %s", strerror(err));
	ended(before);
}

/*
 * What was on its way to it waits for the disconnect, and whoever opens the device waits
 * for that: so that comes next.
 */
static void server_dies(void)
{
	uint64_t before = number_by_name(d);
	int i;

	if (state == OFF)
		return;
	op_begin(d, "the server dies");
	for (i = 0; i < SERVERS; i++)
		end_server(&n, i);
	if (state == BY_IOCTL) {
		client_ended(&n);
		op_end(0);
		ended(before);
		return;
	}
	op_end(0);
	/* a dead link is no new medium */
	if (number_by_name(d) != before)
		broken(3, d, "the link is dead, and that took a number");
	poll(NULL, 0, draw(50));
	disconnect();
}

static void client_dies(void)
{
	uint64_t before = number_by_name(d);

	if (state != BY_IOCTL)
		return;
	op_begin(d, "the client is killed");
	op_client_dies(&n);
	op_end(0);
	ended(before);
}

static void orders(void)
{
	unsigned int way = draw(2), ms = draw(300);

	if (state == OFF)
		return;
	op_begin(d, way ? "silent for %u ms" : "slow for %u ms", ms);
	if (way)
		atomic_put(&n.orders->silent, 1);
	else
		atomic_put(&n.orders->delay_ms, 3);
	poll(NULL, 0, ms);
	atomic_put(&n.orders->silent, 0);
	atomic_put(&n.orders->delay_ms, 0);
	op_end(0);
}

static void refused(void)
{
	uint64_t before = number_by_name(d);
	unsigned int way = draw(4);
	int err = 0, fd;
	struct request r;

	op_begin(d, "refused %u", way);
	switch (way) {
	case 0:
		/* no socket */
		nbd_request(&r, NBD_CMD_CONNECT);
		put_u32(&r, NBD_ATTR_INDEX, n.index);
		put_u64(&r, NBD_ATTR_SIZE_BYTES, IMAGE_BYTES);
		err = send_request(&r, NULL, 0);
		break;
	case 1:
		/* a file that is none */
		nbd_request(&r, NBD_CMD_CONNECT);
		put_u32(&r, NBD_ATTR_INDEX, n.index);
		put_u64(&r, NBD_ATTR_SIZE_BYTES, IMAGE_BYTES);
		put_sockets(&r, &n.image[0], 1);
		err = send_request(&r, NULL, 0);
		break;
	case 2:
		fd = open_disk(d, 0, O_RDWR);
		err = called(ioctl(fd, NBD_SET_SOCK, (long)n.image[0]));
		close(fd);
		break;
	case 3:
		nbd_request(&r, NBD_CMD_RECONFIGURE);
		put_u32(&r, NBD_ATTR_INDEX, n.index);
		put_sockets(&r, &n.image[0], 1);
		err = send_request(&r, NULL, 0);
		break;
	}
	op_end(err);
	if (!err)
		broken(12, d, "refused %u was not refused", way);
	if (number_by_name(d) != before)
		broken(12, d, "has another number after what was refused");
}

static void write_some(void)
{
	uint64_t first = WRITE_FIRST + draw(WRITE_COUNT - 8), s;
	unsigned int count = 1 + draw(8);
	static char buf[8 * SECTOR];
	ssize_t len = count * SECTOR;
	int fd, err = 0;

	if (state == OFF)
		return;
	serial++;
	for (s = 0; s < count; s++)
		image_sector(id[current], serial << 16 | (first + s), NULL, buf + s * SECTOR);
	op_begin(d, "write %u sectors at %llu, fsync", count, (unsigned long long)first);
	fd = open_disk(d, 0, O_RDWR);
	if (fd < 0 || pwrite(fd, buf, len, first * SECTOR) != len)
		err = errno;
	for (s = first; s < first + count; s++)
		stored[s] = false;
	if (!err && fsync(fd))
		err = errno;
	close(fd);
	op_end(err);
	if (err) {
		broken(14, d, "write to a connected device: %s", strerror(err));
		return;
	}
	for (s = first; s < first + count; s++) {
		stamp[current][s] = serial << 16 | s;
		stored[s] = true;
	}
	image_check("just now");
}

static void read_some(void)
{
	uint64_t s = WRITE_FIRST + draw(WRITE_COUNT), number;
	static char buf[SECTOR] __aligned(4096);
	unsigned int way = draw(2);
	char want[SECTOR];
	ssize_t len;
	int fd;

	op_begin(d, "read sector %llu%s", (unsigned long long)s, way ? ", direct" : "");
	fd = open_disk(d, 0, O_RDONLY | (way ? O_DIRECT : 0));
	if (fd < 0) {
		op_end(errno);
		return;
	}
	number = number_by_fd(d, fd);
	len = pread(fd, buf, SECTOR, s * SECTOR);
	op_end(len < 0 ? errno : 0);
	if (state != OFF) {
		image_sector(id[current], stamp[current][s], NULL, want);
		if (len != SECTOR)
			broken(14, d, "sector %llu cannot be read: %s", (unsigned long long)s,
			       len < 0 ? strerror(errno) : "short");
		else if (stored[s] && memcmp(want, buf, SECTOR))
			broken(8, d, "sector %llu of image %c reads as '%.40s'",
			       (unsigned long long)s, id[current], buf);
	} else if (len > 0) {
		broken(8, d, "%zd bytes were read from a device without a medium", len);
	}
	if (number_by_fd(d, fd) != number)
		broken(3, d, "has another number although nobody connected it");
	close(fd);
}

static void rescan(void)
{
	uint64_t before = number_by_name(d);

	op_begin(d, "BLKRRPART");
	scan_and_close(d, open_disk(d, 0, O_RDONLY), before);
}

void nbd_alone_step(struct worker *w)
{
	switch (draw(16)) {
	case 0 ... 2:
		connect_netlink();
		break;
	case 3:
		connect_ioctl();
		break;
	case 4 ... 5:
		disconnect();
		break;
	case 6:
		server_dies();
		break;
	case 7:
		client_dies();
		break;
	case 8:
		orders();
		break;
	case 9:
		refused();
		break;
	case 10 ... 11:
		write_some();
		break;
	case 12 ... 14:
		read_some();
		break;
	case 15:
		rescan();
		break;
	}
}

void nbd_alone_end(struct worker *w)
{
	if (state != OFF)
		disconnect();
}

/*
 * The same device for several. Each knows only of its own servers, which die with it.
 */
void nbd_shared_step(struct worker *w)
{
	static struct nbd shared;
	static struct disk *disk;
	unsigned int way = draw(8), sleep = draw(20);
	int err = 0, i, fd;
	char buf[SECTOR];

	if (!disk) {
		init(&shared, w->arg, 'k');
		disk = disk_find(shared.name);
	}
	switch (way) {
	case 0 ... 1:
		for (i = 0; i < SERVERS; i++)
			end_server(&shared, i);
		op_begin(disk, "connect by netlink");
		owe(disk, 2);
		err = connect_by_netlink(&shared, shared.image[draw(2)], NBD_FLAG_HAS_FLAGS,
					 draw(3) ? 0 : NBD_CFLAG_DISCONNECT_ON_CLOSE, 1);
		settle(disk, 2, err);
		op_end(err);
		poll(NULL, 0, sleep);
		break;
	case 2 ... 3:
		op_begin(disk, "disconnect by netlink");
		op_end(disconnect_index(shared.index));
		break;
	case 4:
		op_begin(disk, "the server dies");
		end_server(&shared, 0);
		op_end(0);
		break;
	case 5:
		op_begin(disk, "open, NBD_CLEAR_SOCK");
		fd = open_disk(disk, 0, O_RDWR);
		if (fd >= 0)
			err = called(ioctl(fd, NBD_CLEAR_SOCK));
		close(fd);
		op_end(err);
		break;
	case 6:
		op_begin(disk, "read");
		fd = open_disk(disk, 0, O_RDONLY);
		if (fd >= 0)
			err = called(pread(fd, buf, SECTOR, draw(256) * SECTOR));
		poll(NULL, 0, sleep);
		close(fd);
		op_end(err);
		break;
	case 7:
		op_begin(disk, "write, fsync");
		fd = open_disk(disk, 0, O_RDWR);
		memset(buf, 'w', SECTOR);
		if (fd >= 0)
			err = pwrite(fd, buf, SECTOR, (200 + draw(100)) * SECTOR) < 0 ||
			      fsync(fd) ? errno : 0;
		close(fd);
		op_end(err);
		break;
	}
	number_by_name(disk);
}

/* Somebody who never opens it, and so is there when its server has died. */
void nbd_free_step(struct worker *w)
{
	char name[16];
	struct disk *disk;

	snprintf(name, sizeof(name), "nbd%d", w->arg);
	disk = disk_find(name);
	poll(NULL, 0, 200 + draw(400));
	op_begin(disk, "disconnect by netlink, without an open");
	op_end(disconnect_index(w->arg));
}

/* Nobody else is left. */
void nbd_rest(struct disk *disk)
{
	disconnect_index(atoi(disk->name + 3));
	close(open_disk(disk, 0, O_RDONLY));
}
