// SPDX-License-Identifier: GPL-2.0
/*
 * What gives a loop device a new number and what does not (rule 3), and what
 * each of these operations owes to those who watch the disk (rules 5, 7, 8, 11).
 *
 * The partitions of the medium have tests of their own (partitions.c), and so
 * have operations that fail (refused.c).
 */
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

#define KEY			"key"
#define OTHER_KEY		"other key"

struct disk {
	struct loop lo;
	struct loop below;	/* where the backing file has to be a disk */
	int a, b;		/* images */
	int second;		/* the disk, opened once more */
};

static void disk_create(struct disk *d)
{
	loop_create(&d->lo);
	d->a = image_create('a', 2);
	d->b = image_create('b', 2);
	d->second = -1;
}

static void disk_destroy(struct disk *d)
{
	if (d->second >= 0)
		close(d->second);
	loop_destroy(&d->lo);
	loop_destroy(&d->below);
	close(d->a);
	close(d->b);
}

static int set_status64(struct disk *d, void (*edit)(struct loop_info64 *))
{
	struct loop_info64 info;

	loop_get_status(&d->lo, &info);
	edit(&info);
	return ioctl(d->lo.fd, LOOP_SET_STATUS64, &info);
}

static int set_status(struct disk *d, int offset, const char *key)
{
	struct loop_info info = { .lo_offset = offset };

	if (key) {
		info.lo_encrypt_type = LO_CRYPT_XOR;
		info.lo_encrypt_key_size = strlen(key);
		memcpy(info.lo_encrypt_key, key, strlen(key));
	}
	return ioctl(d->lo.fd, LOOP_SET_STATUS, &info);
}

static void use_key(struct loop_info64 *info, const char *key)
{
	info->lo_encrypt_type = LO_CRYPT_XOR;
	info->lo_encrypt_key_size = strlen(key);
	memset(info->lo_encrypt_key, 0, LO_KEY_SIZE);
	memcpy(info->lo_encrypt_key, key, strlen(key));
}

static void edit_offset(struct loop_info64 *info)
{
	info->lo_offset = IMAGE_BYTES;
}

static void edit_size_limit(struct loop_info64 *info)
{
	info->lo_sizelimit = IMAGE_BYTES;
}

static void edit_key(struct loop_info64 *info)
{
	use_key(info, KEY);
}

static void edit_other_key(struct loop_info64 *info)
{
	use_key(info, OTHER_KEY);
}

static void edit_no_transfer(struct loop_info64 *info)
{
	info->lo_encrypt_type = LO_CRYPT_NONE;
	info->lo_encrypt_key_size = 0;
}

static void edit_file_name(struct loop_info64 *info)
{
	strcpy((char *)info->lo_file_name, "another name");
}

static void edit_autoclear(struct loop_info64 *info)
{
	info->lo_flags |= LO_FLAGS_AUTOCLEAR;
}

static void edit_partscan(struct loop_info64 *info)
{
	info->lo_flags |= LO_FLAGS_PARTSCAN;
}

static void edit_nothing(struct loop_info64 *info)
{
	(void)info;
}

/* What a disk is before the operation. */

static void unbound(struct disk *d)
{
	(void)d;
}

static void bound(struct disk *d)
{
	loop_attach(&d->lo, d->a, 0);
}

static void bound_partscan(struct disk *d)
{
	loop_attach(&d->lo, d->a, LO_FLAGS_PARTSCAN);
}

static void bound_read_only(struct disk *d)
{
	loop_attach(&d->lo, d->a, LO_FLAGS_READ_ONLY);
}

static void bound_read_only_partscan(struct disk *d)
{
	loop_attach(&d->lo, d->a, LO_FLAGS_READ_ONLY | LO_FLAGS_PARTSCAN);
}

static void bound_offset(struct disk *d)
{
	bound(d);
	if (set_status64(d, edit_offset))
		die("LOOP_SET_STATUS64: %s", strerror(errno));
}

static void bound_xor(struct disk *d)
{
	bound(d);
	if (set_status64(d, edit_key))
		die("LOOP_SET_STATUS64: %s", strerror(errno));
}

static void bound_autoclear(struct disk *d)
{
	loop_attach(&d->lo, d->a, LO_FLAGS_AUTOCLEAR);
}

static void bound_clear_pending(struct disk *d)
{
	bound(d);
	d->second = loop_open(&d->lo, O_RDONLY);
	if (ioctl(d->lo.fd, LOOP_CLR_FD))
		die("LOOP_CLR_FD: %s", strerror(errno));
}

static void bound_table(struct disk *d)
{
	image_table(d->a, 0, TABLE_GPT, 2, "a");
	bound_partscan(d);
}

static void bound_blkpg(struct disk *d)
{
	bound(d);
	if (blkpg_add(d->lo.fd, 1, 64, 64))
		die("BLKPG: %s", strerror(errno));
}

static void bound_disk(struct disk *d)
{
	loop_create(&d->below);
	loop_attach(&d->below, d->a, 0);
	loop_attach(&d->lo, d->below.fd, 0);
}

/* Operations that give it another medium. */

static int op_set_fd(struct disk *d)
{
	return ioctl(d->lo.fd, LOOP_SET_FD, d->a);
}

static int op_configure(struct disk *d)
{
	return loop_configure(&d->lo, d->a, 0);
}

static int op_configure_partscan(struct disk *d)
{
	return loop_configure(&d->lo, d->a, LO_FLAGS_PARTSCAN);
}

static int op_configure_offset(struct disk *d)
{
	struct loop_config config = {
		.fd = d->a,
		.block_size = 4096,
		.info.lo_offset = IMAGE_BYTES,
		.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_DIRECT_IO,
	};

	return ioctl(d->lo.fd, LOOP_CONFIGURE, &config);
}

static int op_configure_xor(struct disk *d)
{
	struct loop_config config = { .fd = d->a };

	use_key(&config.info, KEY);
	return ioctl(d->lo.fd, LOOP_CONFIGURE, &config);
}

static int op_change_fd(struct disk *d)
{
	return ioctl(d->lo.fd, LOOP_CHANGE_FD, d->b);
}

static int op_status_offset(struct disk *d)
{
	return set_status(d, IMAGE_BYTES, NULL);
}

static int op_status_offset_back(struct disk *d)
{
	return set_status(d, 0, NULL);
}

static int op_status_transfer(struct disk *d)
{
	return set_status(d, 0, KEY);
}

static int op_status_key(struct disk *d)
{
	return set_status(d, 0, OTHER_KEY);
}

static int op_status_no_transfer(struct disk *d)
{
	return set_status(d, 0, NULL);
}

static int op_status64_offset(struct disk *d)
{
	return set_status64(d, edit_offset);
}

static int op_status64_transfer(struct disk *d)
{
	return set_status64(d, edit_key);
}

static int op_status64_key(struct disk *d)
{
	return set_status64(d, edit_other_key);
}

static int op_status64_no_transfer(struct disk *d)
{
	return set_status64(d, edit_no_transfer);
}

static int op_detach(struct disk *d)
{
	loop_detach(&d->lo);
	return 0;
}

static int op_last_close(struct disk *d)
{
	loop_close(&d->lo);
	if (d->second >= 0)
		close(d->second);
	d->second = -1;
	return 0;
}

/* Operations that leave it its medium. */

static int op_grow(struct disk *d)
{
	return ftruncate(d->a, 3 * IMAGE_BYTES) ?:
	       ioctl(d->lo.fd, LOOP_SET_CAPACITY);
}

static int op_set_capacity(struct disk *d)
{
	return ioctl(d->lo.fd, LOOP_SET_CAPACITY);
}

static int op_size_limit(struct disk *d)
{
	return set_status64(d, edit_size_limit);
}

static int op_same_status(struct disk *d)
{
	return set_status(d, 0, NULL);
}

static int op_same_status64(struct disk *d)
{
	return set_status64(d, edit_nothing);
}

static int op_same_key(struct disk *d)
{
	return set_status(d, 0, KEY);
}

static int op_same_key64(struct disk *d)
{
	return set_status64(d, edit_key);
}

static int op_file_name(struct disk *d)
{
	return set_status64(d, edit_file_name);
}

static int op_autoclear(struct disk *d)
{
	return set_status64(d, edit_autoclear);
}

static int op_partscan(struct disk *d)
{
	image_table(d->a, 0, TABLE_GPT, 2, "a");
	return set_status64(d, edit_partscan);
}

static int op_clear_later(struct disk *d)
{
	d->second = loop_open(&d->lo, O_RDONLY);
	return ioctl(d->lo.fd, LOOP_CLR_FD);
}

static int op_block_size(struct disk *d)
{
	return ioctl(d->lo.fd, LOOP_SET_BLOCK_SIZE, 4096L);
}

static int op_direct_io(struct disk *d)
{
	return ioctl(d->lo.fd, LOOP_SET_DIRECT_IO, 1L) ?:
	       ioctl(d->lo.fd, LOOP_SET_DIRECT_IO, 0L);
}

static int op_read_only(struct disk *d)
{
	int on = 1, off = 0;

	return ioctl(d->lo.fd, BLKROSET, &on) ?: ioctl(d->lo.fd, BLKROSET, &off);
}

static int op_rescan(struct disk *d)
{
	return ioctl(d->lo.fd, BLKRRPART);
}

static int op_blkpg_add(struct disk *d)
{
	return blkpg_add(d->lo.fd, 1, 64, 64);
}

static int op_blkpg_resize(struct disk *d)
{
	return blkpg_resize(d->lo.fd, 1, 64, 128);
}

static int op_blkpg_del(struct disk *d)
{
	return blkpg_del(d->lo.fd, 1);
}

static int op_flush(struct disk *d)
{
	return ioctl(d->lo.fd, BLKFLSBUF);
}

static int op_write(struct disk *d)
{
	char buf[SECTOR] = "written";

	return pwrite(d->lo.fd, buf, SECTOR, 0) != SECTOR || fsync(d->lo.fd);
}

static int op_open_close(struct disk *d)
{
	loop_reopen(&d->lo);
	return close(loop_open(&d->lo, O_RDWR | O_EXCL));
}

/* What the tests of new media need to know. */

#define DISK			disk

/* Of a variant: it needs the loop driver's transfers. */
#define KIND_XOR		1

static const char *driver_create(struct disk *d, int kind)
{
	const char *missing = diskseq_missing();

	if (missing)
		return missing;
	disk_create(d);
	if (kind == KIND_XOR && !loop_has_xor(&d->lo)) {
		disk_destroy(d);
		return "no loop transfers: removed in 5.16";
	}
	return NULL;
}

static void driver_destroy(struct disk *d)
{
	disk_destroy(d);
}

static const char *driver_name(const struct disk *d)
{
	return d->lo.name;
}

static int driver_fd(const struct disk *d)
{
	return d->lo.fd;
}

static int driver_open(const struct disk *d)
{
	return loop_open(&d->lo, O_RDONLY);
}

static void driver_close(struct disk *d)
{
	close(d->lo.fd);
	close(d->second);
}

static uint64_t driver_last_number(const struct disk *d)
{
	return diskseq_sysfs(d->lo.name);
}

#include "new_medium.h"

FIXTURE_VARIANT_ADD(new_medium, set_fd) {
	.prepare = unbound,
	.operate = op_set_fd,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, configure) {
	.prepare = unbound,
	.operate = op_configure,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, configure_partscan) {
	.prepare = unbound,
	.operate = op_configure_partscan,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, configure_offset) {
	.prepare = unbound,
	.operate = op_configure_offset,
	.bytes = IMAGE_BYTES,
	.image = 'a',
	.offset = IMAGE_SECTORS,
};

FIXTURE_VARIANT_ADD(new_medium, configure_transfer) {
	.prepare = unbound,
	.operate = op_configure_xor,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
	.key = KEY,
	.kind = KIND_XOR,
};

FIXTURE_VARIANT_ADD(new_medium, change_fd) {
	.prepare = bound_read_only,
	.operate = op_change_fd,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'b',
};

FIXTURE_VARIANT_ADD(new_medium, change_fd_partscan) {
	.prepare = bound_read_only_partscan,
	.operate = op_change_fd,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'b',
};

FIXTURE_VARIANT_ADD(new_medium, status_offset) {
	.prepare = bound,
	.operate = op_status_offset,
	.bytes = IMAGE_BYTES,
	.image = 'a',
	.offset = IMAGE_SECTORS,
};

FIXTURE_VARIANT_ADD(new_medium, status_offset_back) {
	.prepare = bound_offset,
	.operate = op_status_offset_back,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, status_transfer) {
	.prepare = bound,
	.operate = op_status_transfer,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
	.key = KEY,
	.kind = KIND_XOR,
};

FIXTURE_VARIANT_ADD(new_medium, status_key) {
	.prepare = bound_xor,
	.operate = op_status_key,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
	.key = OTHER_KEY,
	.kind = KIND_XOR,
};

FIXTURE_VARIANT_ADD(new_medium, status_no_transfer) {
	.prepare = bound_xor,
	.operate = op_status_no_transfer,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
	.kind = KIND_XOR,
};

FIXTURE_VARIANT_ADD(new_medium, status64_offset) {
	.prepare = bound,
	.operate = op_status64_offset,
	.bytes = IMAGE_BYTES,
	.image = 'a',
	.offset = IMAGE_SECTORS,
};

FIXTURE_VARIANT_ADD(new_medium, status64_offset_partscan) {
	.prepare = bound_partscan,
	.operate = op_status64_offset,
	.bytes = IMAGE_BYTES,
	.image = 'a',
	.offset = IMAGE_SECTORS,
};

FIXTURE_VARIANT_ADD(new_medium, status64_transfer) {
	.prepare = bound,
	.operate = op_status64_transfer,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
	.key = KEY,
	.kind = KIND_XOR,
};

FIXTURE_VARIANT_ADD(new_medium, status64_key) {
	.prepare = bound_xor,
	.operate = op_status64_key,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
	.key = OTHER_KEY,
	.kind = KIND_XOR,
};

FIXTURE_VARIANT_ADD(new_medium, status64_no_transfer) {
	.prepare = bound_xor,
	.operate = op_status64_no_transfer,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
	.kind = KIND_XOR,
};

FIXTURE_VARIANT_ADD(new_medium, clr_fd) {
	.prepare = bound,
	.operate = op_detach,
};

FIXTURE_VARIANT_ADD(new_medium, clr_fd_partscan) {
	.prepare = bound_partscan,
	.operate = op_detach,
};

FIXTURE_VARIANT_ADD(new_medium, clr_fd_at_last_close) {
	.prepare = bound_clear_pending,
	.operate = op_last_close,
};

FIXTURE_VARIANT_ADD(new_medium, autoclear) {
	.prepare = bound_autoclear,
	.operate = op_last_close,
};

FIXTURE(same_medium) {
	struct disk d;
	struct monitor mon;
	uint64_t before;
	int sysfs;
};

FIXTURE_VARIANT(same_medium) {
	void (*prepare)(struct disk *d);
	int (*operate)(struct disk *d);
	bool xor;
	bool blkpg;
};

FIXTURE_VARIANT_ADD(same_medium, grow) {
	.prepare = bound,
	.operate = op_grow,
};

FIXTURE_VARIANT_ADD(same_medium, set_capacity) {
	.prepare = bound,
	.operate = op_set_capacity,
};

FIXTURE_VARIANT_ADD(same_medium, size_limit) {
	.prepare = bound,
	.operate = op_size_limit,
};

FIXTURE_VARIANT_ADD(same_medium, same_status) {
	.prepare = bound,
	.operate = op_same_status,
};

FIXTURE_VARIANT_ADD(same_medium, same_status64) {
	.prepare = bound_offset,
	.operate = op_same_status64,
};

FIXTURE_VARIANT_ADD(same_medium, same_key) {
	.prepare = bound_xor,
	.operate = op_same_key,
	.xor = true,
};

FIXTURE_VARIANT_ADD(same_medium, same_key64) {
	.prepare = bound_xor,
	.operate = op_same_key64,
	.xor = true,
};

FIXTURE_VARIANT_ADD(same_medium, file_name) {
	.prepare = bound,
	.operate = op_file_name,
};

FIXTURE_VARIANT_ADD(same_medium, autoclear) {
	.prepare = bound,
	.operate = op_autoclear,
};

FIXTURE_VARIANT_ADD(same_medium, partscan) {
	.prepare = bound,
	.operate = op_partscan,
};

FIXTURE_VARIANT_ADD(same_medium, clr_fd_while_open_elsewhere) {
	.prepare = bound,
	.operate = op_clear_later,
};

FIXTURE_VARIANT_ADD(same_medium, block_size) {
	.prepare = bound,
	.operate = op_block_size,
};

FIXTURE_VARIANT_ADD(same_medium, direct_io) {
	.prepare = bound_disk,
	.operate = op_direct_io,
};

FIXTURE_VARIANT_ADD(same_medium, read_only) {
	.prepare = bound,
	.operate = op_read_only,
};

FIXTURE_VARIANT_ADD(same_medium, rescan) {
	.prepare = bound_partscan,
	.operate = op_rescan,
};

FIXTURE_VARIANT_ADD(same_medium, rescan_partitions) {
	.prepare = bound_table,
	.operate = op_rescan,
};

FIXTURE_VARIANT_ADD(same_medium, blkpg_add) {
	.prepare = bound,
	.operate = op_blkpg_add,
	.blkpg = true,
};

FIXTURE_VARIANT_ADD(same_medium, blkpg_resize) {
	.prepare = bound_blkpg,
	.operate = op_blkpg_resize,
	.blkpg = true,
};

FIXTURE_VARIANT_ADD(same_medium, blkpg_del) {
	.prepare = bound_blkpg,
	.operate = op_blkpg_del,
	.blkpg = true,
};

FIXTURE_VARIANT_ADD(same_medium, flush) {
	.prepare = bound,
	.operate = op_flush,
};

FIXTURE_VARIANT_ADD(same_medium, write) {
	.prepare = bound,
	.operate = op_write,
};

FIXTURE_VARIANT_ADD(same_medium, open_close) {
	.prepare = bound,
	.operate = op_open_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_close_unbound) {
	.prepare = unbound,
	.operate = op_open_close,
};

FIXTURE_SETUP(same_medium)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	disk_create(&self->d);
	if (variant->xor && !loop_has_xor(&self->d.lo)) {
		disk_destroy(&self->d);
		SKIP_SETUP("no loop transfers: removed in 5.16");
	}
	if (variant->blkpg && blkpg_needs_partscan(&self->d.lo)) {
		disk_destroy(&self->d);
		SKIP_SETUP("no BLKPG without LO_FLAGS_PARTSCAN");
	}
	variant->prepare(&self->d);
	self->sysfs = diskseq_open_sysfs(self->d.lo.name);
	self->before = diskseq_read(self->sysfs);
	monitor_open(&self->mon, self->d.lo.name);
}

FIXTURE_TEARDOWN(same_medium)
{
	monitor_close(&self->mon);
	close(self->sysfs);
	disk_destroy(&self->d);
}

TEST_F(same_medium, r3_keeps_its_number)
{
	ASSERT_EQ(0, variant->operate(&self->d));
	EXPECT_EQ(self->before, diskseq(self->d.lo.fd));
	EXPECT_EQ(self->before, diskseq_sysfs(self->d.lo.name));
	EXPECT_EQ(self->before, diskseq_uevent_file(self->d.lo.name));
}

TEST_F(same_medium, r7_announces_nothing)
{
	const char *mark;
	struct uevent ev;

	ASSERT_EQ(0, variant->operate(&self->d));
	mark = mark_now();
	while (monitor_next_before(&self->mon, &ev, mark)) {
		EXPECT_FALSE(ev.media_change);
		EXPECT_TRUE(ev.has_diskseq);
		EXPECT_EQ(self->before, ev.diskseq);
	}
}

TEST_F(same_medium, r11_does_not_wake_who_polls)
{
	ASSERT_EQ(0, variant->operate(&self->d));
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

/*
 * A watcher that opens the disk at each announcement finds the medium that the
 * number stands for, time after time.
 */
#define WATCHED			50

FIXTURE(watched) {
	struct loop lo;
	struct monitor mon;
	uint64_t before;
	int image[2];
};

FIXTURE_SETUP(watched)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	self->image[0] = image_create('a', 1);
	self->image[1] = image_create('b', 1);
	self->before = diskseq(self->lo.fd);
	monitor_open(&self->mon, self->lo.name);
}

FIXTURE_TEARDOWN(watched)
{
	monitor_close(&self->mon);
	loop_destroy(&self->lo);
	close(self->image[0]);
	close(self->image[1]);
}

/* @n counts the media: images a and b in turns, and nothing after each. */
static bool shows_medium(const struct loop *lo, int n)
{
	int fd = loop_open(lo, O_RDONLY);
	uint64_t bytes;
	bool shows;

	if (ioctl(fd, BLKGETSIZE64, &bytes))
		die("BLKGETSIZE64: %s", strerror(errno));
	if (n % 2)
		shows = bytes == IMAGE_BYTES &&
			sector_is(fd, 0, n % 4 == 1 ? 'a' : 'b', 0, NULL) &&
			sector_is(fd, 500, n % 4 == 1 ? 'a' : 'b', 500, NULL);
	else
		shows = !bytes;
	close(fd);
	return shows;
}

static void watch(struct monitor *mon, const struct loop *lo, uint64_t number,
		  const struct gate *seen)
{
	struct uevent ev;
	int n;

	for (n = 1; n <= 2 * WATCHED; n++) {
		number++;
		do {
			if (!monitor_next(mon, &ev, limit_ms()))
				die("number +%d is not announced", n);
		} while (ev.diskseq < number);
		if (ev.diskseq != number || diskseq_sysfs(lo->name) != number ||
		    diskseq_of(lo->path) != number)
			die("number +%d is announced, but not there", n);
		if (!shows_medium(lo, n))
			die("medium +%d is announced, but not there", n);
		gate_pass(seen);
	}
}

TEST_F(watched, r8_every_medium_is_there_when_it_is_announced)
{
	struct gate seen;
	pid_t pid;
	int n;

	gate_create(&seen);
	loop_close(&self->lo);
	pid = spawn();
	if (!pid) {
		watch(&self->mon, &self->lo, self->before, &seen);
		_exit(0);
	}
	/* if the watcher dies, it is not to be waited for */
	close(seen.fd[1]);
	for (n = 1; n <= 2 * WATCHED; n++) {
		loop_reopen(&self->lo);
		if (n % 2)
			loop_attach(&self->lo, self->image[n % 4 / 2], 0);
		else if (ioctl(self->lo.fd, LOOP_CLR_FD))
			die("LOOP_CLR_FD: %s", strerror(errno));
		loop_close(&self->lo);
		gate_wait(&seen);
	}
	EXPECT_EQ(0, child_status(pid));
}

/*
 * Somebody asks for the capacity to be set, which raises an event, all the time
 * while media come and go. The event is about a medium, so that it carries no
 * number of the disk without one.
 */
#define ATTACHES		50

FIXTURE(capacity) {
	struct loop lo;
	struct monitor mon;
	uint64_t before;
	int image;
};

FIXTURE_SETUP(capacity)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	self->image = image_create_empty();
	self->before = diskseq(self->lo.fd);
	monitor_open(&self->mon, self->lo.name);
}

FIXTURE_TEARDOWN(capacity)
{
	monitor_close(&self->mon);
	loop_destroy(&self->lo);
	close(self->image);
}

static pid_t start_setting_capacity(const struct loop *lo)
{
	pid_t pid = spawn();
	int fd, i;

	if (pid)
		return pid;
	for (;;) {
		/* a detach is carried out when it is closed here */
		fd = loop_open(lo, O_RDWR);
		for (i = 0; i < 20; i++)
			ioctl(fd, LOOP_SET_CAPACITY);
		close(fd);
	}
}

TEST_F(capacity, r8_event_of_a_medium_carries_no_earlier_number)
{
	int64_t end = now_ms() + limit_ms();
	uint64_t media[ATTACHES];
	int i = 0, m, early = 0;
	const char *mark;
	struct uevent ev;
	pid_t pid;

	loop_close(&self->lo);
	pid = start_setting_capacity(&self->lo);
	while (i < ATTACHES) {
		loop_reopen(&self->lo);
		if (!loop_configure(&self->lo, self->image, 0)) {
			media[i++] = diskseq(self->lo.fd);
			ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CLR_FD));
		} else {
			ASSERT_EQ(EBUSY, errno);
			ASSERT_LT(now_ms(), end);
		}
		loop_close(&self->lo);
	}
	kill(pid, SIGKILL);
	ASSERT_EQ(-1, child_status(pid));

	mark = mark_now();
	while (monitor_next_before(&self->mon, &ev, mark)) {
		if (ev.media_change)
			continue;
		for (m = 0; m < ATTACHES && media[m] != ev.diskseq; m++)
			;
		early += m == ATTACHES;
	}
	EXPECT_EQ(0, early);
}

/*
 * Two processes give the disk another file at the same moment, while others read it.
 * When both calls have returned, the disk shows nothing but the file that was the last,
 * and no number comes any more.
 */
#define ROUNDS			100
#define CHANGERS		2

FIXTURE(changers) {
	struct loop lo;
	int image[1 + CHANGERS];
	pid_t reader[2];
};

static pid_t start_reading(const struct loop *lo)
{
	static char buf[IMAGE_BYTES];
	pid_t pid = spawn();
	int fd;

	if (pid)
		return pid;
	fd = loop_open(lo, O_RDONLY);
	for (;;)
		if (pread(fd, buf, sizeof(buf), 0) != sizeof(buf))
			die("read: %s", strerror(errno));
}

FIXTURE_SETUP(changers)
{
	const char *missing = diskseq_missing();
	size_t i;

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	for (i = 0; i < ARRAY_SIZE(self->image); i++)
		self->image[i] = image_create('a' + i, 1);
	loop_attach(&self->lo, self->image[0], LO_FLAGS_READ_ONLY);
	for (i = 0; i < ARRAY_SIZE(self->reader); i++)
		self->reader[i] = start_reading(&self->lo);
}

FIXTURE_TEARDOWN(changers)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(self->reader); i++)
		end_child(self->reader[i]);
	loop_destroy(&self->lo);
	for (i = 0; i < ARRAY_SIZE(self->image); i++)
		close(self->image[i]);
}

static pid_t start_changing(const struct loop *lo, int image, const struct gate *start)
{
	pid_t pid = spawn();

	if (pid)
		return pid;
	gate_wait(start);
	_exit(ioctl(lo->fd, LOOP_CHANGE_FD, image) ? errno : 0);
}

/* The image that the file behind the disk is, 0 is the first one. */
static int file_behind(const struct loop *lo, const int image[1 + CHANGERS])
{
	struct loop_info64 info;
	struct stat st;
	int i;

	loop_get_status(lo, &info);
	for (i = 0; i < 1 + CHANGERS; i++)
		if (!fstat(image[i], &st) && st.st_ino == info.lo_inode)
			return i;
	die("no file of ours");
}

TEST_F(changers, r8_disk_shows_the_last_file)
{
	uint64_t sector, before, number;
	struct gate start;
	pid_t pid[CHANGERS];
	int round, i, file, stale;

	gate_create(&start);
	for (round = 0; round < ROUNDS; round++) {
		before = diskseq(self->lo.fd);
		for (i = 0; i < CHANGERS; i++)
			pid[i] = start_changing(&self->lo, self->image[1 + i], &start);
		for (i = 0; i < CHANGERS; i++)
			gate_pass(&start);
		for (i = 0; i < CHANGERS; i++)
			ASSERT_EQ(0, child_status(pid[i]));

		number = diskseq(self->lo.fd);
		ASSERT_LT(before, number);
		ASSERT_GE(before + CHANGERS, number);
		file = file_behind(&self->lo, self->image);
		for (stale = 0, sector = 0; sector < IMAGE_SECTORS; sector++)
			stale += !sector_is(self->lo.fd, sector, 'a' + file, sector, NULL);
		ASSERT_EQ(0, stale) {
			TH_LOG("round %d", round);
		}
		ASSERT_EQ(number, diskseq(self->lo.fd));
	}
}

static pid_t start_mounting(const struct loop *lo)
{
	pid_t pid = spawn();

	if (pid)
		return pid;
	for (;;)
		if (!mount(lo->path, "/tmp", "vfat", MS_RDONLY, NULL))
			die("%s: has no file system, but can be mounted", lo->path);
		else if (errno == ENODEV)
			_exit(ENODEV);
}

/* Those who try to mount it hold what they have read, until they fail. */
TEST_F(changers, r8_who_fails_to_mount_it_keeps_nothing_of_the_old_file)
{
	pid_t mounter = start_mounting(&self->lo);
	int round, file;
	int64_t end;

	for (round = 0; round < ROUNDS; round++) {
		file = round % 2;
		ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CHANGE_FD, self->image[file]));
		end = now_ms() + limit_ms();
		while (!sector_is(self->lo.fd, 0, 'a' + file, 0, NULL) && now_ms() < end)
			poll(NULL, 0, 1);
		ASSERT_TRUE(sector_is(self->lo.fd, 0, 'a' + file, 0, NULL)) {
			TH_LOG("round %d", round);
		}
	}
	if (waitpid(mounter, NULL, WNOHANG) == mounter)
		SKIP(return, "this kernel has no vfat");
	end_child(mounter);
}

TEST_HARNESS_MAIN
