// SPDX-License-Identifier: GPL-2.0
/*
 * Device mapper: a disk has the number that it was made with until it is removed,
 * whatever its table says.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "dm_dev.h"
#include "fuzz.h"

#define NAME		"diskseq-fuzz"

static struct disk *d;
static struct loop lo;
static int control = -1, image;
static enum state { NONE, MADE, LOADED, RUNNING } state;
static uint64_t first;		/* sector that the table begins at */

static int dm(unsigned long command, unsigned int flags, const char *table)
{
	return dm_call(control, NAME, command, flags, table ? "linear" : NULL, IMAGE_SECTORS,
		       table, NULL);
}

static int load(uint64_t sector)
{
	char table[48];

	snprintf(table, sizeof(table), "%s %llu", lo.path, (unsigned long long)sector);
	return dm(DM_TABLE_LOAD, 0, table);
}

static void open_control(void)
{
	control = open(DM_CONTROL, O_RDWR | O_CLOEXEC);
	if (control < 0)
		die(DM_CONTROL ": %s", strerror(errno));
}

/* Who was killed may have left it suspended: those who read it wait for that. */
static void remove_any(void)
{
	dm(DM_DEV_SUSPEND, 0, NULL);
	while (dm(DM_DEV_REMOVE, 0, NULL) == EBUSY)
		poll(NULL, 0, 1);
}

void dm_begin(struct worker *w)
{
	d = disk_find("dm-0");
	open_control();
	snprintf(lo.name, sizeof(lo.name), "%s", fuzz->disk[w->arg].name);
	snprintf(lo.path, sizeof(lo.path), "/dev/%s", lo.name);
	lo.fd = -1;
	op_begin(d, "take over");
	remove_any();
	loop_reopen(&lo);
	ioctl(lo.fd, LOOP_CLR_FD);
	loop_close(&lo);
	while (disk_has_size(lo.name))
		poll(NULL, 0, 1);
	loop_reopen(&lo);
	image = image_create('d', 2);
	if (loop_configure(&lo, image, 0))
		die("%s: attach: %s", lo.name, strerror(errno));
	op_end(0);
	state = NONE;
}

static void create(void)
{
	int err;

	op_begin(d, "create");
	/* the number of a disk that is registered by its first table, if it gets one */
	atomic_inc(&fuzz->silent, 1);
	err = op_end(dm(DM_DEV_CREATE, 0, NULL));
	if (err != (state == NONE ? 0 : EBUSY))
		broken(15, d, "create: %s", strerror(err));
	if (!err)
		state = MADE;
}

static void load_and_resume(void)
{
	uint64_t sector = draw(2) * IMAGE_SECTORS, before = number_by_name(d);
	int err;

	op_begin(d, "table at %llu, resume", (unsigned long long)sector);
	err = load(sector) ?: dm(DM_DEV_SUSPEND, 0, NULL);
	op_end(err);
	if (err != (state == NONE ? ENXIO : 0))
		broken(15, d, "table: %s", strerror(err));
	if (err)
		return;
	if (state == MADE)
		atomic_inc(&fuzz->silent, -1);
	else if (number_by_name(d) != before)
		broken(3, d, "a new table took a number");
	state = RUNNING;
	first = sector;
}

static void suspend(void)
{
	uint64_t before = number_by_name(d);
	int err;

	if (state != RUNNING)
		return;
	op_begin(d, "suspend, resume");
	err = dm(DM_DEV_SUSPEND, DM_SUSPEND_FLAG, NULL);
	poll(NULL, 0, draw(20));
	err = dm(DM_DEV_SUSPEND, 0, NULL) ?: err;
	op_end(err);
	if (err || number_by_name(d) != before)
		broken(3, d, "suspend, resume: %s, the number goes from %llu to %llu", strerror(err),
		       (unsigned long long)before, (unsigned long long)number_by_name(d));
}

static void refused(void)
{
	uint64_t before = number_by_name(d);
	int err;

	op_begin(d, "table without a disk");
	err = op_end(dm(DM_TABLE_LOAD, 0, "/dev/null 0"));
	if (!err || number_by_name(d) != before)
		broken(12, d, "a wrong table: %s, the number goes from %llu to %llu", strerror(err),
		       (unsigned long long)before, (unsigned long long)number_by_name(d));
}

static void read_some(void)
{
	uint64_t s = 100 + draw(300);
	static char buf[SECTOR] __aligned(4096);
	char want[SECTOR];
	ssize_t len = -1;
	int fd;

	if (state != RUNNING)
		return;
	op_begin(d, "read sector %llu", (unsigned long long)s);
	/* what is cached is of any table */
	fd = open_disk(d, 0, O_RDONLY | O_DIRECT);
	if (fd >= 0)
		len = pread(fd, buf, SECTOR, s * SECTOR);
	op_end(len < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
	image_sector('d', first + s, NULL, want);
	if (len != SECTOR || memcmp(buf, want, SECTOR))
		broken(8, d, "sector %llu reads as '%.40s'", (unsigned long long)s, buf);
}

static void removed(void)
{
	int err;

	op_begin(d, "remove");
	err = op_end(dm(DM_DEV_REMOVE, 0, NULL));
	/* or somebody looks at it */
	if (err != EBUSY && err != (state == NONE ? ENXIO : 0))
		broken(15, d, "remove: %s", strerror(err));
	if (!err)
		state = NONE;
}

void dm_step(struct worker *w)
{
	switch (draw(12)) {
	case 0 ... 1:
		create();
		break;
	case 2 ... 4:
		load_and_resume();
		break;
	case 5:
		suspend();
		break;
	case 6:
		refused();
		break;
	case 7 ... 9:
		read_some();
		break;
	case 10:
		removed();
		break;
	case 11:
		poll(NULL, 0, draw(20));
		break;
	}
}

void dm_end(struct worker *w)
{
	op_begin(d, "remove for good");
	while (dm(DM_DEV_REMOVE, 0, NULL) == EBUSY)
		poll(NULL, 0, 1);
	op_end(0);
}

/* Nobody else is left. */
void dm_rest(struct disk *disk)
{
	open_control();
	remove_any();
	close(control);
}
