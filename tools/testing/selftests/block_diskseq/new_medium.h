/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What each operation that gives a disk another medium, or none, owes to those
 * who watch the disk (rules 3, 5, 7, 8, 11): the same tests for all drivers.
 *
 * A program names the struct of its disks, DISK, and has the functions below before
 * it includes this file. After that it adds its operations as variants, and
 * tests of the fixture that are its own.
 */
#ifndef NEW_MEDIUM_H
#define NEW_MEDIUM_H

#include <string.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

/* Makes a disk of that kind, which is the driver's own. NULL, or why it cannot. */
static const char *driver_create(struct DISK *d, int kind);
static void driver_destroy(struct DISK *d);
static const char *driver_name(const struct DISK *d);
/* The disk, if the test has it open, or -1. */
static int driver_fd(const struct DISK *d);
/* Once more: a descriptor, or -1. */
static int driver_open(const struct DISK *d);
/* All that the test has open of it. */
static void driver_close(struct DISK *d);
/* The last one that was given, so that the next is one more. */
static uint64_t driver_last_number(const struct DISK *d);

FIXTURE(new_medium) {
	struct DISK disk;
	const char *name;
	struct monitor mon;
	uint64_t before;
	int sysfs;
};

FIXTURE_VARIANT(new_medium) {
	int kind;
	void (*prepare)(struct DISK *d);
	int (*operate)(struct DISK *d);	/* returns 0 */
	const char *events;	/* if they are not just the announcement */
	uint64_t bytes;		/* of the new medium, 0 if there is none */
	char image;		/* that can be read there, or else zeros */
	uint64_t offset;	/* from this sector on */
	const char *key;	/* for image_sector() */
	bool size_stays;	/* for who has it open, and reads EIO */
	bool gone;		/* for ever: it cannot be opened any more */
};

FIXTURE_SETUP(new_medium)
{
	const char *missing = driver_create(&self->disk, variant->kind);

	if (missing)
		SKIP_SETUP("%s", missing);
	variant->prepare(&self->disk);
	self->name = driver_name(&self->disk);
	self->before = driver_last_number(&self->disk);
	self->sysfs = diskseq_open_sysfs(self->name);
	diskseq_read(self->sysfs);
	monitor_open(&self->mon, self->name);
}

FIXTURE_TEARDOWN(new_medium)
{
	monitor_close(&self->mon);
	close(self->sysfs);
	driver_destroy(&self->disk);
}

#define ANNOUNCEMENT		"change disk +1 media"

TEST_F(new_medium, r3_takes_one_new_number)
{
	uint64_t counter = next_number();

	ASSERT_EQ(0, variant->operate(&self->disk));
	EXPECT_EQ(counter + 1, diskseq_read(self->sysfs));
	EXPECT_EQ(counter + 2, next_number());
}

/* By the file that the test has open, if any, and by one that is opened now. */
static bool ioctls_say(const struct DISK *d, bool gone, uint64_t number)
{
	int fd = driver_fd(d);
	uint64_t said;

	if (fd >= 0 && diskseq(fd) != number)
		return false;
	if (gone)
		return true;
	fd = driver_open(d);
	said = diskseq(fd);
	close(fd);
	return said == number;
}

TEST_F(new_medium, r5_three_readings_agree)
{
	ASSERT_EQ(0, variant->operate(&self->disk));
	EXPECT_EQ(self->before + 1, diskseq_read(self->sysfs));
	EXPECT_TRUE(ioctls_say(&self->disk, variant->gone, self->before + 1));
	EXPECT_EQ(self->before + 1, diskseq_uevent_file(self->name));
}

TEST_F(new_medium, r7_is_announced_by_one_event)
{
	ASSERT_EQ(0, variant->operate(&self->disk));
	EXPECT_STREQ(variant->events ?: ANNOUNCEMENT,
		     events(&self->mon, self->before));
}

/* A medium of that size, or none. */
static bool reads(int fd, uint64_t bytes)
{
	char buf[SECTOR];

	if (bytes)
		return pread(fd, buf, SECTOR, 0) == SECTOR;
	return !disk_bytes(fd) || (pread(fd, buf, SECTOR, 0) < 0 && errno == EIO);
}

TEST_F(new_medium, r7_opening_it_announces_nothing_more)
{
	int i, fd;

	ASSERT_EQ(0, variant->operate(&self->disk));
	for (i = 0; i < 5; i++) {
		fd = driver_open(&self->disk);
		ASSERT_EQ(variant->gone, fd < 0);
		if (fd < 0)
			continue;
		EXPECT_TRUE(reads(fd, variant->bytes));
		close(fd);
	}
	EXPECT_STREQ(variant->events ?: ANNOUNCEMENT,
		     events(&self->mon, self->before));
	EXPECT_EQ(self->before + 1, diskseq_read(self->sysfs));
}

TEST_F(new_medium, r8_has_its_number_when_the_call_returns)
{
	uint64_t by_ioctl, by_sysfs;
	int fd;

	ASSERT_EQ(0, variant->operate(&self->disk));
	by_sysfs = diskseq_read(self->sysfs);
	fd = driver_fd(&self->disk);
	by_ioctl = fd < 0 ? by_sysfs : diskseq(fd);
	EXPECT_EQ(self->before + 1, by_sysfs);
	EXPECT_EQ(self->before + 1, by_ioctl);
	/* and has no other one later */
	monitor_drop(&self->mon);
	EXPECT_EQ(self->before + 1, diskseq_sysfs(self->name));
}

/* Where another medium must not be read from. */
static void cache_old_content(int fd)
{
	char buf[SECTOR];

	if (fd >= 0 && disk_bytes(fd) &&
	    pread(fd, buf, SECTOR, LOOKED_AT * SECTOR) != SECTOR)
		die("read: %s", strerror(errno));
}

/* Another process looks as soon as it is told. */
TEST_F(new_medium, r8_can_be_read_when_announced)
{
	struct sighting *seen = shared_memory(sizeof(*seen));
	const char *mark = mark_new();
	char want[SECTOR] = "";
	struct gate ready;
	pid_t pid;

	cache_old_content(driver_fd(&self->disk));
	gate_create(&ready);
	pid = spawn();
	if (!pid) {
		/* the last close is to be the test's */
		driver_close(&self->disk);
		gate_pass(&ready);
		look_at_number(&self->mon, self->name, self->before, mark, seen);
		_exit(0);
	}
	gate_wait(&ready);
	ASSERT_EQ(0, variant->operate(&self->disk));
	mark_raise(mark);
	ASSERT_EQ(0, child_status(pid));
	ASSERT_TRUE(seen->announced);
	EXPECT_EQ(self->before + 1, seen->number);
	EXPECT_EQ(seen->number, seen->by_sysfs);
	EXPECT_EQ(variant->gone ? 0 : seen->number, seen->by_ioctl);
	if (variant->size_stays && seen->bytes) {
		EXPECT_EQ(EIO, seen->error);
	} else {
		EXPECT_EQ(variant->bytes, seen->bytes);
		EXPECT_EQ(0, seen->error);
	}
	if (variant->image)
		image_sector(variant->image, LOOKED_AT + variant->offset,
			     variant->key, want);
	EXPECT_EQ(0, memcmp(want, seen->content, SECTOR));
}

TEST_F(new_medium, r8_who_has_it_open_finds_its_size)
{
	int fd;

	ASSERT_EQ(0, variant->operate(&self->disk));
	/* one that is gone is still open here */
	fd = driver_fd(&self->disk) < 0 ? driver_open(&self->disk) :
					  dup(driver_fd(&self->disk));
	EXPECT_EQ(self->before + 1, diskseq(fd));
	if (!variant->size_stays) {
		EXPECT_EQ(variant->bytes, disk_bytes(fd));
	}
	close(fd);
}

TEST_F(new_medium, r11_wakes_who_polls_the_sysfs_file)
{
	ASSERT_FALSE(diskseq_wait(self->sysfs, 0));
	ASSERT_EQ(0, variant->operate(&self->disk));
	EXPECT_TRUE(diskseq_wait(self->sysfs, 0));
	EXPECT_EQ(self->before + 1, diskseq_read(self->sysfs));
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

#endif /* NEW_MEDIUM_H */
