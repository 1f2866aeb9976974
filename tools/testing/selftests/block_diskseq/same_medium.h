/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Operations that leave a disk its medium, refused ones (rule 12) among them: the
 * same tests for the drivers of new_medium.h, which is included before.
 */
#ifndef SAME_MEDIUM_H
#define SAME_MEDIUM_H

#include "new_medium.h"

FIXTURE(same_medium) {
	struct DISK disk;
	struct DISK other;		/* for a comparison */
	const char *name;
	struct monitor mon;
	uint64_t number;
	int sysfs;
};

FIXTURE_VARIANT(same_medium) {
	int kind;
	void (*prepare)(struct DISK *d);
	int (*operate)(struct DISK *d);
	const char *events;	/* none if not set */
	bool may_resize;	/* RESIZE=1 in them does not matter */
	int error;		/* that @operate returns */
	bool gone;		/* for ever: it cannot be opened any more */
};

FIXTURE_SETUP(same_medium)
{
	const char *missing = driver_create(&self->disk, variant->kind);

	if (missing)
		SKIP_SETUP("%s", missing);
	variant->prepare(&self->disk);
	self->name = driver_name(&self->disk);
	self->sysfs = diskseq_open_sysfs(self->name);
	self->number = diskseq_read(self->sysfs);
	monitor_open(&self->mon, self->name);
}

FIXTURE_TEARDOWN(same_medium)
{
	monitor_close(&self->mon);
	close(self->sysfs);
	driver_destroy(&self->disk);
	driver_destroy(&self->other);
}

TEST_F(same_medium, r3_takes_no_number)
{
	uint64_t counter = next_number();

	ASSERT_EQ(variant->error, variant->operate(&self->disk));
	EXPECT_EQ(self->number, diskseq_read(self->sysfs));
	EXPECT_TRUE(ioctls_say(&self->disk, variant->gone, self->number));
	EXPECT_EQ(counter + 1, next_number());
}

static void expect_no_announcement(FIXTURE_DATA(same_medium) *self,
				   const FIXTURE_VARIANT(same_medium) *variant,
				   struct __test_metadata *_metadata)
{
	const char *seen;

	ASSERT_EQ(variant->error, variant->operate(&self->disk));
	seen = events(&self->mon, self->number);
	if (variant->may_resize)
		seen = without_resize(seen);
	EXPECT_STREQ(variant->events ?: "", seen);
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

#endif /* SAME_MEDIUM_H */
