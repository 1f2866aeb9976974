// SPDX-License-Identifier: GPL-2.0
/*
 * Those who only look: at random, at each event as udev does, and by poll() on the
 * sysfs file. They read what is there, the number before it and after it, and hold
 * partitions in use.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include "fuzz.h"

#define SECTOR_READ	100

static struct disk *any_disk(void)
{
	return &fuzz->disk[draw(atomic_get(&fuzz->disks))];
}

/* The number, a sector, the number again: if it is the same, so is the medium. */
static void look_inside(struct disk *d, int fd)
{
	static char buf[SECTOR] __aligned(4096);
	uint64_t sector = SECTOR_READ + draw(50);
	uint64_t before, after;
	ssize_t len;

	before = number_by_fd(d, fd);
	len = pread(fd, buf, SECTOR, sector * SECTOR);
	after = number_by_fd(d, fd);
	if (after < before)
		broken(4, d, "the number goes from %llu to %llu", (unsigned long long)before,
		       (unsigned long long)after);
	if (len == SECTOR && before == after)
		medium_check(d, before, buf, sector);
}

static void open_and_look(struct disk *d)
{
	bool direct = !draw(3), hold = !draw(4);
	uint64_t least = atomic_get(&d->published), number;
	int fd;

	op_begin(d, "look%s", direct ? ", direct" : "");
	fd = open_disk(d, 0, O_RDONLY | O_NONBLOCK | (direct ? O_DIRECT : 0));
	if (fd >= 0) {
		number = number_by_fd(d, fd);
		/* of the name by which it was opened after that was known */
		if (number < least)
			broken(4, d, "the ioctl gives %llu, but %llu was read or announced before",
			       (unsigned long long)number, (unsigned long long)least);
		look_inside(d, fd);
		if (hold)
			poll(NULL, 0, draw(5));
		close(fd);
	}
	op_end(fd < 0 ? errno : 0);
}

/* It keeps the number that it was added with, as long as it is held. */
static void hold_partition(struct disk *d)
{
	int partno = 1 + draw(3), fd, i;
	uint64_t number, disk;
	char buf[SECTOR];

	if (d->flags & PARTS_ALONE)
		return;
	op_begin(d, "hold partition %d", partno);
	fd = open_disk(d, partno, O_RDONLY | O_NONBLOCK);
	if (fd >= 0) {
		number = number_by_fd(d, fd);
		for (i = draw(4); i >= 0; i--) {
			if (pread(fd, buf, SECTOR, 0) < 0)
				break;
			poll(NULL, 0, 1);
		}
		if (number_by_fd(d, fd) != number)
			broken(6, d, "partition %d had %llu, and has %llu", partno,
			       (unsigned long long)number,
			       (unsigned long long)number_by_fd(d, fd));
		disk = number_by_name(d);
		if (disk && disk < number)
			broken(6, d, "partition %d has %llu, its disk %llu", partno,
			       (unsigned long long)number, (unsigned long long)disk);
		close(fd);
	}
	op_end(fd < 0 ? errno : 0);
}

/* By somebody who takes the page only when it is mapped. */
static void look_mapped(struct disk *d)
{
	int fd, out = memfd_create("out", MFD_CLOEXEC);
	uint64_t before, after;
	char buf[SECTOR], *map;
	ssize_t len = -1;

	op_begin(d, "look, mapped");
	fd = open_disk(d, 0, O_RDONLY | O_NONBLOCK);
	if (fd >= 0) {
		before = number_by_fd(d, fd);
		map = mmap(NULL, IMAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
		/* the kernel reads it: what is gone is EFAULT then, and no signal */
		if (map != MAP_FAILED) {
			len = pwrite(out, map + SECTOR_READ * SECTOR, SECTOR, 0);
			munmap(map, IMAGE_BYTES);
		}
		after = number_by_fd(d, fd);
		if (len == SECTOR && before == after && pread(out, buf, SECTOR, 0) == SECTOR)
			medium_check(d, before, buf, SECTOR_READ);
		close(fd);
	}
	close(out);
	op_end(fd < 0 ? errno : 0);
}

static void ask_for_event(struct disk *d)
{
	static const char * const actions[] = { "change", "add", "remove", "online" };
	char path[64];

	op_begin(d, "synthetic event");
	snprintf(path, sizeof(path), "/sys/block/%s/uevent", d->name);
	op_end(file_write(path, actions[draw(4)]));
}

static void scan(struct disk *d)
{
	int fd, err = 0;

	if (d->flags & PARTS_ALONE)
		return;
	op_begin(d, "BLKRRPART");
	fd = open_disk(d, 0, O_RDONLY | O_NONBLOCK);
	if (fd >= 0) {
		may_raise(d, 1, 1);
		err = called(ioctl(fd, BLKRRPART));
		close(fd);
	}
	op_end(fd < 0 ? errno : err);
}

/* Those of one process are its own: whoever claims them has its operations refused. */
static void mount_it(struct disk *d)
{
	char path[40];
	int err;

	if (strncmp(d->name, "sr", 2) && strncmp(d->name, "sd", 2) &&
	    d != &fuzz->disk[2] && d != &fuzz->disk[3])
		return;
	op_begin(d, "mount");
	snprintf(path, sizeof(path), "/dev/%s", d->name);
	err = called(mount(path, "/mnt", "ext2", MS_RDONLY, NULL));
	if (!err)
		umount("/mnt");
	op_end(err);
}

void look_step(struct worker *w)
{
	struct disk *d = any_disk();

	switch (draw(24)) {
	case 0 ... 8:
		open_and_look(d);
		break;
	case 9 ... 13:
		hold_partition(d);
		break;
	case 14 ... 16:
		look_mapped(d);
		break;
	case 17 ... 18:
		ask_for_event(d);
		break;
	case 19:
		scan(d);
		break;
	case 20:
		mount_it(d);
		break;
	case 21 ... 23:
		op_begin(d, "read sysfs");
		number_by_name(d);
		op_end(0);
		break;
	}
}

/* As udev does. */

static struct monitor mon;

void react_begin(struct worker *w)
{
	monitor_open(&mon, NULL);
}

void react_step(struct worker *w)
{
	struct uevent ev;
	struct disk *d;
	uint64_t number;
	int fd;

	op_begin(NULL, "wait for an event");
	if (!monitor_next(&mon, &ev, 100)) {
		op_end(ETIMEDOUT);
		return;
	}
	op_end(0);
	d = disk_find(ev.disk);
	if (!d || !strcmp(ev.action, "remove") || (ev.partno && (d->flags & PARTS_ALONE)))
		return;
	op_begin(d, "react to %s of %.16s, %llu", ev.action, ev.device,
		 (unsigned long long)ev.diskseq);
	fd = open_disk(d, ev.partno, O_RDONLY | O_NONBLOCK);
	if (fd >= 0) {
		number = number_by_fd(d, fd);
		/* a partition may be one that was there before */
		if (!ev.partno && ev.has_diskseq && number < ev.diskseq)
			broken(8, d, "%llu was announced, and the ioctl gives %llu",
			       (unsigned long long)ev.diskseq, (unsigned long long)number);
		if (!ev.partno)
			look_inside(d, fd);
		close(fd);
	}
	op_end(fd < 0 ? errno : 0);
}

/* Rule 11: whoever has read the number is woken when it is another one. */
void poll_step(struct worker *w)
{
	struct disk *d = any_disk();
	struct pollfd pfd = { .events = POLLPRI };
	char path[64], line[32];
	uint64_t number, now;
	ssize_t len;

	snprintf(path, sizeof(path), "/sys/block/%s/diskseq", d->name);
	pfd.fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pfd.fd < 0)
		return;
	op_begin(d, "poll sysfs");
	len = pread(pfd.fd, line, sizeof(line) - 1, 0);
	if (len > 0) {
		line[len] = '\0';
		number = strtoull(line, NULL, 10);
		/* another number by another file: it must come to this one, too */
		if (!poll(&pfd, 1, 50 + draw(200))) {
			now = number_by_name(d);
			if (now > number && !poll(&pfd, 1, 10000))
				broken(11, d, "poll() does not return, the number went from %llu to %llu",
				       (unsigned long long)number, (unsigned long long)now);
		} else {
			len = pread(pfd.fd, line, sizeof(line) - 1, 0);
			if (len < 0 && errno != ENODEV)
				broken(11, d, "read: %s", strerror(errno));
		}
	}
	op_end(0);
	close(pfd.fd);
}
