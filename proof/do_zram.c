// SPDX-License-Identifier: GPL-2.0
/*
 * zram: a process that has a device for itself, and several that set and reset the
 * size of another one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "zram_dev.h"

#define SECTORS		(SIZE_BYTES / SECTOR)
#define FIRST		256	/* sectors before it are for a table */

static struct disk *d;
static struct zram z;
static bool has_size;
static uint64_t stamp[SECTORS];		/* 0: nothing was written there */
static uint64_t serial;

static void names(struct zram *zram, const struct disk *disk)
{
	zram->index = atoi(disk->name + 4);
	zram->fd = -1;
	snprintf(zram->name, sizeof(zram->name), "%s", disk->name);
}

static void forget(void)
{
	memset(stamp, 0, sizeof(stamp));
}

void zram_alone_begin(struct worker *w)
{
	int err;

	d = &fuzz->disk[w->arg];
	op_begin(d, "take over");
	/* it was killed between the two */
	if (!disk_exists(d->name)) {
		zram_create(&z);
		if (strcmp(z.name, d->name))
			die("%s is made instead of %s", z.name, d->name);
	}
	names(&z, d);
	owe(d, disk_has_size(d->name));
	err = op_end(zram_reset(&z));
	if (err)
		broken(15, d, "reset: %s", strerror(err));
	has_size = false;
	forget();
}

static void set_size(void)
{
	uint64_t before = number_by_name(d);
	int err;

	op_begin(d, "disksize");
	owe(d, 1);
	err = zram_set_size(&z);
	settle(d, 1, err);
	op_end(err);
	if (err != (has_size ? EBUSY : 0))
		broken(has_size ? 12 : 15, d, "disksize: %s", strerror(err));
	if (!err != (number_by_name(d) > before))
		broken(err ? 12 : 3, d, "has %llu, before disksize it had %llu",
		       (unsigned long long)number_by_name(d), (unsigned long long)before);
	if (!err)
		has_size = true;
}

static void reset(void)
{
	uint64_t before = number_by_name(d);
	bool claimed = !draw(3);
	int fd = -1, err;

	if (claimed)
		fd = open_disk(d, 0, O_RDWR | O_EXCL);
	op_begin(d, "reset%s", fd < 0 ? "" : " while it is claimed");
	owe(d, has_size);
	err = zram_reset(&z);
	settle(d, has_size, err);
	op_end(err);
	if (fd >= 0 && err != EBUSY)
		broken(12, d, "reset of a device that is claimed: %s", strerror(err));
	if (fd >= 0)
		close(fd);
	/* nobody else has it open for long */
	else if (err && !claimed)
		broken(15, d, "reset: %s", strerror(err));
	if ((!err && has_size) != (number_by_name(d) > before))
		broken(err ? 12 : 3, d, "has %llu, before reset it had %llu",
		       (unsigned long long)number_by_name(d), (unsigned long long)before);
	if (!err) {
		has_size = false;
		forget();
	}
}

static void refused(void)
{
	static const struct {
		const char *file, *value;
	} wrong[] = {
		{ "disksize", "0" }, { "disksize", "many" }, { "reset", "0" },
		{ "reset", "no" }, { "comp_algorithm", "none-such" },
	};
	unsigned int which = draw(5);
	uint64_t before = number_by_name(d);
	int err;

	op_begin(d, "%s: %s", wrong[which].file, wrong[which].value);
	err = op_end(zram_write(&z, wrong[which].file, wrong[which].value));
	if (!err)
		broken(12, d, "%s took %s", wrong[which].file, wrong[which].value);
	if (number_by_name(d) != before)
		broken(12, d, "has another number after what was refused");
}

static void write_some(void)
{
	uint64_t s = FIRST + draw(SECTORS - FIRST);
	bool direct = !draw(3);
	static char buf[4096] __aligned(4096);
	ssize_t done = -1;
	int fd;

	/* a page at a time, as the driver has it */
	s &= ~7ULL;
	op_begin(d, "write at %llu%s", (unsigned long long)s, direct ? ", direct" : "");
	fd = open_disk(d, 0, O_RDWR | (direct ? O_DIRECT : 0));
	if (fd >= 0) {
		memset(buf, 0, sizeof(buf));
		image_sector('z', ++serial, NULL, buf);
		done = pwrite(fd, buf, sizeof(buf), s * SECTOR);
	}
	op_end(done < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
	if ((done == sizeof(buf)) != has_size)
		broken(14, d, "%zd bytes written to a device that %s", done,
		       has_size ? "has a size" : "has none");
	else if (done > 0)
		stamp[s] = serial;
}

static void read_some(void)
{
	uint64_t s = (FIRST + draw(SECTORS - FIRST)) & ~7ULL;
	static char buf[4096] __aligned(4096);
	bool direct = draw(2);
	char want[SECTOR] = "";
	ssize_t len = -1;
	int fd;

	op_begin(d, "read at %llu%s", (unsigned long long)s, direct ? ", direct" : "");
	fd = open_disk(d, 0, O_RDONLY | (direct ? O_DIRECT : 0));
	if (fd >= 0)
		len = pread(fd, buf, sizeof(buf), s * SECTOR);
	op_end(len < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
	if (!has_size) {
		if (len > 0)
			broken(8, d, "%zd bytes were read from a device without a size", len);
		return;
	}
	memset(want, 0, sizeof(want));
	if (stamp[s])
		image_sector('z', stamp[s], NULL, want);
	if (len != sizeof(buf))
		broken(14, d, "%zd bytes were read", len);
	else if (memcmp(buf, want, SECTOR))
		broken(stamp[s] ? 14 : 8, d, "at %llu there is '%.40s', but '%.40s' was written",
		       (unsigned long long)s, buf, want);
}

static void partitions(void)
{
	uint64_t before = number_by_name(d);
	int fd;

	if (!has_size)
		return;
	fd = open_disk(d, 0, O_RDWR);
	if (fd < 0)
		return;
	op_begin(d, "write a table, BLKRRPART");
	image_table(fd, 0, TABLE_MSDOS, 1 + draw(3), "z");
	scan_and_close(d, fd, before);
}

static void replace(void)
{
	int fd, err, index = -1;
	char line[16] = "";

	op_begin(d, "hot_remove");
	/* its medium may have been announced to be over */
	owe(d, has_size);
	err = op_end(zram_hot_remove(&z));
	if (err) {
		settle(d, has_size, err);
		if (err != EBUSY)
			broken(15, d, "hot_remove: %s", strerror(err));
		return;
	}
	has_size = false;
	forget();
	op_begin(d, "hot_add");
	fd = open("/sys/class/zram-control/hot_add", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, line, sizeof(line) - 1) < 0)
		die("hot_add: %s", strerror(errno));
	close(fd);
	index = atoi(line);
	op_end(0);
	if (index != z.index)
		die("zram%d is made instead of %s", index, z.name);
}

void zram_alone_step(struct worker *w)
{
	switch (draw(16)) {
	case 0 ... 3:
		set_size();
		break;
	case 4 ... 5:
		reset();
		break;
	case 6:
		refused();
		break;
	case 7 ... 9:
		write_some();
		break;
	case 10 ... 13:
		read_some();
		break;
	case 14:
		partitions();
		break;
	case 15:
		replace();
		break;
	}
}

void zram_shared_step(struct worker *w)
{
	struct disk *disk = &fuzz->disk[w->arg];
	unsigned int way = draw(6);
	struct zram shared;
	int err = 0, fd;
	char buf[4096];

	names(&shared, disk);
	switch (way) {
	case 0 ... 1:
		op_begin(disk, "disksize");
		owe(disk, 2);
		err = zram_set_size(&shared);
		settle(disk, 2, err);
		break;
	case 2 ... 3:
		op_begin(disk, "reset");
		err = zram_reset(&shared);
		break;
	case 4:
		op_begin(disk, "read");
		fd = open_disk(disk, 0, O_RDONLY);
		err = fd < 0 ? errno : called(pread(fd, buf, sizeof(buf), draw(200) * 4096));
		close(fd);
		break;
	case 5:
		op_begin(disk, "write");
		fd = open_disk(disk, 0, O_RDWR);
		memset(buf, 'w', sizeof(buf));
		err = fd < 0 ? errno : called(pwrite(fd, buf, sizeof(buf), draw(200) * 4096));
		if (!err && draw(2))
			fsync(fd);
		close(fd);
		break;
	}
	op_end(err);
	number_by_name(disk);
}

/* Nobody else is left. */
void zram_rest(struct disk *disk)
{
	struct zram left;

	names(&left, disk);
	if (disk_exists(disk->name) && zram_reset(&left))
		broken(14, disk, "cannot be reset");
}
