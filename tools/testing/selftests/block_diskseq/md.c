// SPDX-License-Identifier: GPL-2.0
/*
 * md: the medium of an array begins when it is started and ends when it is
 * stopped, by the ioctls of mdadm or by its files in sysfs. What each of these
 * owes to those who watch the disk (rules 3, 5, 7, 8, 11), that nothing else and
 * nothing that is refused takes a number (rules 3, 12), what becomes of the
 * partitions (rules 6, 9, 10), and all of it by several processes at once.
 *
 * The arrays have no superblocks and two loop devices each.
 */
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/major.h>
#include <linux/raid/md_u.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "md_dev.h"
#include "nbd_dev.h"

#define NO_SUCH_LEVEL		99

/* Far from the arrays that other programs make; opening makes those below 512. */
#define FIRST_MINOR		300
#define NODE			"/dev/.diskseq-md"

#define PARTS			3
#define WRITERS			4
#define ROUNDS			30
#define WRITES			60
#define OPENERS			2
#define SCANNERS		3
#define CYCLES			20
#define PAGE			4096

struct array {
	int minor;
	char name[16];		/* md300 */
	int level;
	int image;
	struct loop lo[2];
	int fd;			/* the array, if the test has it open */
	int second;		/* once more, or a partition of it */
	struct monitor mon;
	uint64_t before;
};

static int owned = -1;

/* The node of a disk that there may not be yet: opening it makes it. */
static int open_minor(int minor)
{
	int fd, err;

	unlink(NODE);
	if (mknod(NODE, S_IFBLK | 0600, makedev(MD_MAJOR, minor)))
		die(NODE ": %s", strerror(errno));
	fd = open(NODE, O_RDWR | O_CLOEXEC);
	err = errno;
	unlink(NODE);
	errno = err;
	return fd;
}

static int stop(int fd)
{
	return ioctl(fd, STOP_ARRAY, NULL) ? errno : 0;
}

/* An open brings the disk back, so there is none while it goes, which takes a while. */
static void stop_minor(int minor)
{
	int64_t end = now_ms() + limit_ms(), gone;
	char name[16];
	int fd;

	snprintf(name, sizeof(name), "md%d", minor);
	while (disk_exists(name) && now_ms() < end) {
		fd = open_minor(minor);
		if (fd >= 0) {
			stop(fd);
			close(fd);
		}
		gone = now_ms() + limit_ms() / 10;
		while (disk_exists(name) && now_ms() < gone)
			poll(NULL, 0, 1);
	}
}

static void clean_up(void)
{
	if (owned >= 0)
		stop_minor(owned);
}

static const char *md_missing(int level)
{
	const char *missing = diskseq_missing();
	char line[256] = "", name[16];
	static char no_level[32];
	FILE *file;

	if (missing)
		return missing;
	file = fopen("/proc/mdstat", "re");
	if (!file)
		return "no /proc/mdstat: kernel without md";
	if (!fgets(line, sizeof(line), file))
		die("/proc/mdstat: %s", strerror(errno));
	fclose(file);
	snprintf(name, sizeof(name), "[raid%d]", level);
	snprintf(no_level, sizeof(no_level), "kernel without raid%d", level);
	return strstr(line, name) ? NULL : no_level;
}

/* Above @minor, and not in use. */
static int free_minor(int minor)
{
	char name[16];

	do
		snprintf(name, sizeof(name), "md%d", ++minor);
	while (disk_exists(name));
	return minor;
}

/* The disk alone, without anything of an array, opened. */
static void array_open_new(struct array *a)
{
	a->fd = open_minor(a->minor);
	if (a->fd < 0)
		die("%s: %s", a->name, strerror(errno));
}

static void array_create(struct array *a, int level)
{
	int i, image;

	a->level = level;
	a->second = -1;
	a->image = image_create('a', 1);
	for (i = 0; i < 2; i++) {
		/* the same for both, as a mirror has it */
		image = level == 1 ? dup(a->image) : image_create('a' + i, 1);
		loop_create(&a->lo[i]);
		loop_attach(&a->lo[i], image, 0);
		close(image);
	}
	a->minor = free_minor(FIRST_MINOR - 1);
	snprintf(a->name, sizeof(a->name), "md%d", a->minor);
	monitor_open(&a->mon, a->name);
	array_open_new(a);
	owned = a->minor;
	clean_up_by(clean_up);
}

static void array_begin(struct array *a)
{
	a->before = diskseq_sysfs(a->name);
	monitor_drop(&a->mon);
}

static void array_close(struct array *a)
{
	if (a->fd >= 0)
		close(a->fd);
	a->fd = -1;
}

static void close_second(struct array *a)
{
	if (a->second >= 0)
		close(a->second);
	a->second = -1;
}

/* As udev does when it gets the event. */
static void array_scan(const struct array *a)
{
	close(disk_open(a->name, 0, O_RDONLY));
}

/* The directory goes last, after the event; what /sys/block has goes first. */
static void wait_for_removal(const struct array *a)
{
	int64_t end = now_ms() + limit_ms();
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/virtual/block/%s", a->name);
	while (!access(path, F_OK)) {
		if (now_ms() > end)
			die("%s: does not go away", a->name);
		poll(NULL, 0, 1);
	}
}

static void forget(struct array *a, void (*give_up)(struct loop *lo))
{
	monitor_close(&a->mon);
	give_up(&a->lo[0]);
	give_up(&a->lo[1]);
	close(a->image);
	a->name[0] = '\0';
}

static void array_destroy(struct array *a)
{
	if (!a->name[0])
		return;
	close_second(a);
	if (a->fd >= 0)
		stop(a->fd);
	array_close(a);
	stop_minor(a->minor);
	wait_for_removal(a);
	forget(a, loop_destroy);
}

/*
 * Newer kernels do not stop an array any more that was started again by the file by
 * which it was stopped, nor open it: it stays as it is.
 */
static bool array_left(struct array *a)
{
	int fd;

	if (stop(a->fd) != EBUSY)
		return false;
	fd = open_minor(a->minor);
	if (fd >= 0) {
		close(fd);
		return false;
	}
	if (errno != ENODEV)
		die("%s: %s", a->name, strerror(errno));
	owned = -1;
	array_close(a);
	forget(a, loop_leave);
	return true;
}

/* Returns the errno, as the steps of an assembly do. */
static int write_state(const struct array *a, const char *state)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/md/array_state", a->name);
	return file_write(path, state);
}

/* What an array is before the operation. */

static void created(struct array *a)
{
	(void)a;
}

static void without_disks(struct array *a)
{
	must(md_set_info(a->fd, a->level, 2), "SET_ARRAY_INFO");
}

/*
 * A worker removes the directories of the disks when an array has stopped, and until
 * then they cannot be added again.
 */
static void must_add_disk(struct array *a, int i)
{
	int64_t end = now_ms() + limit_ms();
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/md/dev-%s", a->name,
		 a->lo[i].name);
	while (!access(path, F_OK)) {
		if (now_ms() > end)
			die("%s: does not go away", path);
		poll(NULL, 0, 1);
	}
	must(md_add_disk(a->fd, a->lo[i].fd, i), "ADD_NEW_DISK");
}

static void without_one_disk(struct array *a)
{
	without_disks(a);
	must_add_disk(a, 0);
}

static void assembled(struct array *a)
{
	without_one_disk(a);
	must_add_disk(a, 1);
}

static void of_no_level(struct array *a)
{
	must(md_set_info(a->fd, NO_SUCH_LEVEL, 2), "SET_ARRAY_INFO");
	must_add_disk(a, 0);
	must_add_disk(a, 1);
}

static void assembled_closed(struct array *a)
{
	assembled(a);
	array_close(a);
}

static void running(struct array *a)
{
	assembled(a);
	must(md_run(a->fd), "RUN_ARRAY");
}

static void running_closed(struct array *a)
{
	running(a);
	array_close(a);
}

static void running_in_use(struct array *a)
{
	running(a);
	a->second = disk_open(a->name, 0, O_RDONLY);
}

static void running_with_partition_in_use(struct array *a)
{
	image_table(a->image, 0, TABLE_GPT, 2, "a");
	running(a);
	array_scan(a);
	a->second = disk_open(a->name, 1, O_RDONLY);
}

static void running_read_only(struct array *a)
{
	running(a);
	if (ioctl(a->fd, STOP_ARRAY_RO, NULL))
		die("STOP_ARRAY_RO: %s", strerror(errno));
}

static void inactive(struct array *a)
{
	running_closed(a);
	must(write_state(a, "inactive"), "inactive");
}

/* Operations. All return the errno. */

static int op_run(struct array *a)
{
	return md_run(a->fd);
}

static int op_stop(struct array *a)
{
	return stop(a->fd);
}

static int op_active(struct array *a)
{
	return write_state(a, "active");
}

static int op_readonly(struct array *a)
{
	return write_state(a, "readonly");
}

static int op_read_auto(struct array *a)
{
	return write_state(a, "read-auto");
}

static int op_inactive(struct array *a)
{
	return write_state(a, "inactive");
}

static int op_clear(struct array *a)
{
	return write_state(a, "clear");
}

static int op_clean(struct array *a)
{
	return write_state(a, "clean");
}

static int op_no_state(struct array *a)
{
	return write_state(a, "no-such-state");
}

static int op_stop_ro(struct array *a)
{
	return ioctl(a->fd, STOP_ARRAY_RO, NULL) ? errno : 0;
}

static int op_restart_rw(struct array *a)
{
	return ioctl(a->fd, RESTART_ARRAY_RW, NULL) ? errno : 0;
}

static int op_set_info(struct array *a)
{
	return md_set_info(a->fd, a->level, 2);
}

static int op_add_disk(struct array *a)
{
	return md_add_disk(a->fd, a->lo[1].fd, 1);
}

static int op_set_faulty(struct array *a)
{
	struct stat st;

	if (fstat(a->lo[1].fd, &st))
		die("%s: %s", a->lo[1].name, strerror(errno));
	return ioctl(a->fd, SET_DISK_FAULTY, (long)st.st_rdev) ? errno : 0;
}

static int run_as_nobody(void *arg)
{
	return md_run(*(int *)arg);
}

static int stop_as_nobody(void *arg)
{
	return stop(*(int *)arg);
}

static int op_run_as_nobody(struct array *a)
{
	return as_nobody(run_as_nobody, &a->fd);
}

static int op_stop_as_nobody(struct array *a)
{
	return as_nobody(stop_as_nobody, &a->fd);
}

static int op_open_and_close(struct array *a)
{
	char buf[SECTOR];
	int i, fd;

	for (i = 0; i < 5; i++) {
		fd = disk_open(a->name, 0, O_RDWR);
		if (disk_bytes(fd) && pread(fd, buf, SECTOR, 0) != SECTOR)
			die("%s: %s", a->name, strerror(errno));
		close(fd);
	}
	return 0;
}

static int op_write(struct array *a)
{
	char sector[SECTOR];

	image_sector('w', LOOKED_AT, NULL, sector);
	return pwrite(a->fd, sector, SECTOR, LOOKED_AT * SECTOR) != SECTOR ||
	       fsync(a->fd) ? errno : 0;
}

/*
 * What the tests of new_medium.h and same_medium.h need to know. The kind is
 * the level.
 */

#define DISK			array

static const char *driver_create(struct array *d, int kind)
{
	const char *missing = md_missing(kind);

	if (!missing)
		array_create(d, kind);
	return missing;
}

static void driver_destroy(struct array *d)
{
	array_destroy(d);
}

static const char *driver_name(const struct array *d)
{
	return d->name;
}

static int driver_fd(const struct array *d)
{
	return d->fd;
}

static int driver_open(const struct array *d)
{
	return open_minor(d->minor);
}

static void driver_close(struct array *d)
{
	array_close(d);
	close_second(d);
}

static uint64_t driver_last_number(const struct array *d)
{
	return diskseq_sysfs(d->name);
}

#include "same_medium.h"

FIXTURE_VARIANT_ADD(new_medium, run_raid0) {
	.kind = 0,
	.prepare = assembled,
	.operate = op_run,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, run_raid1) {
	.kind = 1,
	.prepare = assembled,
	.operate = op_run,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, run_degraded_raid1) {
	.kind = 1,
	.prepare = without_one_disk,
	.operate = op_run,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, active_raid0) {
	.kind = 0,
	.prepare = assembled,
	.operate = op_active,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, active_raid1_while_closed) {
	.kind = 1,
	.prepare = assembled_closed,
	.operate = op_active,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, active_after_inactive) {
	.kind = 0,
	.prepare = inactive,
	.operate = op_active,
	.bytes = 2 * IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, readonly) {
	.kind = 1,
	.prepare = assembled_closed,
	.operate = op_readonly,
	.bytes = IMAGE_BYTES,
	.image = 'a',
	/* that it is read-only is an event of its own, before it */
	.events = "change disk +0 ro, " ANNOUNCEMENT,
};

FIXTURE_VARIANT_ADD(new_medium, read_auto) {
	.kind = 1,
	.prepare = assembled_closed,
	.operate = op_read_auto,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, stop_raid0) {
	.kind = 0,
	.prepare = running,
	.operate = op_stop,
	.gone = true,
};

FIXTURE_VARIANT_ADD(new_medium, stop_raid1) {
	.kind = 1,
	.prepare = running,
	.operate = op_stop,
	.gone = true,
};

FIXTURE_VARIANT_ADD(new_medium, inactive_raid0) {
	.kind = 0,
	.prepare = running_closed,
	.operate = op_inactive,
};

FIXTURE_VARIANT_ADD(new_medium, inactive_raid1) {
	.kind = 1,
	.prepare = running_closed,
	.operate = op_inactive,
};

/* Operations that leave the disk its medium, refused ones (rule 12) among them. */

FIXTURE_VARIANT_ADD(same_medium, open_and_close_created) {
	.prepare = created,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_assembled) {
	.prepare = assembled_closed,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_raid0) {
	.prepare = running_closed,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_raid1) {
	.kind = 1,
	.prepare = running_closed,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_inactive) {
	.prepare = inactive,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, write) {
	.kind = 1,
	.prepare = running,
	.operate = op_write,
};

FIXTURE_VARIANT_ADD(same_medium, run_created) {
	.prepare = created,
	.operate = op_run,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, run_without_disks) {
	.prepare = without_disks,
	.operate = op_run,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, run_raid0_without_one_disk) {
	.prepare = without_one_disk,
	.operate = op_run,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, run_of_no_level) {
	.prepare = of_no_level,
	.operate = op_run,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, run_running) {
	.prepare = running,
	.operate = op_run,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, run_as_nobody) {
	.prepare = assembled,
	.operate = op_run_as_nobody,
	.error = EACCES,
};

FIXTURE_VARIANT_ADD(same_medium, active_created) {
	.prepare = created,
	.operate = op_active,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, active_raid0_without_one_disk) {
	.prepare = without_one_disk,
	.operate = op_active,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, active_running) {
	.prepare = running,
	.operate = op_active,
};

FIXTURE_VARIANT_ADD(same_medium, clean_assembled) {
	.prepare = assembled,
	.operate = op_clean,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, no_such_state) {
	.prepare = running,
	.operate = op_no_state,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, set_info_assembled) {
	.prepare = assembled,
	.operate = op_set_info,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, add_disk_running) {
	.prepare = running,
	.operate = op_add_disk,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, stop_assembled) {
	.prepare = assembled,
	.operate = op_stop,
	.gone = true,
};

FIXTURE_VARIANT_ADD(same_medium, stop_in_use) {
	.prepare = running_in_use,
	.operate = op_stop,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, stop_with_partition_in_use) {
	.kind = 1,
	.prepare = running_with_partition_in_use,
	.operate = op_stop,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, stop_as_nobody) {
	.prepare = running,
	.operate = op_stop_as_nobody,
	.error = EACCES,
};

FIXTURE_VARIANT_ADD(same_medium, clear_in_use) {
	.prepare = running,
	.operate = op_clear,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, inactive_in_use) {
	.kind = 1,
	.prepare = running_with_partition_in_use,
	.operate = op_inactive,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, inactive_twice) {
	.prepare = inactive,
	.operate = op_inactive,
};

FIXTURE_VARIANT_ADD(same_medium, inactive_assembled) {
	.prepare = assembled,
	.operate = op_inactive,
};

FIXTURE_VARIANT_ADD(same_medium, stop_ro) {
	.kind = 1,
	.prepare = running,
	.operate = op_stop_ro,
	.events = "change disk +0 ro",
};

FIXTURE_VARIANT_ADD(same_medium, stop_ro_in_use) {
	.kind = 1,
	.prepare = running_in_use,
	.operate = op_stop_ro,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, restart_rw) {
	.kind = 1,
	.prepare = running_read_only,
	.operate = op_restart_rw,
	.events = "change disk +0 ro",
};

FIXTURE_VARIANT_ADD(same_medium, disk_fails) {
	.kind = 1,
	.prepare = running,
	.operate = op_set_faulty,
};

TEST_F(same_medium, r7_announces_nothing_and_wakes_nobody)
{
	expect_no_announcement(self, variant, _metadata);
}

TEST_F(same_medium, r12_runs_or_does_not_as_before)
{
	bool was = disk_has_size(self->name);

	ASSERT_EQ(variant->error, variant->operate(&self->disk));
	EXPECT_EQ(was, disk_has_size(self->name));
}

/* What comes after a refused operation. */
FIXTURE(refused) {
	struct array a;
};

FIXTURE_VARIANT(refused) {
	int level;
};

FIXTURE_VARIANT_ADD(refused, raid0) {
	.level = 0,
};

FIXTURE_VARIANT_ADD(refused, raid1) {
	.level = 1,
};

FIXTURE_SETUP(refused)
{
	const char *missing = md_missing(variant->level);

	if (missing)
		SKIP_SETUP("%s", missing);
	array_create(&self->a, variant->level);
}

FIXTURE_TEARDOWN(refused)
{
	array_destroy(&self->a);
}

TEST_F(refused, r12_run_is_followed_by_a_good_one)
{
	without_disks(&self->a);
	array_begin(&self->a);
	ASSERT_EQ(EINVAL, md_run(self->a.fd));
	must_add_disk(&self->a, 0);
	must_add_disk(&self->a, 1);
	ASSERT_EQ(0, md_run(self->a.fd));
	EXPECT_STREQ("change disk +1 media", events(&self->a.mon, self->a.before));
	EXPECT_EQ(self->a.before + 1, diskseq(self->a.fd));
}

TEST_F(refused, r12_stop_is_followed_by_a_good_one)
{
	running_in_use(&self->a);
	array_begin(&self->a);
	ASSERT_EQ(EBUSY, stop(self->a.fd));
	close_second(&self->a);
	ASSERT_EQ(0, stop(self->a.fd));
	EXPECT_STREQ("change disk +1 media", events(&self->a.mon, self->a.before));
	EXPECT_EQ(self->a.before + 1, diskseq(self->a.fd));
}

TEST_F(refused, r12_inactive_is_followed_by_a_good_one)
{
	running_in_use(&self->a);
	array_begin(&self->a);
	ASSERT_EQ(EBUSY, write_state(&self->a, "inactive"));
	close_second(&self->a);
	array_close(&self->a);
	ASSERT_EQ(0, write_state(&self->a, "inactive"));
	EXPECT_STREQ("change disk +1 media", events(&self->a.mon, self->a.before));
	ASSERT_EQ(0, write_state(&self->a, "active"));
	EXPECT_STREQ("change disk +2 media", events(&self->a.mon, self->a.before));
}

/*
 * A bitmap that cannot be read, since it is beyond the end of the disks: the array
 * is set up when that is found, and there is nothing to read from it, but it has
 * to be stopped.
 */
FIXTURE(bitmap) {
	struct array a;
};

static int write_bitmap(const struct array *a, const char *file, const char *value)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/md/bitmap/%s", a->name, file);
	return file_write(path, value);
}

FIXTURE_SETUP(bitmap)
{
	const char *missing = md_missing(1);
	struct array *a = &self->a;
	int err;

	if (missing)
		SKIP_SETUP("%s", missing);
	array_create(a, 1);
	assembled(a);
	err = write_bitmap(a, "metadata", "external") ?:
	      write_bitmap(a, "chunksize", "65536") ?:
	      write_bitmap(a, "time_base", "5") ?:
	      write_bitmap(a, "location", "+1048576");
	if (err == ENOENT) {
		array_destroy(a);
		SKIP_SETUP("no md/bitmap: kernel without md bitmaps");
	}
	must(err, "bitmap");
	array_begin(a);
}

FIXTURE_TEARDOWN(bitmap)
{
	array_destroy(&self->a);
}

TEST_F(bitmap, r12_run_without_it_takes_no_number)
{
	uint64_t counter = next_number();

	ASSERT_EQ(EIO, md_run(self->a.fd));
	EXPECT_EQ(self->a.before, diskseq(self->a.fd));
	EXPECT_EQ(counter + 1, next_number());
	EXPECT_STREQ("", events(&self->a.mon, self->a.before));
}

TEST_F(bitmap, r12_stop_after_that_takes_no_number)
{
	uint64_t counter = next_number();

	ASSERT_EQ(EIO, md_run(self->a.fd));
	ASSERT_EQ(0, stop(self->a.fd));
	EXPECT_EQ(self->a.before, diskseq(self->a.fd));
	EXPECT_EQ(counter + 1, next_number());
	EXPECT_STREQ("", events(&self->a.mon, self->a.before));
}

TEST_F(bitmap, r12_stop_after_that_is_followed_by_a_good_run)
{
	ASSERT_EQ(EIO, md_run(self->a.fd));
	ASSERT_EQ(0, stop(self->a.fd));
	running(&self->a);
	EXPECT_EQ(self->a.before + 1, diskseq(self->a.fd));
	EXPECT_STREQ("change disk +1 media", events(&self->a.mon, self->a.before));
}

/* The disk itself comes when somebody opens it and goes with the array. */
FIXTURE(hot) {
	struct array a;
};

FIXTURE_VARIANT(hot) {
	int level;
};

FIXTURE_VARIANT_ADD(hot, raid0) {
	.level = 0,
};

FIXTURE_VARIANT_ADD(hot, raid1) {
	.level = 1,
};

FIXTURE_SETUP(hot)
{
	const char *missing = md_missing(variant->level);

	if (missing)
		SKIP_SETUP("%s", missing);
	array_create(&self->a, variant->level);
}

FIXTURE_TEARDOWN(hot)
{
	array_destroy(&self->a);
}

TEST_F(hot, r7_first_number_is_announced_by_add)
{
	uint64_t number = diskseq(self->a.fd);

	EXPECT_STREQ("add disk +0", events(&self->a.mon, number));
	EXPECT_EQ(number + 1, next_number());
}

TEST_F(hot, r6_disk_leaves_with_the_number_of_the_stop)
{
	running(&self->a);
	array_begin(&self->a);
	ASSERT_EQ(0, stop(self->a.fd));
	array_close(&self->a);
	wait_for_removal(&self->a);
	EXPECT_STREQ("change disk +1 media, remove disk +1",
		     events(&self->a.mon, self->a.before));
}

TEST_F(hot, r6_disk_leaves_with_the_number_of_a_stop_by_sysfs)
{
	running_closed(&self->a);
	array_begin(&self->a);
	ASSERT_EQ(0, write_state(&self->a, "clear"));
	wait_for_removal(&self->a);
	EXPECT_STREQ("change disk +1 media, remove disk +1",
		     events(&self->a.mon, self->a.before));
}

TEST_F(hot, r6_disk_that_never_ran_leaves_with_its_first_number)
{
	uint64_t number = diskseq(self->a.fd);

	assembled(&self->a);
	monitor_drop(&self->a.mon);
	ASSERT_EQ(0, stop(self->a.fd));
	array_close(&self->a);
	wait_for_removal(&self->a);
	EXPECT_STREQ("remove disk +0", events(&self->a.mon, number));
}

/* If it stayed, the next run by the same file could not create it. */
TEST_F(hot, r15_takes_sync_action_away_when_it_stops)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/md/sync_action", self->a.name);
	running(&self->a);
	EXPECT_EQ(variant->level != 0, !access(path, F_OK));
	ASSERT_EQ(0, stop(self->a.fd));
	EXPECT_EQ(-1, access(path, F_OK));
}

TEST_F(hot, r1_array_of_the_same_name_has_new_numbers)
{
	uint64_t first, last, number;

	running(&self->a);
	first = diskseq(self->a.fd);
	ASSERT_EQ(0, stop(self->a.fd));
	last = diskseq(self->a.fd);
	EXPECT_EQ(first + 1, last);
	array_close(&self->a);
	wait_for_removal(&self->a);
	monitor_drop(&self->a.mon);

	array_open_new(&self->a);
	number = diskseq(self->a.fd);
	EXPECT_LT(last, number);
	running(&self->a);
	EXPECT_EQ(number + 1, diskseq(self->a.fd));
	EXPECT_STREQ("add disk +0, change disk +1 media",
		     events(&self->a.mon, number));
}

/*
 * Whoever stops an array can assemble the next one by the same file. A program that
 * has mapped it keeps its pages.
 */
TEST_F(hot, r8_next_array_shows_nothing_of_the_old_one)
{
	struct array *a = &self->a;
	char sector[SECTOR];
	void *pages;
	int i;

	running(a);
	pages = mmap(NULL, IMAGE_BYTES, PROT_READ, MAP_SHARED | MAP_POPULATE,
		     a->fd, 0);
	ASSERT_TRUE(pages != MAP_FAILED);
	ASSERT_TRUE(sector_is(a->fd, LOOKED_AT, 'a', LOOKED_AT, NULL));
	array_begin(a);
	ASSERT_EQ(0, stop(a->fd));
	image_sector('b', LOOKED_AT, NULL, sector);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(SECTOR, pwrite(a->lo[i].fd, sector, SECTOR,
					 LOOKED_AT * SECTOR));
		ASSERT_EQ(0, fsync(a->lo[i].fd));
	}
	running(a);
	EXPECT_TRUE(sector_is(a->fd, LOOKED_AT, 'b', LOOKED_AT, NULL));
	EXPECT_STREQ("change disk +1 media, change disk +2 media",
		     events(&a->mon, a->before));
	munmap(pages, IMAGE_BYTES);
	if (array_left(a))
		TH_LOG("the array cannot be stopped, and stays");
}

/*
 * An array that is read-only until somebody writes to it is in use before what was
 * written has reached it.
 */
TEST_F(hot, r14_what_a_read_auto_array_has_not_written_yet_is_not_lost)
{
	struct array *a = &self->a;
	char sector[SECTOR];

	assembled(a);
	ASSERT_EQ(0, op_read_auto(a));
	image_sector('b', LOOKED_AT, NULL, sector);
	ASSERT_EQ(SECTOR, pwrite(a->fd, sector, SECTOR, LOOKED_AT * SECTOR));
	/* refused, or undone: either will do */
	op_inactive(a);
	op_active(a);
	EXPECT_EQ(0, fsync(a->fd));
	/* from the disks again */
	ASSERT_EQ(0, ioctl(a->fd, BLKFLSBUF));
	EXPECT_TRUE(sector_is(a->fd, LOOKED_AT, 'b', LOOKED_AT, NULL));
}

/* Direct I/O of another disk reads into a page of the array, which is clean then. */
TEST_F(hot, r14_what_is_read_into_it_too_late_is_reported_by_fsync)
{
	char want[SECTOR] = "of the source", have[SECTOR];
	struct array *a = &self->a;
	struct nbd source;
	int from, err;
	pid_t reader;

	if (nbd_missing())
		SKIP(return, "%s", nbd_missing());
	running(a);
	nbd_create(&source, MAX_INDEX);
	ASSERT_EQ(SECTOR, pwrite(source.image[0], want, SECTOR, 0));
	by_netlink(&source);
	from = disk_open(source.name, 0, O_RDONLY | O_DIRECT);
	__atomic_store_n(&source.orders->silent, 1, __ATOMIC_SEQ_CST);
	reader = start_reading_into(a->fd, from);
	EXPECT_EQ(0, fsync(a->fd));
	EXPECT_EQ(0, stop(a->fd));
	running(a);
	__atomic_store_n(&source.orders->silent, 0, __ATOMIC_SEQ_CST);
	err = child_status(reader);
	EXPECT_EQ(err ? EIO : 0, err);
	if (!err) {
		ASSERT_EQ(0, ioctl(a->fd, BLKFLSBUF));
		ASSERT_EQ(SECTOR, pread(a->fd, have, SECTOR, 0));
		EXPECT_EQ(0, memcmp(want, have, SECTOR));
	}
	close(from);
	nbd_destroy(&source);
	if (array_left(a))
		TH_LOG("the array cannot be stopped, and stays");
}

/* So much, by so many, takes a while to unmap. */
#define LARGE_BYTES		(24 << 20)
#define MAPPERS			30
#define STORE_MS		300

/* Maps the whole array, and says so in @mapped, which is shared. */
static pid_t start_mapping(int fd, unsigned int *mapped)
{
	pid_t pid = spawn();

	if (pid)
		return pid;
	if (mmap(NULL, lseek(fd, 0, SEEK_END), PROT_READ,
		 MAP_SHARED | MAP_POPULATE, fd, 0) == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	__atomic_add_fetch(mapped, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
}

/* Where @last, which is shared, says what has been stored. */
static pid_t start_storing(int fd, off_t at, uint64_t *last)
{
	pid_t pid = spawn();
	uint64_t *page, value;

	if (pid)
		return pid;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
	if (page == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	for (value = 1; ; value++) {
		__atomic_store_n(page, value, __ATOMIC_SEQ_CST);
		__atomic_store_n(last, value, __ATOMIC_SEQ_CST);
		poll(NULL, 0, rand() % STORE_MS);
	}
}

/* It can be stored as long as the array is mapped. */
TEST_F(hot, r14_what_is_stored_too_late_is_reported_by_fsync)
{
	unsigned int *mapped = shared_memory(sizeof(*mapped));
	uint64_t *last = shared_memory(sizeof(*last)), value;
	pid_t storer, mapper[MAPPERS];
	struct array *a = &self->a;
	int i, err, image;
	off_t at;

	for (i = 0; i < 2; i++) {
		loop_destroy(&a->lo[i]);
		loop_create(&a->lo[i]);
		image = image_create_empty();
		ASSERT_EQ(0, ftruncate(image, LARGE_BYTES));
		loop_attach(&a->lo[i], image, 0);
		close(image);
	}
	running(a);
	at = lseek(a->fd, 0, SEEK_END) - PAGE;
	for (i = 0; i < MAPPERS; i++)
		mapper[i] = start_mapping(a->fd, mapped);
	storer = start_storing(a->fd, at, last);
	while (__atomic_load_n(mapped, __ATOMIC_SEQ_CST) < MAPPERS ||
	       !__atomic_load_n(last, __ATOMIC_SEQ_CST))
		poll(NULL, 0, 1);

	/* it stores once more before that, meanwhile or after it */
	poll(NULL, 0, STORE_MS);
	ASSERT_EQ(0, stop(a->fd));
	poll(NULL, 0, STORE_MS);
	running(a);
	/* it may have got a SIGBUS */
	kill(storer, SIGKILL);
	waitpid(storer, NULL, 0);
	for (i = 0; i < MAPPERS; i++)
		end_child(mapper[i]);
	err = fsync(a->fd) ? errno : 0;
	ASSERT_EQ(sizeof(value), pread(a->fd, &value, sizeof(value), at));
	EXPECT_EQ(err ? EIO : 0, err);
	if (!err)
		EXPECT_EQ(*last, value);
	if (array_left(a))
		TH_LOG("the array cannot be stopped, and stays");
}

/* The partitions of an array. */
FIXTURE(partitions) {
	struct array a;
};

FIXTURE_VARIANT(partitions) {
	int level;
	enum table table;
};

FIXTURE_VARIANT_ADD(partitions, gpt_raid0) {
	.level = 0,
	.table = TABLE_GPT,
};

FIXTURE_VARIANT_ADD(partitions, gpt_raid1) {
	.level = 1,
	.table = TABLE_GPT,
};

FIXTURE_VARIANT_ADD(partitions, msdos_raid1) {
	.level = 1,
	.table = TABLE_MSDOS,
};

FIXTURE_SETUP(partitions)
{
	const char *missing = md_missing(variant->level);

	if (missing)
		SKIP_SETUP("%s", missing);
	array_create(&self->a, variant->level);
	/* written through an array, so that it is where this level has it */
	running(&self->a);
	image_table(self->a.fd, 0, variant->table, PARTS, "a");
	ASSERT_EQ(0, fsync(self->a.fd));
	ASSERT_EQ(0, stop(self->a.fd));
	array_close(&self->a);
	wait_for_removal(&self->a);
	array_open_new(&self->a);
	assembled(&self->a);
	array_begin(&self->a);
}

FIXTURE_TEARDOWN(partitions)
{
	array_destroy(&self->a);
}

TEST_F(partitions, r9_come_after_the_announcement_when_it_is_opened)
{
	ASSERT_EQ(0, md_run(self->a.fd));
	EXPECT_STREQ("change disk +1 media", events(&self->a.mon, self->a.before));
	array_scan(&self->a);
	EXPECT_STREQ("add p1-3 +1", events(&self->a.mon, self->a.before));
}

TEST_F(partitions, r6_have_the_number_of_their_medium)
{
	char name[32];
	int i;

	ASSERT_EQ(0, md_run(self->a.fd));
	array_scan(&self->a);
	ASSERT_EQ(PARTS, disk_count_parts(self->a.name));
	for (i = 1; i <= PARTS; i++) {
		self->a.second = disk_open(self->a.name, i, O_RDONLY);
		EXPECT_EQ(self->a.before + 1, diskseq(self->a.second));
		close_second(&self->a);
		snprintf(name, sizeof(name), "%sp%d", self->a.name, i);
		EXPECT_EQ(self->a.before + 1, diskseq_uevent_file(name));
	}
}

TEST_F(partitions, r10_are_added_once_however_often_it_is_opened)
{
	ASSERT_EQ(0, md_run(self->a.fd));
	ASSERT_EQ(0, op_open_and_close(&self->a));
	EXPECT_STREQ("change disk +1 media, add p1-3 +1",
		     events(&self->a.mon, self->a.before));
}

TEST_F(partitions, r10_are_added_again_by_an_explicit_rescan_only)
{
	ASSERT_EQ(0, md_run(self->a.fd));
	array_scan(&self->a);
	monitor_drop(&self->a.mon);
	ASSERT_EQ(0, ioctl(self->a.fd, BLKRRPART));
	EXPECT_STREQ("remove p1-3 +1, add p1-3 +1",
		     part_events(&self->a.mon, self->a.before));
	EXPECT_EQ(self->a.before + 1, diskseq(self->a.fd));
}

TEST_F(partitions, r9_leave_before_the_stop_is_announced)
{
	ASSERT_EQ(0, md_run(self->a.fd));
	array_scan(&self->a);
	monitor_drop(&self->a.mon);
	ASSERT_EQ(0, stop(self->a.fd));
	EXPECT_STREQ("remove p1-3 +1, change disk +2 media",
		     events(&self->a.mon, self->a.before));
}

TEST_F(partitions, r9_leave_before_a_stop_by_sysfs_is_announced)
{
	ASSERT_EQ(0, md_run(self->a.fd));
	array_scan(&self->a);
	array_close(&self->a);
	monitor_drop(&self->a.mon);
	ASSERT_EQ(0, write_state(&self->a, "clear"));
	wait_for_removal(&self->a);
	EXPECT_STREQ("remove p1-3 +1, change disk +2 media, remove disk +2",
		     events(&self->a.mon, self->a.before));
}

TEST_F(partitions, r9_are_those_of_the_next_medium_after_it)
{
	ASSERT_EQ(0, md_run(self->a.fd));
	array_scan(&self->a);
	array_close(&self->a);
	ASSERT_EQ(0, write_state(&self->a, "inactive"));
	monitor_drop(&self->a.mon);
	ASSERT_EQ(0, write_state(&self->a, "active"));
	array_scan(&self->a);
	EXPECT_STREQ("change disk +3 media, add p1-3 +3",
		     events(&self->a.mon, self->a.before));
}

TEST_F(partitions, r12_stay_at_a_refused_stop)
{
	ASSERT_EQ(0, md_run(self->a.fd));
	array_scan(&self->a);
	self->a.second = disk_open(self->a.name, 2, O_RDONLY);
	monitor_drop(&self->a.mon);
	ASSERT_EQ(EBUSY, stop(self->a.fd));
	EXPECT_STREQ("", events(&self->a.mon, self->a.before));
	EXPECT_EQ(PARTS, disk_count_parts(self->a.name));
	EXPECT_EQ(self->a.before + 1, diskseq(self->a.second));
}

/*
 * An array whose metadata somebody else keeps: the first write waits until he has noted
 * that the array is dirty, and says so by "active". If it was him who started it, his
 * call must not wait for those who write to it and have it scanned.
 */
FIXTURE(external) {
	struct array a;
	struct start {
		bool returned;
		int err;
	} *start;
};

FIXTURE_VARIANT(external) {
	const char *state;	/* as which it starts */
};

FIXTURE_VARIANT_ADD(external, active) {
	.state = "active",
};

/* the first write makes it active */
FIXTURE_VARIANT_ADD(external, read_auto) {
	.state = "read-auto",
};

static void write_md(const char *disk, const char *file, const char *value)
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/block/%s/md/%s", disk, file);
	must(file_write(path, value), path);
}

FIXTURE_SETUP(external)
{
	const char *missing = md_missing(1);

	if (missing)
		SKIP_SETUP("%s", missing);
	array_create(&self->a, 1);
	self->start = shared_memory(sizeof(*self->start));
}

FIXTURE_TEARDOWN(external)
{
	array_destroy(&self->a);
}

static void assembled_by_sysfs(struct array *a)
{
	char value[32], file[64];
	struct stat st;
	int i;

	write_md(a->name, "metadata_version", "external:test");
	write_md(a->name, "level", "raid1");
	write_md(a->name, "raid_disks", "2");
	write_md(a->name, "component_size", "128");
	for (i = 0; i < 2; i++) {
		if (fstat(a->lo[i].fd, &st))
			die("%s: %s", a->lo[i].name, strerror(errno));
		snprintf(value, sizeof(value), "%d:%d", major(st.st_rdev),
			 minor(st.st_rdev));
		write_md(a->name, "new_dev", value);
		snprintf(file, sizeof(file), "dev-%s/offset", a->lo[i].name);
		write_md(a->name, file, "0");
		snprintf(file, sizeof(file), "dev-%s/size", a->lo[i].name);
		write_md(a->name, file, "128");
		snprintf(value, sizeof(value), "%d", i);
		snprintf(file, sizeof(file), "dev-%s/slot", a->lo[i].name);
		write_md(a->name, file, value);
	}
	write_md(a->name, "resync_start", "none");
}

/* Has it scanned at each moment. One writes first, as soon as there is what to write to. */
static pid_t start_scanner(const struct array *a, struct gate *ready, bool writes)
{
	char sector[SECTOR] = "";
	pid_t pid = spawn();
	int fd;

	if (pid)
		return pid;
	fd = disk_open(a->name, 0, O_RDWR);
	gate_pass(ready);
	while (writes && pwrite(fd, sector, SECTOR, 0) != SECTOR)
		;
	do
		ioctl(fd, BLKRRPART);
	while (!writes);
	pause();
	_exit(0);
}

/* Starts the array, and keeps its metadata from then on. */
static pid_t start_keeper(const struct array *a, struct start *start, const char *state)
{
	pid_t pid = spawn();

	if (pid)
		return pid;
	/* the last close of the array writes, and must be another's */
	close(a->fd);
	start->err = write_state(a, state);
	__atomic_store_n(&start->returned, true, __ATOMIC_RELEASE);
	for (;;) {
		write_state(a, "active");
		usleep(1000);
	}
}

static bool returned(const struct start *start)
{
	return __atomic_load_n(&start->returned, __ATOMIC_ACQUIRE);
}

TEST_F(external, r14_start_waits_for_no_write_that_waits_for_who_starts_it)
{
	struct array *a = &self->a;
	pid_t keeper, scanner[SCANNERS];
	struct gate ready;
	struct uevent ev;
	bool in_time;
	int64_t end;
	int round, i;

	for (round = 0; round < ROUNDS; round++) {
		assembled_by_sysfs(a);
		array_begin(a);
		gate_create(&ready);
		for (i = 0; i < SCANNERS; i++)
			scanner[i] = start_scanner(a, &ready, !i);
		for (i = 0; i < SCANNERS; i++)
			gate_wait(&ready);
		self->start->returned = false;
		keeper = start_keeper(a, self->start, variant->state);
		end = now_ms() + limit_ms();
		while (!returned(self->start) && now_ms() < end)
			poll(NULL, 0, 1);
		in_time = returned(self->start);
		if (!in_time) {
			tell_where(keeper);
			/* so that all of them can end */
			write_state(a, "active");
		}
		for (i = 0; i < SCANNERS; i++)
			end_child(scanner[i]);
		if (in_time) {
			EXPECT_EQ(0, self->start->err);
			/* who kept the announcement back has ended */
			EXPECT_TRUE(monitor_next_number(&a->mon, &ev, a->before,
							NULL));
			EXPECT_TRUE(ev.media_change);
			EXPECT_EQ(a->before + 1, ev.diskseq);
		}
		/* which writes back what is left, and so needs the keeper */
		array_close(a);
		end_child(keeper);
		close(ready.fd[0]);
		close(ready.fd[1]);
		ASSERT_TRUE(in_time) TH_LOG("in round %d", round);
		stop_minor(a->minor);
		wait_for_removal(a);
		array_open_new(a);
	}
}

/* The start may be announced a moment after the call. The stop must not come before. */
TEST_F(external, r3_start_takes_a_number_of_its_own_however_soon_the_stop_follows)
{
	struct array *a = &self->a;
	pid_t opener[OPENERS];
	struct announced n;
	int round, i, err;

	if (strcmp(variant->state, "active"))
		SKIP(return, "md stops what is read-only in spite of those who read it");
	assembled_by_sysfs(a);
	array_close(a);
	array_begin(a);
	for (i = 0; i < OPENERS; i++)
		opener[i] = spawn_opener(a->name);
	for (round = 0; round < ROUNDS; round++) {
		must(write_state(a, "active"), "active");
		do
			err = write_state(a, "inactive");
		while (err == EBUSY);
		must(err, "inactive");
	}
	for (i = 0; i < OPENERS; i++)
		end_child(opener[i]);
	count_announced(&a->mon, a->before, &n);
	EXPECT_EQ(2U * ROUNDS, n.count);
	EXPECT_EQ(0U, n.not_next);
	EXPECT_EQ(0U, n.others);
}

/* Several processes at once. */
FIXTURE(raced) {
	struct array a;
	struct shared {
		int err[WRITERS];
		uint64_t number[WRITERS];	/* when the write returned */
		uint64_t ran;
		uint64_t stopped;
	} *shared;
};

FIXTURE_VARIANT(raced) {
	int level;
};

FIXTURE_VARIANT_ADD(raced, raid0) {
	.level = 0,
};

FIXTURE_VARIANT_ADD(raced, raid1) {
	.level = 1,
};

FIXTURE_SETUP(raced)
{
	const char *missing = md_missing(variant->level);

	if (missing)
		SKIP_SETUP("%s", missing);
	array_create(&self->a, variant->level);
	self->shared = shared_memory(sizeof(*self->shared));
}

FIXTURE_TEARDOWN(raced)
{
	array_destroy(&self->a);
}

/* All at once, each one time. */
static void write_at_once(const struct array *a, struct shared *shared,
			  const char *state)
{
	struct gate ready, go;
	pid_t pid[WRITERS];
	int i;

	gate_create(&ready);
	gate_create(&go);
	for (i = 0; i < WRITERS; i++) {
		pid[i] = spawn();
		if (!pid[i]) {
			gate_pass(&ready);
			gate_wait(&go);
			shared->err[i] = write_state(a, state);
			shared->number[i] = diskseq_sysfs(a->name);
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

TEST_F(raced, r7_change_is_announced_once_whoever_makes_it)
{
	struct announced n;
	int round, i, with;

	assembled_closed(&self->a);
	array_begin(&self->a);
	for (round = 1; round <= 2 * ROUNDS; round++) {
		write_at_once(&self->a, self->shared,
			      round % 2 ? "active" : "inactive");
		ASSERT_EQ(self->a.before + round, diskseq_sysfs(self->a.name));
		/* those that found it done may be ahead of the announcement */
		with = 0;
		for (i = 0; i < WRITERS; i++)
			with += self->shared->number[i] == self->a.before + round;
		EXPECT_LE(1, with);
	}
	count_announced(&self->a.mon, self->a.before, &n);
	EXPECT_EQ(2U * ROUNDS, n.count);
	EXPECT_EQ(0U, n.not_next);
	EXPECT_EQ(0U, n.others);
}

static pid_t start_writer(const struct array *a, int seed)
{
	unsigned int random = seed;
	pid_t pid = spawn();
	int i, err;

	if (pid)
		return pid;
	for (i = 0; i < WRITES; i++) {
		err = write_state(a, rand_r(&random) % 2 ? "active" : "inactive");
		/* openers, and others that are about to stop it */
		if (err && err != EBUSY)
			die("%s: %s", a->name, strerror(err));
		if (rand_r(&random) % 4 == 0)
			usleep(rand_r(&random) % 2000);
	}
	_exit(0);
}

/*
 * Newer kernels look for openers before they lock: a stop that finds the array
 * stopped, and then started by another, crashes those that read it. What tells
 * such a kernel is a parameter that came a little later.
 */
static bool stop_overlooks_openers(void)
{
	return !access("/sys/module/md_mod/parameters/legacy_async_del_gendisk", F_OK);
}

static void storm(struct array *a, int openers, struct announced *n)
{
	int i, writers = openers && stop_overlooks_openers() ? 1 : WRITERS;
	pid_t pid[WRITERS], opener[OPENERS];

	assembled_closed(a);
	array_begin(a);
	for (i = 0; i < openers; i++)
		opener[i] = spawn_opener(a->name);
	for (i = 0; i < writers; i++)
		pid[i] = start_writer(a, i);
	for (i = 0; i < writers; i++)
		if (child_status(pid[i]))
			die("a writer failed");
	for (i = 0; i < openers; i++)
		end_child(opener[i]);
	count_announced(&a->mon, a->before, n);
}

TEST_F(raced, r7_storm_announces_each_number_once_and_in_order)
{
	struct announced n;

	storm(&self->a, 0, &n);
	EXPECT_LE(2U, n.count);
	EXPECT_EQ(0U, n.not_next);
	EXPECT_EQ(0U, n.others);
	EXPECT_EQ(n.last, diskseq_sysfs(self->a.name));
	EXPECT_EQ(n.last + 1, next_number());
}

TEST_F(raced, r7_storm_is_announced_while_others_open_the_disk)
{
	struct announced n;

	storm(&self->a, OPENERS, &n);
	EXPECT_LE(1U, n.count);
	EXPECT_EQ(0U, n.not_next);
	EXPECT_EQ(0U, n.others);
	EXPECT_EQ(n.last, diskseq_sysfs(self->a.name));
	EXPECT_EQ(n.last + 1, next_number());
}

/* One runs the array and the other stops it, by ioctls, as soon as they can. */
static pid_t start_runner(struct array *a, struct shared *shared, bool runs,
			  uint64_t times)
{
	uint64_t *count = runs ? &shared->ran : &shared->stopped;
	int64_t end = now_ms() + limit_ms();
	pid_t pid = spawn();
	char node[32];
	int fd;

	if (pid)
		return pid;
	/* a node of its own, which stays when the disk goes */
	snprintf(node, sizeof(node), NODE "-%d", runs);
	unlink(node);
	if (mknod(node, S_IFBLK | 0600, makedev(MD_MAJOR, a->minor)))
		die("%s: %s", node, strerror(errno));
	while (*count < times && now_ms() < end) {
		fd = open(node, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		/* what has been done already is refused, which is as well */
		if (runs && !disk_bytes(fd)) {
			md_set_info(fd, a->level, 2);
			md_add_disk(fd, a->lo[0].fd, 0);
			md_add_disk(fd, a->lo[1].fd, 1);
			*count += !md_run(fd);
		} else if (!runs && disk_bytes(fd)) {
			*count += !stop(fd);
		}
		close(fd);
		/* to stop it takes that nobody else has it open */
		usleep(200);
	}
	unlink(node);
	_exit(*count < times);
}

/* The disk comes and goes meanwhile: each time it begins with a greater number. */
TEST_F(raced, r7_run_and_stop_by_ioctls_are_announced_in_order)
{
	int announced = 0, not_greater = 0, others = 0, left_otherwise = 0;
	uint64_t last = diskseq(self->a.fd);
	struct array *a = &self->a;
	pid_t runner, stopper;
	const char *mark;
	struct uevent ev;

	monitor_drop(&a->mon);
	array_close(a);
	stopper = start_runner(a, self->shared, false, CYCLES);
	runner = start_runner(a, self->shared, true, CYCLES);
	EXPECT_EQ(0, child_status(runner));
	EXPECT_EQ(0, child_status(stopper));
	mark = mark_now();
	while (monitor_next_before(&a->mon, &ev, mark)) {
		if (ev.partno)
			continue;
		if (!strcmp(ev.action, "remove")) {
			left_otherwise += ev.diskseq != last;
			continue;
		}
		not_greater += ev.diskseq <= last;
		last = ev.diskseq;
		announced += ev.media_change;
		others += strcmp(ev.action, "add") && !ev.media_change;
	}
	EXPECT_EQ((int)(self->shared->ran + self->shared->stopped), announced);
	EXPECT_EQ(0, not_greater);
	EXPECT_EQ(0, others);
	EXPECT_EQ(0, left_otherwise);
}

static void sector_content(char *buf, int medium)
{
	memset(buf, 'a' + medium % 26, SECTOR);
}

/* Writes as soon as there is a size, and goes when that is on the disks. */
static pid_t start_early_writer(const struct array *a, struct gate *ready,
				int medium)
{
	int64_t end = now_ms() + limit_ms();
	pid_t pid = spawn();
	char buf[SECTOR];
	int fd;

	if (pid)
		return pid;
	close(a->fd);
	fd = open_minor(a->minor);
	sector_content(buf, medium);
	gate_pass(ready);
	while (!disk_bytes(fd) && now_ms() < end)
		sched_yield();
	if (pwrite(fd, buf, SECTOR, 0) != SECTOR || fsync(fd))
		_exit(1);
	_exit(0);
}

TEST_F(raced, r14_keeps_what_is_written_at_once)
{
	char want[SECTOR], buf[SECTOR];
	struct array *a = &self->a;
	int medium, failed = 0, lost = 0;
	struct gate ready;
	pid_t pid;

	gate_create(&ready);
	for (medium = 0; medium < CYCLES; medium++) {
		if (medium)
			array_open_new(a);
		assembled(a);
		pid = start_early_writer(a, &ready, medium);
		gate_wait(&ready);
		must(md_run(a->fd), "RUN_ARRAY");
		failed += !!child_status(pid);
		sector_content(want, medium);
		lost += pread(a->fd, buf, SECTOR, 0) != SECTOR ||
			memcmp(buf, want, SECTOR);
		/* on the first disk, as its file has it */
		ioctl(a->lo[0].fd, BLKFLSBUF);
		lost += pread(a->lo[0].fd, buf, SECTOR, 0) != SECTOR ||
			memcmp(buf, want, SECTOR);
		must(stop(a->fd), "STOP_ARRAY");
		array_close(a);
		wait_for_removal(a);
	}
	EXPECT_EQ(0, failed);
	EXPECT_EQ(0, lost);
	close(ready.fd[0]);
	close(ready.fd[1]);
}

/* Opening the disk in answer to its event is answered by no event. */
TEST_F(raced, r7_opening_at_every_event_ends)
{
	int64_t end = now_ms() + limit_ms();
	pid_t opener[OPENERS];
	struct announced n;
	int i, err;

	assembled(&self->a);
	array_begin(&self->a);
	array_close(&self->a);
	for (i = 0; i < OPENERS; i++)
		opener[i] = spawn_opener(self->a.name);
	for (i = 0; i < CYCLES; i++) {
		ASSERT_EQ(0, write_state(&self->a, "active"));
		while ((err = write_state(&self->a, "inactive"))) {
			ASSERT_EQ(EBUSY, err);
			ASSERT_LT(now_ms(), end);
		}
	}
	for (i = 0; i < OPENERS; i++)
		end_child(opener[i]);
	count_announced(&self->a.mon, self->a.before, &n);
	EXPECT_EQ(2U * CYCLES, n.count);
	EXPECT_EQ(0U, n.not_next);
	EXPECT_EQ(0U, n.others);
}

TEST_HARNESS_MAIN
