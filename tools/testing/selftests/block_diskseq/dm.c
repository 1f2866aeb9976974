// SPDX-License-Identifier: GPL-2.0
/*
 * Device mapper: a table says where the sectors of a disk are, and a new table
 * is no new medium, whatever it says (rule 3).  The number of a mapped disk
 * lasts from its creation to its removal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "dm_dev.h"

struct dm {
	char name[32];		/* the device mapper's own */
	char disk[16];		/* dm-0, "" if there is none */
	int control;
	struct loop lo;		/* below it: two images, one after the other */
};

static int dm_ctl(struct dm *d, unsigned long command, unsigned int flags,
		  const char *text, dev_t *dev)
{
	return dm_call(d->control, d->name, command, flags, NULL, 0, text, dev);
}

static int dm_load(struct dm *d, const char *type, uint64_t sectors, const char *text)
{
	return dm_call(d->control, d->name, DM_TABLE_LOAD, 0, type, sectors, text, NULL);
}

static int dm_suspend(struct dm *d)
{
	return dm_ctl(d, DM_DEV_SUSPEND, DM_SUSPEND_FLAG, NULL, NULL);
}

static int dm_resume(struct dm *d)
{
	return dm_ctl(d, DM_DEV_SUSPEND, 0, NULL, NULL);
}

/* Loads a table that begins at a sector of the loop device, and uses it. */
static int dm_map(struct dm *d, uint64_t first, uint64_t sectors)
{
	char text[64];
	int err;

	snprintf(text, sizeof(text), "%s %llu", d->lo.path, (unsigned long long)first);
	err = dm_load(d, "linear", sectors, text);
	return err ?: dm_resume(d);
}

static const char *dm_missing(void)
{
	const char *missing = diskseq_missing();

	if (!missing && access(DM_CONTROL, R_OK | W_OK))
		missing = "no " DM_CONTROL ": kernel without device mapper";
	return missing;
}

static void dm_create(struct dm *d)
{
	dev_t dev;
	int err = dm_ctl(d, DM_DEV_CREATE, 0, NULL, &dev);

	if (err)
		die("%s: create: %s", d->name, strerror(err));
	snprintf(d->disk, sizeof(d->disk), "dm-%u", minor(dev));
}

/* Others may have it open for a moment. */
static void dm_remove(struct dm *d)
{
	int64_t end = now_ms() + limit_ms();
	int err;

	if (!d->disk[0])
		return;
	do
		err = dm_ctl(d, DM_DEV_REMOVE, 0, NULL, NULL);
	while (err == EBUSY && now_ms() < end);
	if (err)
		die("%s: remove: %s", d->name, strerror(err));
	d->disk[0] = '\0';
}

static struct dm *owned;

static void clean_up(void)
{
	if (owned && owned->disk[0])
		dm_ctl(owned, DM_DEV_REMOVE, 0, NULL, NULL);
}

static void dm_begin(struct dm *d)
{
	int backing = image_create('a', 2);

	snprintf(d->name, sizeof(d->name), "diskseq-%d", getpid());
	d->control = open(DM_CONTROL, O_RDWR | O_CLOEXEC);
	if (d->control < 0)
		die(DM_CONTROL ": %s", strerror(errno));
	loop_create(&d->lo);
	loop_attach(&d->lo, backing, 0);
	close(backing);
	owned = d;
	clean_up_by(clean_up);
}

static void dm_end(struct dm *d)
{
	dm_remove(d);
	owned = NULL;
	close(d->control);
	loop_destroy(&d->lo);
}

/* What a disk is before the operation. */

static void no_table(struct dm *d)
{
	(void)d;
}

static void mapped(struct dm *d)
{
	int err = dm_map(d, 0, IMAGE_SECTORS);

	if (err)
		die("%s: table: %s", d->name, strerror(err));
}

static void suspended(struct dm *d)
{
	int err;

	mapped(d);
	err = dm_suspend(d);
	if (err)
		die("%s: suspend: %s", d->name, strerror(err));
}

/* Operations. */

static int op_first_image(struct dm *d)
{
	return dm_map(d, 0, IMAGE_SECTORS);
}

static int op_second_image(struct dm *d)
{
	return dm_map(d, IMAGE_SECTORS, IMAGE_SECTORS);
}

static int op_both_images(struct dm *d)
{
	return dm_map(d, 0, 2 * IMAGE_SECTORS);
}

static int op_error(struct dm *d)
{
	int err = dm_load(d, "error", IMAGE_SECTORS, "");

	return err ?: dm_resume(d);
}

static int op_suspend_and_resume(struct dm *d)
{
	int err = dm_suspend(d);

	return err ?: dm_resume(d);
}

static int op_rename(struct dm *d)
{
	char name[sizeof(d->name)];
	int err;

	snprintf(name, sizeof(name), "renamed-%d", getpid());
	err = dm_ctl(d, DM_DEV_RENAME, 0, name, NULL);
	if (!err)
		strcpy(d->name, name);
	return err;
}

static int op_load_and_clear(struct dm *d)
{
	int err = dm_load(d, "error", IMAGE_SECTORS, "");

	return err ?: dm_ctl(d, DM_TABLE_CLEAR, 0, NULL, NULL);
}

static int op_missing_disk(struct dm *d)
{
	int err = dm_load(d, "linear", IMAGE_SECTORS, "/dev/none 0");

	/* what newer kernels say */
	return err == ENOENT ? ENODEV : err;
}

static int op_no_type(struct dm *d)
{
	return dm_load(d, "nosuchtype", IMAGE_SECTORS, "");
}

static int op_beyond_the_end(struct dm *d)
{
	return dm_map(d, 4 * IMAGE_SECTORS, IMAGE_SECTORS);
}

static int op_same_name(struct dm *d)
{
	return dm_ctl(d, DM_DEV_CREATE, 0, NULL, NULL);
}

static int op_remove_open(struct dm *d)
{
	int fd = disk_open(d->disk, 0, O_RDONLY);
	int err = dm_ctl(d, DM_DEV_REMOVE, 0, NULL, NULL);

	close(fd);
	return err;
}

static int op_open_and_close(struct dm *d)
{
	int i;

	for (i = 0; i < 5; i++)
		close(disk_open(d->disk, 0, O_RDWR));
	return 0;
}

FIXTURE(same_medium) {
	struct dm d;
	struct monitor mon;
	uint64_t number;
	int sysfs;
};

FIXTURE_VARIANT(same_medium) {
	void (*prepare)(struct dm *d);
	int (*operate)(struct dm *d);
	int err;
	uint64_t disks;		/* that come and go with it, each with a number */
	const char *events;
	bool resizes;
};

FIXTURE_VARIANT_ADD(same_medium, first_table) {
	.prepare = no_table,
	.operate = op_first_image,
	.events = "change disk +0",
};

FIXTURE_VARIANT_ADD(same_medium, table_with_other_sectors) {
	.prepare = mapped,
	.operate = op_second_image,
	.events = "change disk +0",
};

FIXTURE_VARIANT_ADD(same_medium, table_of_another_size) {
	.prepare = mapped,
	.operate = op_both_images,
	.events = "change disk +0",
	.resizes = true,
};

FIXTURE_VARIANT_ADD(same_medium, table_that_fails_all_reads) {
	.prepare = mapped,
	.operate = op_error,
	.events = "change disk +0",
};

FIXTURE_VARIANT_ADD(same_medium, suspend_and_resume) {
	.prepare = mapped,
	.operate = op_suspend_and_resume,
	.events = "change disk +0",
};

FIXTURE_VARIANT_ADD(same_medium, resume) {
	.prepare = suspended,
	.operate = dm_resume,
	.events = "change disk +0",
};

FIXTURE_VARIANT_ADD(same_medium, rename) {
	.prepare = mapped,
	.operate = op_rename,
	.events = "change disk +0",
};

FIXTURE_VARIANT_ADD(same_medium, load_and_clear) {
	.prepare = mapped,
	.operate = op_load_and_clear,
	.events = "",
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close) {
	.prepare = mapped,
	.operate = op_open_and_close,
	.events = "",
};

FIXTURE_VARIANT_ADD(same_medium, disk_that_is_not_there) {
	.prepare = mapped,
	.operate = op_missing_disk,
	.err = ENODEV,
	.events = "",
};

FIXTURE_VARIANT_ADD(same_medium, unknown_type) {
	.prepare = mapped,
	.operate = op_no_type,
	.err = EINVAL,
	.events = "",
};

FIXTURE_VARIANT_ADD(same_medium, beyond_the_end) {
	.prepare = mapped,
	.operate = op_beyond_the_end,
	.err = EINVAL,
	.events = "",
};

/* The device mapper adds a disk, sees that the name is taken and removes it. */
FIXTURE_VARIANT_ADD(same_medium, name_that_is_taken) {
	.prepare = mapped,
	.operate = op_same_name,
	.err = EBUSY,
	.disks = 1,
	.events = "",
};

FIXTURE_VARIANT_ADD(same_medium, removal_while_open) {
	.prepare = mapped,
	.operate = op_remove_open,
	.err = EBUSY,
	.events = "",
};

FIXTURE_SETUP(same_medium)
{
	const char *missing = dm_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	dm_begin(&self->d);
	dm_create(&self->d);
	variant->prepare(&self->d);
	if (!disk_exists(self->d.disk)) {
		dm_end(&self->d);
		SKIP_SETUP("the disk is added with its first table: since 5.15");
	}
	self->sysfs = diskseq_open_sysfs(self->d.disk);
	self->number = diskseq_read(self->sysfs);
	monitor_open(&self->mon, self->d.disk);
}

FIXTURE_TEARDOWN(same_medium)
{
	monitor_close(&self->mon);
	close(self->sysfs);
	dm_end(&self->d);
}

TEST_F(same_medium, r3_takes_no_number)
{
	uint64_t counter = next_number();

	ASSERT_EQ(variant->err, variant->operate(&self->d));
	EXPECT_EQ(counter + variant->disks + 1, next_number());
	EXPECT_EQ(self->number, diskseq_read(self->sysfs));
	EXPECT_EQ(self->number, diskseq_ioctl(self->d.disk, -1));
	EXPECT_EQ(self->number, diskseq_uevent_file(self->d.disk));
}

TEST_F(same_medium, r7_announces_nothing_and_wakes_nobody)
{
	const char *seen;

	ASSERT_EQ(variant->err, variant->operate(&self->d));
	seen = events(&self->mon, self->number);
	/* newer kernels say what the event is about */
	if (variant->resizes && !strcmp(seen, "change disk +0 resize"))
		seen = variant->events;
	EXPECT_STREQ(variant->events, seen);
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

TEST_F(same_medium, r12_next_table_behaves_after_it)
{
	ASSERT_EQ(variant->err, variant->operate(&self->d));
	monitor_drop(&self->mon);
	ASSERT_EQ(0, op_second_image(&self->d));
	EXPECT_EQ(self->number, diskseq_ioctl(self->d.disk, -1));
}

FIXTURE(life) {
	struct dm d;
	struct monitor all;
};

FIXTURE_SETUP(life)
{
	const char *missing = dm_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	dm_begin(&self->d);
	monitor_open(&self->all, NULL);
}

FIXTURE_TEARDOWN(life)
{
	monitor_close(&self->all);
	dm_end(&self->d);
}

TEST_F(life, r2_disk_takes_one_number_and_is_added_with_it)
{
	const char *want = "add disk +0";
	uint64_t counter = next_number();

	dm_create(&self->d);
	/* since 5.15 the first table adds the disk, and raises an event of its own */
	if (!disk_exists(self->d.disk)) {
		mapped(&self->d);
		want = "add disk +0, change disk +0";
	}
	EXPECT_EQ(counter + 1, diskseq_sysfs(self->d.disk));
	EXPECT_EQ(counter + 2, next_number());
	snprintf(self->all.disk, sizeof(self->all.disk), "%s", self->d.disk);
	EXPECT_STREQ(want, events(&self->all, counter + 1));
}

/* The device mapper says it, and the block layer does. */
TEST_F(life, r6_disk_leaves_with_its_number)
{
	uint64_t number;

	dm_create(&self->d);
	mapped(&self->d);
	number = diskseq_sysfs(self->d.disk);
	snprintf(self->all.disk, sizeof(self->all.disk), "%s", self->d.disk);
	monitor_drop(&self->all);
	dm_remove(&self->d);
	EXPECT_STREQ("remove disk +0, remove disk +0",
		     events(&self->all, number));
}

TEST_F(life, r1_disk_of_the_same_name_begins_anew)
{
	uint64_t number;
	char disk[16];

	dm_create(&self->d);
	mapped(&self->d);
	strcpy(disk, self->d.disk);
	number = diskseq_sysfs(disk);
	dm_remove(&self->d);
	dm_create(&self->d);
	mapped(&self->d);
	ASSERT_STREQ(disk, self->d.disk);
	EXPECT_LT(number, diskseq_sysfs(disk));
}

TEST_HARNESS_MAIN
