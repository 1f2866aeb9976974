// SPDX-License-Identifier: GPL-2.0
/*
 * zram: the medium of a compressed disk begins when its size is set and ends
 * when it is reset. What each of these owes to those who watch the disk (rules
 * 3, 5, 7, 8, 11), that nothing else and nothing that is refused has a number
 * (rules 3, 12), and all of it while several processes write to its files.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "zram_dev.h"

/* Processes that set and reset the disk, and how often. */
#define WRITERS			4
#define ROUNDS			40
#define WRITES			100
#define OPENERS			2

/* What a disk is before the operation. */

static void unset(struct zram *z)
{
	(void)z;
}

static void is_set(struct zram *z)
{
	int err = zram_set_size(z);

	if (err)
		die("%s: disksize: %s", z->name, strerror(err));
}

static void unset_again(struct zram *z)
{
	int err;

	is_set(z);
	err = zram_reset(z);
	if (err)
		die("%s: reset: %s", z->name, strerror(err));
}

static void unset_open(struct zram *z)
{
	zram_open(z);
}

/* Nobody waits for who has claimed it. */
static void unset_claimed(struct zram *z)
{
	z->fd = disk_open(z->name, 0, O_RDWR | O_EXCL);
}

static void set_open(struct zram *z)
{
	is_set(z);
	zram_open(z);
}

static void set_claimed(struct zram *z)
{
	is_set(z);
	unset_claimed(z);
}

static void set_written(struct zram *z)
{
	char sector[SECTOR];

	set_open(z);
	image_sector('a', LOOKED_AT, NULL, sector);
	if (pwrite(z->fd, sector, SECTOR, LOOKED_AT * SECTOR) != SECTOR ||
	    fsync(z->fd))
		die("%s: %s", z->name, strerror(errno));
	zram_close(z);
}

/* Operations. */

static int op_set_size(struct zram *z)
{
	return zram_set_size(z);
}

static int op_reset(struct zram *z)
{
	return zram_reset(z);
}

static int op_size_0(struct zram *z)
{
	return zram_write(z, "disksize", "0");
}

static int op_size_word(struct zram *z)
{
	return zram_write(z, "disksize", "large");
}

/* More than there can be memory for; 32 bits may not even count its pages. */
static int op_size_huge(struct zram *z)
{
	int err = zram_write(z, "disksize", "1P");

	return err == EINVAL ? ENOMEM : err;
}

static int op_reset_0(struct zram *z)
{
	return zram_write(z, "reset", "0");
}

static int op_reset_word(struct zram *z)
{
	return zram_write(z, "reset", "yes");
}

static int write_as_nobody(void *arg)
{
	struct zram *z = arg;

	return zram_has_size(z) ? zram_reset(z) : zram_set_size(z);
}

static int op_as_nobody(struct zram *z)
{
	return as_nobody(write_as_nobody, z);
}

static int op_hot_remove(struct zram *z)
{
	return zram_hot_remove(z);
}

/* The first one that the kernel has: of "[lzo-rle] lzo", say. */
static int op_algorithm(struct zram *z)
{
	char line[256];

	zram_read(z, "comp_algorithm", line, sizeof(line));
	return zram_write(z, "comp_algorithm", strtok(line, "[]\n "));
}

static int op_mem_limit(struct zram *z)
{
	return zram_write(z, "mem_limit", "64M");
}

static int op_compact(struct zram *z)
{
	return zram_write(z, "compact", "1");
}

static int op_open_and_close(struct zram *z)
{
	char buf[SECTOR];
	int i, fd;

	for (i = 0; i < 5; i++) {
		fd = disk_open(z->name, 0, O_RDWR);
		if (disk_bytes(fd) && pread(fd, buf, SECTOR, 0) != SECTOR)
			die("%s: %s", z->name, strerror(errno));
		close(fd);
	}
	return 0;
}

static int op_write(struct zram *z)
{
	char buf[SECTOR] = "data";
	int ret;

	zram_open(z);
	ret = pwrite(z->fd, buf, SECTOR, 0) != SECTOR || fsync(z->fd);
	zram_close(z);
	return ret ? errno : 0;
}

/* zram has no partitions. */
static int op_rescan(struct zram *z)
{
	int ret;

	zram_open(z);
	ret = ioctl(z->fd, BLKRRPART);
	zram_close(z);
	return ret ? errno : 0;
}

/* What the tests of new_medium.h and same_medium.h need to know. */

#define DISK			zram

static const char *driver_create(struct zram *d, int kind)
{
	const char *missing = zram_missing();

	if (!missing)
		zram_create(d);
	return missing;
}

static void driver_destroy(struct zram *d)
{
	zram_destroy(d);
}

static const char *driver_name(const struct zram *d)
{
	return d->name;
}

static int driver_fd(const struct zram *d)
{
	return d->fd;
}

static int driver_open(const struct zram *d)
{
	return disk_open(d->name, 0, O_RDONLY);
}

static void driver_close(struct zram *d)
{
	zram_close(d);
}

static uint64_t driver_last_number(const struct zram *d)
{
	return diskseq_sysfs(d->name);
}

#include "same_medium.h"

FIXTURE_VARIANT_ADD(new_medium, disksize) {
	.prepare = unset,
	.operate = op_set_size,
	.bytes = SIZE_BYTES,
};

FIXTURE_VARIANT_ADD(new_medium, disksize_while_open) {
	.prepare = unset_open,
	.operate = op_set_size,
	.bytes = SIZE_BYTES,
};

FIXTURE_VARIANT_ADD(new_medium, disksize_again) {
	.prepare = unset_again,
	.operate = op_set_size,
	.bytes = SIZE_BYTES,
};

FIXTURE_VARIANT_ADD(new_medium, reset) {
	.prepare = is_set,
	.operate = op_reset,
};

FIXTURE_VARIANT_ADD(new_medium, reset_with_data) {
	.prepare = set_written,
	.operate = op_reset,
};

/* What was written before the reset is not there after it. */
TEST_F(new_medium, r8_nothing_of_the_old_medium_is_read_from_it)
{
	char buf[SECTOR], nothing[SECTOR] = "";

	ASSERT_EQ(0, variant->operate(&self->disk));
	if (!zram_has_size(&self->disk)) {
		ASSERT_EQ(0, zram_set_size(&self->disk));
	}
	if (self->disk.fd < 0)
		zram_open(&self->disk);
	ASSERT_EQ(SECTOR, pread(self->disk.fd, buf, SECTOR, LOOKED_AT * SECTOR));
	EXPECT_EQ(0, memcmp(nothing, buf, SECTOR));
}

/* Operations that leave the disk its medium, refused ones (rule 12) among them. */

FIXTURE_VARIANT_ADD(same_medium, disksize_twice) {
	.prepare = is_set,
	.operate = op_set_size,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_twice_while_open) {
	.prepare = set_open,
	.operate = op_set_size,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_0) {
	.prepare = unset,
	.operate = op_size_0,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_0_after_reset) {
	.prepare = unset_again,
	.operate = op_size_0,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_0_when_set) {
	.prepare = is_set,
	.operate = op_size_0,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_word) {
	.prepare = unset,
	.operate = op_size_word,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_huge) {
	.prepare = unset,
	.operate = op_size_huge,
	.error = ENOMEM,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_huge_while_open) {
	.prepare = unset_open,
	.operate = op_size_huge,
	.error = ENOMEM,
};

FIXTURE_VARIANT_ADD(same_medium, disksize_as_nobody) {
	.prepare = unset,
	.operate = op_as_nobody,
	.error = EACCES,
};

FIXTURE_VARIANT_ADD(same_medium, reset_0) {
	.prepare = is_set,
	.operate = op_reset_0,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, reset_word) {
	.prepare = is_set,
	.operate = op_reset_word,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, reset_while_claimed) {
	.prepare = set_claimed,
	.operate = op_reset,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, reset_as_nobody) {
	.prepare = is_set,
	.operate = op_as_nobody,
	.error = EACCES,
};

FIXTURE_VARIANT_ADD(same_medium, reset_without_disksize) {
	.prepare = unset,
	.operate = op_reset,
};

FIXTURE_VARIANT_ADD(same_medium, reset_twice) {
	.prepare = unset_again,
	.operate = op_reset,
};

FIXTURE_VARIANT_ADD(same_medium, reset_without_disksize_while_claimed) {
	.prepare = unset_claimed,
	.operate = op_reset,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, hot_remove_while_claimed) {
	.prepare = set_claimed,
	.operate = op_hot_remove,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, comp_algorithm) {
	.prepare = unset,
	.operate = op_algorithm,
};

FIXTURE_VARIANT_ADD(same_medium, comp_algorithm_when_set) {
	.prepare = is_set,
	.operate = op_algorithm,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, mem_limit) {
	.prepare = is_set,
	.operate = op_mem_limit,
};

FIXTURE_VARIANT_ADD(same_medium, compact) {
	.prepare = is_set,
	.operate = op_compact,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_unset) {
	.prepare = unset,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close) {
	.prepare = is_set,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_reset) {
	.prepare = unset_again,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, write) {
	.prepare = is_set,
	.operate = op_write,
};

FIXTURE_VARIANT_ADD(same_medium, rescan) {
	.prepare = is_set,
	.operate = op_rescan,
	.error = EINVAL,
};

TEST_F(same_medium, r7_raises_no_event_and_wakes_nobody)
{
	expect_no_announcement(self, variant, _metadata);
}

/* Set and reset, and say what was seen of it. */
static void good_medium(struct zram *z, struct script *seen)
{
	uint64_t base = next_number();
	struct monitor mon;

	monitor_open(&mon, z->name);
	script_add(seen, "disksize %d", zram_set_size(z));
	script_add(seen, "%s", events(&mon, base));
	zram_open(z);
	script_add(seen, "number %+lld", (long long)(diskseq(z->fd) - base));
	script_add(seen, "%lld bytes", (long long)disk_bytes(z->fd));
	zram_close(z);
	script_add(seen, "reset %d", zram_reset(z));
	script_add(seen, "%s", events(&mon, base));
	script_add(seen, "number %+lld",
		   (long long)(diskseq_sysfs(z->name) - base));
	monitor_close(&mon);
}

TEST_F(same_medium, r12_good_medium_behaves_after_it)
{
	static struct script seen, want;

	ASSERT_EQ(variant->error, variant->operate(&self->disk));
	zram_close(&self->disk);
	ASSERT_EQ(0, zram_reset(&self->disk));
	good_medium(&self->disk, &seen);

	/* as on a disk with which nobody has tried anything */
	zram_create(&self->other);
	good_medium(&self->other, &want);
	EXPECT_STREQ(want.text, seen.text);
}

/* The disk itself comes and goes. */
FIXTURE(hot) {
	struct zram z;
	struct monitor all;
};

FIXTURE_VARIANT(hot) {
	void (*prepare)(struct zram *z);
};

FIXTURE_VARIANT_ADD(hot, never_set) {
	.prepare = unset,
};

FIXTURE_VARIANT_ADD(hot, set) {
	.prepare = is_set,
};

FIXTURE_VARIANT_ADD(hot, set_with_data) {
	.prepare = set_written,
};

FIXTURE_VARIANT_ADD(hot, reset) {
	.prepare = unset_again,
};

FIXTURE_SETUP(hot)
{
	const char *missing = zram_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	monitor_open(&self->all, NULL);
}

FIXTURE_TEARDOWN(hot)
{
	zram_destroy(&self->z);
	monitor_close(&self->all);
}

/* From now on, those of this disk alone. */
static void watch(struct monitor *all, const struct zram *z)
{
	snprintf(all->disk, sizeof(all->disk), "%s", z->name);
}

TEST_F(hot, r2_disk_takes_one_number_and_is_added_with_it)
{
	uint64_t counter = next_number();

	zram_create(&self->z);
	EXPECT_EQ(counter + 1, diskseq_sysfs(self->z.name));
	EXPECT_EQ(counter + 2, next_number());
	watch(&self->all, &self->z);
	EXPECT_STREQ("add disk +0", events(&self->all, counter + 1));
}

TEST_F(hot, r6_disk_leaves_with_its_last_number)
{
	uint64_t last;

	zram_create(&self->z);
	variant->prepare(&self->z);
	last = diskseq_sysfs(self->z.name);
	watch(&self->all, &self->z);
	monitor_drop(&self->all);
	zram_destroy(&self->z);
	EXPECT_STREQ("remove disk +0", events(&self->all, last));
}

TEST_F(hot, r1_disk_of_the_same_name_begins_anew)
{
	uint64_t last;
	int index;

	zram_create(&self->z);
	index = self->z.index;
	variant->prepare(&self->z);
	last = diskseq_sysfs(self->z.name);
	zram_destroy(&self->z);
	zram_create(&self->z);
	ASSERT_EQ(index, self->z.index);
	EXPECT_LT(last, diskseq_sysfs(self->z.name));
	watch(&self->all, &self->z);
	monitor_drop(&self->all);
	last = diskseq_sysfs(self->z.name);
	ASSERT_EQ(0, op_open_and_close(&self->z));
	EXPECT_STREQ("", events(&self->all, last));
	EXPECT_EQ(last, diskseq_sysfs(self->z.name));
}

/* All announcements of one disk, which is alone in taking numbers meanwhile. */
FIXTURE(writers) {
	struct zram z;
	struct monitor mon;
	uint64_t before;
	struct shared {
		struct writer {
			int err;
			uint64_t number;	/* when the write returned */
		} writer[WRITERS];
		uint64_t begun;
		uint64_t ended;
		uint64_t changes;		/* at most */
		uint64_t unstable;
		uint64_t stable;
	} *shared;
};

FIXTURE_SETUP(writers)
{
	const char *missing = zram_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	zram_create(&self->z);
	self->shared = shared_memory(sizeof(*self->shared));
	self->before = diskseq_sysfs(self->z.name);
	monitor_open(&self->mon, self->z.name);
}

FIXTURE_TEARDOWN(writers)
{
	monitor_close(&self->mon);
	zram_destroy(&self->z);
}

/* All at once, each one time. */
static void write_at_once(const struct zram *z, struct shared *shared,
			  int (*operate)(const struct zram *z))
{
	struct gate ready, go;
	pid_t pid[WRITERS];
	int i;

	gate_create(&ready);
	gate_create(&go);
	for (i = 0; i < WRITERS; i++) {
		pid[i] = spawn();
		if (!pid[i]) {
			int sysfs = diskseq_open_sysfs(z->name);

			gate_pass(&ready);
			gate_wait(&go);
			shared->writer[i].err = operate(z);
			shared->writer[i].number = diskseq_read(sysfs);
			_exit(0);
		}
	}
	for (i = 0; i < WRITERS; i++)
		gate_wait(&ready);
	for (i = 0; i < WRITERS; i++)
		gate_pass(&go);
	for (i = 0; i < WRITERS; i++)
		if (child_status(pid[i]))
			die("a writer failed");
	for (i = 0; i < 2; i++) {
		close(ready.fd[i]);
		close(go.fd[i]);
	}
}

TEST_F(writers, r8_number_that_is_read_when_a_write_returns_stays)
{
	int round, i, won;

	for (round = 1; round <= 2 * ROUNDS; round++) {
		write_at_once(&self->z, self->shared,
			      round % 2 ? zram_set_size : zram_reset);
		ASSERT_EQ(self->before + round, diskseq_sysfs(self->z.name));
		won = 0;
		for (i = 0; i < WRITERS; i++) {
			if (self->shared->writer[i].err) {
				ASSERT_EQ(EBUSY, self->shared->writer[i].err);
				continue;
			}
			won++;
			EXPECT_EQ(self->before + round,
				  self->shared->writer[i].number);
		}
		/* a reset of what is reset already is not refused */
		EXPECT_LE(1, won);
		EXPECT_GE(round % 2 ? 1 : WRITERS, won);
	}
}

TEST_F(writers, r7_change_is_announced_once_whoever_makes_it)
{
	struct announced a;
	int round;

	for (round = 1; round <= 2 * ROUNDS; round++)
		write_at_once(&self->z, self->shared,
			      round % 2 ? zram_set_size : zram_reset);
	count_announced(&self->mon, self->before, &a);
	EXPECT_EQ(2U * ROUNDS, a.count);
	EXPECT_EQ(0U, a.not_next);
	EXPECT_EQ(0U, a.others);
	EXPECT_EQ(0U, a.parts);
}

static uint64_t get(const uint64_t *counter)
{
	return __atomic_load_n(counter, __ATOMIC_SEQ_CST);
}

static void count(uint64_t *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
}

/* Without any order: set what is reset, and reset what is set. */
static pid_t start_writer(const struct zram *z, struct shared *shared, int seed)
{
	unsigned int random = seed;
	uint64_t begun, number;
	pid_t pid = spawn();
	int sysfs, i, err;
	bool alone;

	if (pid)
		return pid;
	sysfs = diskseq_open_sysfs(z->name);
	for (i = 0; i < WRITES; i++) {
		count(&shared->begun);
		err = rand_r(&random) % 2 ? zram_set_size(z) : zram_reset(z);
		/* nobody else is at it? Who ends later may still change what is read */
		begun = get(&shared->begun);
		alone = begun == get(&shared->ended) + 1;
		number = diskseq_read(sysfs);
		if (err && err != EBUSY)
			die("%s: %s", z->name, strerror(err));
		if (!err)
			count(&shared->changes);
		if (!err && alone) {
			sched_yield();
			if (diskseq_read(sysfs) != number &&
			    begun == get(&shared->begun))
				count(&shared->unstable);
			count(&shared->stable);
		}
		count(&shared->ended);
		if (rand_r(&random) % 4 == 0)
			usleep(rand_r(&random) % 2000);
	}
	_exit(0);
}

static void storm(FIXTURE_DATA(writers) *self, int openers)
{
	pid_t pid[WRITERS], opener[OPENERS];
	int i;

	for (i = 0; i < openers; i++)
		opener[i] = spawn_opener(self->z.name);
	for (i = 0; i < WRITERS; i++)
		pid[i] = start_writer(&self->z, self->shared, i);
	for (i = 0; i < WRITERS; i++)
		if (child_status(pid[i]))
			die("a writer failed");
	for (i = 0; i < openers; i++)
		end_child(opener[i]);
}

TEST_F(writers, r7_storm_announces_each_number_once_and_in_order)
{
	uint64_t counter = next_number();
	struct announced a;

	storm(self, 0);
	EXPECT_LE(counter + 1, diskseq_sysfs(self->z.name));
	count_announced(&self->mon, counter, &a);
	EXPECT_LE(2U, a.count);
	EXPECT_GE(self->shared->changes, a.count);
	EXPECT_EQ(0U, a.not_next);
	EXPECT_EQ(0U, a.others);
	EXPECT_EQ(0U, a.parts);
	EXPECT_EQ(a.last, diskseq_sysfs(self->z.name));
	EXPECT_EQ(a.last + 1, next_number());
}

TEST_F(writers, r8_storm_changes_no_number_that_was_returned)
{
	/* a slow machine may leave nobody alone in one storm */
	do
		storm(self, 0);
	while (!self->shared->stable);
	EXPECT_EQ(0ULL, self->shared->unstable);
}

TEST_F(writers, r7_storm_is_announced_while_others_open_the_disk)
{
	uint64_t counter = next_number();
	struct announced a;

	storm(self, OPENERS);
	count_announced(&self->mon, counter, &a);
	EXPECT_LE(1U, a.count);
	EXPECT_EQ(0U, a.not_next);
	EXPECT_EQ(0U, a.others);
	EXPECT_EQ(0U, a.parts);
	EXPECT_EQ(a.last, diskseq_sysfs(self->z.name));
	EXPECT_EQ(a.last + 1, next_number());
}

/* Opening the disk in answer to its event is answered by no event. */
TEST_F(writers, r7_opening_at_every_event_ends)
{
	uint64_t counter = next_number();
	int64_t end = now_ms() + limit_ms();
	struct announced a;
	pid_t pid[OPENERS];
	int i, err;

	for (i = 0; i < OPENERS; i++)
		pid[i] = spawn_opener(self->z.name);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_EQ(0, zram_set_size(&self->z));
		while ((err = zram_reset(&self->z))) {
			ASSERT_EQ(EBUSY, err);
			ASSERT_LT(now_ms(), end);
		}
	}
	for (i = 0; i < OPENERS; i++)
		end_child(pid[i]);
	count_announced(&self->mon, counter, &a);
	EXPECT_EQ(2U * ROUNDS, a.count);
	EXPECT_EQ(0U, a.not_next);
	EXPECT_EQ(0U, a.others);
	EXPECT_EQ(0U, a.parts);
}

TEST_HARNESS_MAIN
