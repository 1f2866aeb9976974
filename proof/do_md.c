// SPDX-License-Identifier: GPL-2.0
/*
 * md: a mirror of two loop devices that have the same image, of one process, and
 * another one that two processes start and stop.
 *
 * A disk that is added again while its directory of the last time is still being removed
 * has the kernel warn, with or without the series: whoever adds or stops does so alone,
 * and waits for that.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/major.h>
#include <linux/raid/md_u.h>

#include "fuzz.h"
#include "md_dev.h"

#define FIRST_BELOW	4	/* of the loop devices */
#define WRITE_FIRST	200
#define WRITE_COUNT	200

static struct disk *d;
static int minor_nr, below, lock;
static char node[32];
static char id;
static enum state { NONE, MADE, RUNNING } state;
static int fd = -1;
static struct loop lo[2];
static int image;
static uint64_t stamp[IMAGE_SECTORS];
static uint64_t serial;

static void lock_it(short type)
{
	struct flock wanted = { .l_type = type, .l_start = minor_nr, .l_len = 1 };

	while (fcntl(lock, F_SETLKW, &wanted))
		;
}

static int open_array(void)
{
	return open(node, O_RDWR | O_CLOEXEC);
}

/* Until the kernel has removed what it left of the last use. */
static void wait_for_dirs(void)
{
	char path[64];
	int i;

	for (i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/sys/block/%s/md/dev-%s", d->name, lo[i].name);
		while (!access(path, F_OK))
			poll(NULL, 0, 1);
	}
}

/* Gone, or what cannot be stopped since others have it open is left. */
static int stop(void)
{
	int array = open_array(), err;

	if (array < 0)
		return errno;
	lock_it(F_WRLCK);
	err = called(ioctl(array, STOP_ARRAY, NULL));
	close(array);
	lock_it(F_UNLCK);
	return err;
}

static void attach_below(void)
{
	int i;

	for (i = 0; i < 2; i++) {
		snprintf(lo[i].name, sizeof(lo[i].name), "%s", fuzz->disk[below + i].name);
		snprintf(lo[i].path, sizeof(lo[i].path), "/dev/%s", lo[i].name);
		lo[i].fd = -1;
		loop_reopen(&lo[i]);
		loop_configure(&lo[i], image, 0);
	}
}

/* In any state. To open it while it is on its way out would make the next one. */
static void stop_any(void)
{
	int64_t end;

	owe(d, 1);
	while (disk_exists(d->name)) {
		end = now_ms() + (stop() ? 1 : limit_ms() / 4);
		while (disk_exists(d->name) && now_ms() < end)
			poll(NULL, 0, 1);
	}
}

/* Of the array, and the disks below it. */
static void take_over(void)
{
	int i;

	op_begin(d, "take over");
	stop_any();
	for (i = 0; i < 2; i++) {
		loop_reopen(&lo[i]);
		ioctl(lo[i].fd, LOOP_CLR_FD);
		loop_close(&lo[i]);
		while (disk_has_size(lo[i].name))
			poll(NULL, 0, 1);
		loop_reopen(&lo[i]);
		if (loop_configure(&lo[i], image, 0))
			die("%s: attach: %s", lo[i].name, strerror(errno));
	}
	op_end(0);
}

/* A node of the caller's own makes the array when it is opened. */
static void use_array(struct disk *disk, int caller)
{
	d = disk;
	minor_nr = atoi(d->name + 2);
	snprintf(node, sizeof(node), "/dev/.fuzz-md%d-%d", minor_nr, caller);
	unlink(node);
	if (mknod(node, S_IFBLK | 0600, makedev(MD_MAJOR, minor_nr)))
		die("%s: %s", node, strerror(errno));
	lock = open("/tmp/fuzz-md-lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (lock < 0)
		die("/tmp/fuzz-md-lock: %s", strerror(errno));
}

void md_begin(struct worker *w)
{
	char name[16];
	int i;

	snprintf(name, sizeof(name), "md%d", w->arg);
	use_array(disk_find(name), w - fuzz->worker);
	below = FIRST_BELOW + (minor_nr - 300) * 2;
	id = 'A' + w->life % 26;
	image = image_create(id, 1);
	for (i = 0; i < IMAGE_SECTORS; i++)
		stamp[i] = i;
	attach_below();
	if (minor_nr == 300)
		take_over();
	state = NONE;
}

/*
 * From the open on alone: who assembles an array that was stopped since leaves one that
 * nobody can open or stop any more, with or without the series.
 */
static int open_and_make(int level)
{
	int err;

	lock_it(F_WRLCK);
	fd = open_array();
	err = fd < 0 ? errno : md_set_info(fd, level, 2);
	if (!err) {
		wait_for_dirs();
		err = md_add_disk(fd, lo[0].fd, 0) ?: md_add_disk(fd, lo[1].fd, 1);
	}
	lock_it(F_UNLCK);
	return err;
}

static void assemble(void)
{
	int err, level = draw(6) ? 1 : 99;

	if (state != NONE)
		return;
	op_begin(d, "assemble, level %d", level);
	/* the disk of the last time may still be on its way out */
	while ((err = open_and_make(level)) && fd < 0)
		poll(NULL, 0, 1);
	op_end(err);
	if (err)
		broken(15, d, "assembly: %s", strerror(err));
	state = MADE;
	if (level == 1)
		return;
	op_begin(d, "RUN_ARRAY, no such level");
	err = op_end(md_run(fd));
	if (!err)
		broken(12, d, "an array of level 99 runs");
}

static void start(void)
{
	uint64_t before;
	int err;

	if (state == NONE)
		return;
	before = number_by_fd(d, fd);
	op_begin(d, "RUN_ARRAY");
	owe(d, 1);
	err = md_run(fd);
	settle(d, 1, err);
	op_end(err);
	if (state == RUNNING && !err)
		broken(12, d, "it was started twice");
	expect_number(d, fd, before, !err);
	if (err)
		return;
	state = RUNNING;
	medium_is(number_by_fd(d, fd), id);
}

static void image_check(void)
{
	uint64_t s;

	for (s = WRITE_FIRST; s < WRITE_FIRST + WRITE_COUNT; s++)
		if (!sector_is(image, s, id, stamp[s], NULL))
			broken(14, d, "sector %llu is not what was written before the stop",
			       (unsigned long long)s);
}

static void stop_it(void)
{
	uint64_t before;
	int err;

	if (state == NONE)
		return;
	before = number_by_fd(d, fd);
	op_begin(d, "STOP_ARRAY");
	owe(d, state == RUNNING);
	lock_it(F_WRLCK);
	err = called(ioctl(fd, STOP_ARRAY, NULL));
	lock_it(F_UNLCK);
	settle(d, state == RUNNING, err);
	op_end(err);
	/* somebody looks at it */
	if (err && err != EBUSY)
		broken(15, d, "STOP_ARRAY: %s", strerror(err));
	if (err) {
		expect_number(d, fd, before, false);
		return;
	}
	if (state == RUNNING && number_by_fd(d, fd) <= before)
		broken(8, d, "it is stopped, and has %llu as before", (unsigned long long)before);
	close(fd);
	fd = -1;
	if (state == RUNNING)
		image_check();
	state = NONE;
}

static void read_only(void)
{
	uint64_t before;
	int err;

	if (state == NONE)
		return;
	before = number_by_fd(d, fd);
	op_begin(d, "STOP_ARRAY_RO, RESTART_ARRAY_RW");
	err = called(ioctl(fd, STOP_ARRAY_RO, NULL));
	if (!err)
		err = called(ioctl(fd, RESTART_ARRAY_RW, NULL));
	op_end(err);
	expect_number(d, fd, before, false);
}

static void refused(void)
{
	uint64_t before;
	int err, i;

	if (state == NONE)
		return;
	before = number_by_fd(d, fd);
	op_begin(d, "add a disk that is in use");
	i = draw(2);
	err = op_end(md_add_disk(fd, lo[i].fd, i));
	if (!err)
		broken(12, d, "a disk was added twice");
	expect_number(d, fd, before, false);
}

static void write_some(void)
{
	uint64_t s = WRITE_FIRST + draw(WRITE_COUNT);
	char buf[SECTOR];
	ssize_t len;

	if (state == NONE)
		return;
	op_begin(d, "write sector %llu", (unsigned long long)s);
	image_sector(id, ++serial << 16 | s, NULL, buf);
	len = pwrite(fd, buf, SECTOR, s * SECTOR);
	if (len == SECTOR && fsync(fd))
		broken(14, d, "fsync: %s", strerror(errno));
	op_end(len < 0 ? errno : 0);
	if ((len == SECTOR) != (state == RUNNING))
		broken(14, d, "%zd bytes were written", len);
	else if (len > 0)
		stamp[s] = serial << 16 | s;
}

static void read_some(void)
{
	uint64_t s = WRITE_FIRST + draw(WRITE_COUNT);
	char want[SECTOR], buf[SECTOR] = "";
	ssize_t len;

	if (state == NONE)
		return;
	op_begin(d, "read sector %llu", (unsigned long long)s);
	len = pread(fd, buf, SECTOR, s * SECTOR);
	op_end(len < 0 ? errno : 0);
	image_sector(id, stamp[s], NULL, want);
	if (state == RUNNING && (len != SECTOR || memcmp(buf, want, SECTOR)))
		broken(8, d, "sector %llu reads as '%.40s'", (unsigned long long)s, buf);
	if (state != RUNNING && len > 0)
		broken(8, d, "%zd bytes were read from an array that does not run", len);
}

void md_alone_step(struct worker *w)
{
	switch (draw(16)) {
	case 0 ... 3:
		assemble();
		break;
	case 4 ... 7:
		start();
		break;
	case 8 ... 9:
		stop_it();
		break;
	case 10:
		read_only();
		break;
	case 11:
		refused();
		break;
	case 12 ... 13:
		write_some();
		break;
	case 14 ... 15:
		read_some();
		break;
	}
}

void md_alone_end(struct worker *w)
{
	op_begin(d, "stop for good");
	close(fd);
	fd = -1;
	stop_any();
	op_end(0);
}

/* Nobody else is left. */
void md_rest(struct disk *disk)
{
	use_array(disk, MAX_WORKERS);
	stop_any();
	close(lock);
}

void md_shared_step(struct worker *w)
{
	unsigned int way = draw(8), sleep = draw(10);
	int err = 0;
	char buf[SECTOR];

	if (way < 2) {
		op_begin(d, "assemble");
		err = op_end(open_and_make(1));
	} else {
		op_begin(d, "open");
		fd = open_array();
		op_end(fd < 0 ? errno : 0);
	}
	if (fd < 0) {
		poll(NULL, 0, 1);
		return;
	}
	switch (way) {
	case 2 ... 3:
		op_begin(d, "RUN_ARRAY");
		owe(d, 2);
		err = md_run(fd);
		settle(d, 2, err);
		break;
	case 4 ... 5:
		op_begin(d, "STOP_ARRAY");
		lock_it(F_WRLCK);
		err = called(ioctl(fd, STOP_ARRAY, NULL));
		close(fd);
		lock_it(F_UNLCK);
		op_end(err);
		fd = -1;
		return;
	case 6:
		op_begin(d, "read");
		err = called(pread(fd, buf, SECTOR, draw(300) * SECTOR));
		break;
	case 7:
		op_begin(d, "write");
		memset(buf, 'w', SECTOR);
		err = called(pwrite(fd, buf, SECTOR, (200 + draw(100)) * SECTOR));
		break;
	}
	if (way >= 2)
		op_end(err);
	poll(NULL, 0, 1 + sleep);
	close(fd);
	fd = -1;
}
