// SPDX-License-Identifier: GPL-2.0
/*
 * nbd with max_part=0: nobody who opens a device has it scanned, but a program can
 * ask for partitions, or add them, and they leave with their medium (rules 6, 9, 10).
 *
 * The driver takes the parameter when it starts, so this needs a machine that was
 * booted with nbd.max_part=0.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include <linux/fs.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "nbd_dev.h"

#define PARTS		3

static int max_partitions(void)
{
	FILE *file = fopen("/sys/module/nbd/parameters/max_part", "re");
	int value = -1;

	if (file) {
		if (fscanf(file, "%d", &value) != 1)
			value = -1;
		fclose(file);
	}
	return value;
}

FIXTURE(unscanned) {
	struct nbd n;
};

FIXTURE_VARIANT(unscanned) {
	void (*connect)(struct nbd *n);
	int (*disconnect)(struct nbd *n);
};

FIXTURE_VARIANT_ADD(unscanned, by_ioctl) {
	.connect = by_ioctl,
	.disconnect = op_disconnect_by_ioctl,
};

FIXTURE_VARIANT_ADD(unscanned, by_ioctl_until_the_server_dies) {
	.connect = by_ioctl,
	.disconnect = op_server_dies,
};

FIXTURE_VARIANT_ADD(unscanned, by_netlink) {
	.connect = by_netlink,
	.disconnect = op_disconnect_by_netlink,
};

FIXTURE_SETUP(unscanned)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	if (max_partitions() != 0)
		SKIP_SETUP("needs the nbd driver with max_part=0");
	nbd_create(&self->n, MAX_INDEX);
	image_table(self->n.image[0], 0, TABLE_MSDOS, PARTS, "a");
	image_table(self->n.image[1], 0, TABLE_MSDOS, PARTS, "b");
	nbd_begin(&self->n);
}

FIXTURE_TEARDOWN(unscanned)
{
	nbd_destroy(&self->n);
}

TEST_F(unscanned, r10_partitions_come_when_they_are_asked_for)
{
	variant->connect(&self->n);
	nbd_scan(&self->n);
	nbd_open(&self->n);
	EXPECT_STREQ("change disk +1 media",
		     events(&self->n.mon, self->n.before));
	if (ioctl(self->n.fd, BLKRRPART)) {
		EXPECT_EQ(EINVAL, errno);
		SKIP(return, "this kernel has no partitions on a disk with one minor");
	}
	EXPECT_STREQ("change disk +1, add p1-3 +1",
		     events(&self->n.mon, self->n.before));
}

/* Also those that a program has added, of which no table knows. */
TEST_F(unscanned, r9_partitions_leave_before_the_disconnect_is_announced)
{
	variant->connect(&self->n);
	nbd_open(&self->n);
	if (blkpg_add(self->n.fd, 1, 64, 64)) {
		/* there are none on a disk with one minor, as on 5.10 */
		ASSERT_EQ(EINVAL, errno);
		EXPECT_STREQ("change disk +1 media",
			     events(&self->n.mon, self->n.before));
		ASSERT_EQ(0, variant->disconnect(&self->n));
		EXPECT_STREQ("change disk +2 media",
			     events(&self->n.mon, self->n.before));
		return;
	}
	EXPECT_STREQ("change disk +1 media, add p1 +1",
		     events(&self->n.mon, self->n.before));
	ASSERT_EQ(0, variant->disconnect(&self->n));
	EXPECT_STREQ("remove p1 +1, change disk +2 media",
		     events(&self->n.mon, self->n.before));
	nbd_close(&self->n);
	end_server(&self->n, 0);

	ASSERT_EQ(0, connect_by_netlink(&self->n, self->n.image[1],
					NBD_FLAG_HAS_FLAGS, 0, 1));
	nbd_scan(&self->n);
	EXPECT_STREQ("change disk +3 media",
		     events(&self->n.mon, self->n.before));
	EXPECT_EQ(0, disk_count_parts(self->n.name));
}

TEST_HARNESS_MAIN
