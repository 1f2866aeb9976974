// SPDX-License-Identifier: GPL-2.0
/*
 * Partitions have the number of the medium that they were found on, also those
 * that outlive it (rule 6), come and go around the announcement of a medium
 * (rules 7 and 9), and come once (rule 10): those that the kernel finds in GPT
 * and MS-DOS tables as well as those that a program adds by BLKPG.
 */
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

/* Who adds the partitions. */
enum finder { SCAN, HAND, HAND_PARTSCAN };

struct medium {
	enum table table;
	enum finder finder;
	int count;		/* partitions */
	int next;		/* partitions of the medium that comes next */
};

struct disk {
	struct loop lo;
	struct monitor mon;
	uint64_t before;
	int image;
	int next;
	struct script want;
};

static unsigned int attach_flags(const struct medium *m)
{
	return m->finder == HAND ? 0 : LO_FLAGS_PARTSCAN;
}

static void disk_create(struct disk *d, const struct medium *m)
{
	loop_create(&d->lo);
	d->image = image_create('a', 2);
	d->next = image_create('b', 2);
	if (m->finder == SCAN) {
		image_table(d->image, 0, m->table, m->count, "a");
		image_table(d->image, IMAGE_SECTORS, m->table, m->next, "c");
		image_table(d->next, 0, m->table, m->next, "b");
	}
	monitor_open(&d->mon, d->lo.name);
}

static void disk_destroy(struct disk *d)
{
	monitor_close(&d->mon);
	loop_destroy(&d->lo);
	close(d->image);
	close(d->next);
}

static void add_by_hand(struct disk *d, const struct medium *m, int count)
{
	uint64_t start, sectors;
	int i;

	if (m->finder == SCAN)
		return;
	for (i = 1; i <= count; i++) {
		image_part(m->table, i, &start, &sectors);
		if (blkpg_add(d->lo.fd, i, start, sectors))
			die("BLKPG: %s", strerror(errno));
	}
}

static void attach(struct disk *d, const struct medium *m, unsigned int flags)
{
	struct loop_config config = {
		.fd = d->image,
		.info.lo_sizelimit = IMAGE_BYTES,
		.info.lo_flags = attach_flags(m) | flags,
	};

	if (ioctl(d->lo.fd, LOOP_CONFIGURE, &config))
		die("LOOP_CONFIGURE: %s", strerror(errno));
	add_by_hand(d, m, m->count);
}

static int change_offset(struct disk *d)
{
	struct loop_info64 info;

	loop_get_status(&d->lo, &info);
	info.lo_offset = IMAGE_BYTES;
	return ioctl(d->lo.fd, LOOP_SET_STATUS64, &info);
}

static void part_name(const struct disk *d, int partno, char name[32])
{
	snprintf(name, 32, "%sp%d", d->lo.name, partno);
}

static uint64_t part_uevent_file(const struct disk *d, int partno)
{
	char name[32];

	part_name(d, partno, name);
	return diskseq_uevent_file(name);
}

FIXTURE(partitions) {
	struct disk d;
};

FIXTURE_VARIANT(partitions) {
	struct medium m;
};

FIXTURE_VARIANT_ADD(partitions, no_table) {
	.m = { .table = TABLE_NONE, .finder = SCAN },
};

FIXTURE_VARIANT_ADD(partitions, gpt_0) {
	.m = { .table = TABLE_GPT, .finder = SCAN, .count = 0, .next = 1 },
};

FIXTURE_VARIANT_ADD(partitions, gpt_1) {
	.m = { .table = TABLE_GPT, .finder = SCAN, .count = 1, .next = 2 },
};

FIXTURE_VARIANT_ADD(partitions, gpt_3) {
	.m = { .table = TABLE_GPT, .finder = SCAN, .count = 3, .next = 0 },
};

FIXTURE_VARIANT_ADD(partitions, gpt_128) {
	.m = { .table = TABLE_GPT, .finder = SCAN, .count = 128, .next = 128 },
};

FIXTURE_VARIANT_ADD(partitions, msdos_1) {
	.m = { .table = TABLE_MSDOS, .finder = SCAN, .count = 1, .next = 4 },
};

FIXTURE_VARIANT_ADD(partitions, msdos_4) {
	.m = { .table = TABLE_MSDOS, .finder = SCAN, .count = 4, .next = 2 },
};

FIXTURE_VARIANT_ADD(partitions, msdos_logical) {
	.m = { .table = TABLE_MSDOS, .finder = SCAN, .count = 9, .next = 6 },
};

FIXTURE_VARIANT_ADD(partitions, blkpg) {
	.m = { .finder = HAND, .count = 3, .next = 2 },
};

FIXTURE_VARIANT_ADD(partitions, blkpg_partscan) {
	.m = { .finder = HAND_PARTSCAN, .count = 3, .next = 2 },
};

FIXTURE_SETUP(partitions)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	disk_create(&self->d, &variant->m);
	if (variant->m.finder == HAND && blkpg_needs_partscan(&self->d.lo)) {
		disk_destroy(&self->d);
		SKIP_SETUP("no BLKPG without LO_FLAGS_PARTSCAN");
	}
	self->d.before = diskseq(self->d.lo.fd);
	monitor_drop(&self->d.mon);
}

FIXTURE_TEARDOWN(partitions)
{
	disk_destroy(&self->d);
}

TEST_F(partitions, r6_are_added_with_the_number_of_their_medium)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, 0);
	script_parts(&d->want, "add", variant->m.count, 1);
	EXPECT_STREQ(d->want.text, part_events(&d->mon, d->before));
	EXPECT_EQ(variant->m.count, loop_count_parts(&d->lo));
}

TEST_F(partitions, r7_raise_no_second_event_of_the_disk)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, 0);
	script_add(&d->want, "change disk +1 media");
	script_parts(&d->want, "add", variant->m.count, 1);
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
}

TEST_F(partitions, r6_have_the_number_of_their_medium)
{
	struct disk *d = &self->d;
	int i, fd;

	attach(d, &variant->m, 0);
	for (i = 1; i <= variant->m.count; i++) {
		EXPECT_EQ(d->before + 1, part_uevent_file(d, i));
		fd = loop_open_part(&d->lo, i, O_RDONLY);
		EXPECT_EQ(d->before + 1, diskseq(fd));
		close(fd);
	}
}

TEST_F(partitions, r6_leave_with_the_number_of_their_medium)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, 0);
	monitor_drop(&d->mon);
	loop_detach(&d->lo);
	script_parts(&d->want, "remove", variant->m.count, 1);
	EXPECT_STREQ(d->want.text, part_events(&d->mon, d->before));
}

TEST_F(partitions, r6_leave_change_fd_with_the_number_of_their_medium)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, LO_FLAGS_READ_ONLY);
	monitor_drop(&d->mon);
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	script_parts(&d->want, "remove", variant->m.count, 1);
	script_parts(&d->want, "add", variant->m.finder == SCAN ?
				      variant->m.next : 0, 2);
	EXPECT_STREQ(d->want.text, part_events(&d->mon, d->before));
}

TEST_F(partitions, r9_leave_before_a_detach_is_announced)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, 0);
	monitor_drop(&d->mon);
	loop_detach(&d->lo);
	script_parts(&d->want, "remove", variant->m.count, 1);
	script_add(&d->want, "change disk +2 media");
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
	EXPECT_EQ(0, loop_count_parts(&d->lo));
}

TEST_F(partitions, r9_leave_before_a_deferred_detach_is_announced)
{
	struct disk *d = &self->d;
	int other;

	attach(d, &variant->m, 0);
	monitor_drop(&d->mon);
	other = loop_open(&d->lo, O_RDONLY);
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CLR_FD));
	loop_close(&d->lo);
	EXPECT_STREQ("", events(&d->mon, d->before));
	close(other);
	script_parts(&d->want, "remove", variant->m.count, 1);
	script_add(&d->want, "change disk +2 media");
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
}

TEST_F(partitions, r9_leave_before_autoclear_is_announced)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, LO_FLAGS_AUTOCLEAR);
	monitor_drop(&d->mon);
	loop_close(&d->lo);
	script_parts(&d->want, "remove", variant->m.count, 1);
	script_add(&d->want, "change disk +2 media");
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
}

/* Both for LOOP_CHANGE_FD and a new offset: those found by the kernel change. */
static void expect_exchange(struct disk *d, const struct medium *m)
{
	script_parts(&d->want, "remove", m->count, 1);
	script_add(&d->want, "change disk +2 media");
	script_parts(&d->want, "add", m->next, 2);
}

TEST_F(partitions, r9_are_exchanged_by_change_fd)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, LO_FLAGS_READ_ONLY);
	monitor_drop(&d->mon);
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	add_by_hand(d, &variant->m, variant->m.next);
	expect_exchange(d, &variant->m);
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
	EXPECT_EQ(variant->m.next, loop_count_parts(&d->lo));
}

TEST_F(partitions, r9_are_exchanged_by_a_new_offset)
{
	struct disk *d = &self->d;

	attach(d, &variant->m, 0);
	monitor_drop(&d->mon);
	ASSERT_EQ(0, change_offset(d));
	add_by_hand(d, &variant->m, variant->m.next);
	expect_exchange(d, &variant->m);
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
	EXPECT_EQ(variant->m.next, loop_count_parts(&d->lo));
}

TEST_F(partitions, r9_leave_when_the_transfer_changes)
{
	struct disk *d = &self->d;
	struct loop_info64 info;

	if (!loop_has_xor(&d->lo))
		SKIP(return, "no loop transfers: removed in 5.16");
	attach(d, &variant->m, 0);
	d->before = diskseq(d->lo.fd);
	monitor_drop(&d->mon);
	loop_get_status(&d->lo, &info);
	info.lo_encrypt_type = LO_CRYPT_XOR;
	info.lo_encrypt_key_size = 1;
	info.lo_encrypt_key[0] = 'x';
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_SET_STATUS64, &info));
	/* what can be read now is no table */
	script_parts(&d->want, "remove", variant->m.count, 0);
	script_add(&d->want, "change disk +1 media");
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
}

TEST_F(partitions, r10_are_added_again_by_an_explicit_rescan_only)
{
	struct disk *d = &self->d;
	int added[129] = { 0 }, removed[129] = { 0 }, i;
	int found = variant->m.finder == SCAN ? variant->m.count : 0;
	int told = 0;
	const char *mark;
	struct uevent ev;

	attach(d, &variant->m, 0);
	monitor_drop(&d->mon);

	/* what others do with a disk that they are curious about */
	for (i = 0; i < 5; i++) {
		loop_reopen(&d->lo);
		ioctl(d->lo.fd, BLKFLSBUF);
	}
	EXPECT_STREQ("", events(&d->mon, d->before));

	if (variant->m.finder == HAND) {
		EXPECT_EQ(-1, ioctl(d->lo.fd, BLKRRPART));
		EXPECT_STREQ("", events(&d->mon, d->before));
		return;
	}
	ASSERT_EQ(0, ioctl(d->lo.fd, BLKRRPART));
	mark = mark_now();
	while (monitor_next_before(&d->mon, &ev, mark)) {
		EXPECT_EQ(d->before + 1, ev.diskseq);
		EXPECT_FALSE(ev.media_change);
		if (!ev.partno) {
			told++;
			continue;
		}
		ASSERT_GE(variant->m.count, ev.partno);
		if (!strcmp(ev.action, "add"))
			added[ev.partno]++;
		else
			removed[ev.partno]++;
	}
	for (i = 1; i <= variant->m.count; i++) {
		EXPECT_EQ(1, removed[i]);
		EXPECT_EQ(i <= found, added[i]);
	}
	/* it is no new medium, but the table may have changed */
	if (found)
		EXPECT_EQ(1, told);
}

TEST_F(partitions, r10_are_added_once_when_scanning_is_enabled_later)
{
	int added[129] = { 0 }, i;
	struct disk *d = &self->d;
	struct loop_info64 info;
	const char *mark;
	struct uevent ev;

	loop_attach(&d->lo, d->image, 0);
	EXPECT_STREQ("", part_events(&d->mon, d->before));
	loop_get_status(&d->lo, &info);
	info.lo_flags |= LO_FLAGS_PARTSCAN;
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_SET_STATUS64, &info));
	mark = mark_now();
	while (monitor_next_before(&d->mon, &ev, mark)) {
		EXPECT_EQ(d->before + 1, ev.diskseq);
		EXPECT_FALSE(ev.media_change);
		if (!ev.partno)
			continue;
		EXPECT_STREQ("add", ev.action);
		added[ev.partno]++;
	}
	for (i = 1; variant->m.finder == SCAN && i <= variant->m.count; i++)
		EXPECT_EQ(1, added[i]);
}

TEST_F(partitions, r6_removed_by_hand_leaves_with_its_number)
{
	struct disk *d = &self->d;
	int i;

	attach(d, &variant->m, 0);
	monitor_drop(&d->mon);
	for (i = 1; i <= variant->m.count; i++)
		ASSERT_EQ(0, blkpg_del(d->lo.fd, i));
	script_parts(&d->want, "remove", variant->m.count, 1);
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
}

/* A partition that somebody has open when the medium goes. */
FIXTURE(in_use) {
	struct disk d;
	int part;
};

FIXTURE_VARIANT(in_use) {
	struct medium m;
};

FIXTURE_VARIANT_ADD(in_use, gpt) {
	.m = { .table = TABLE_GPT, .finder = SCAN, .count = 2, .next = 2 },
};

FIXTURE_VARIANT_ADD(in_use, msdos) {
	.m = { .table = TABLE_MSDOS, .finder = SCAN, .count = 2, .next = 2 },
};

FIXTURE_VARIANT_ADD(in_use, blkpg) {
	.m = { .finder = HAND, .count = 2 },
};

FIXTURE_VARIANT_ADD(in_use, blkpg_partscan) {
	.m = { .finder = HAND_PARTSCAN, .count = 2 },
};

FIXTURE_SETUP(in_use)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	disk_create(&self->d, &variant->m);
	if (variant->m.finder == HAND && blkpg_needs_partscan(&self->d.lo)) {
		disk_destroy(&self->d);
		SKIP_SETUP("no BLKPG without LO_FLAGS_PARTSCAN");
	}
	self->d.before = diskseq(self->d.lo.fd);
	monitor_drop(&self->d.mon);
	attach(&self->d, &variant->m, LO_FLAGS_READ_ONLY);
	self->part = loop_open_part(&self->d.lo, 1, O_RDONLY);
	monitor_drop(&self->d.mon);
}

FIXTURE_TEARDOWN(in_use)
{
	if (self->part >= 0)
		close(self->part);
	disk_destroy(&self->d);
}

/* The disk has a number of its own, and the partition the one it had. */
static bool outlives(FIXTURE_DATA(in_use) *self)
{
	struct disk *d = &self->d;

	return diskseq(self->part) == d->before + 1 &&
	       part_uevent_file(d, 1) == d->before + 1 &&
	       diskseq_of(d->lo.path) == d->before + 2 &&
	       diskseq_sysfs(d->lo.name) == d->before + 2;
}

TEST_F(in_use, r6_keeps_its_number_at_change_fd)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	EXPECT_TRUE(outlives(self));
	EXPECT_STREQ("", part_events(&d->mon, d->before));
}

TEST_F(in_use, r6_keeps_its_number_at_change_fd_by_its_own_file)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, ioctl(self->part, LOOP_CHANGE_FD, d->next));
	EXPECT_TRUE(outlives(self));
	EXPECT_STREQ("", part_events(&d->mon, d->before));
}

TEST_F(in_use, r6_keeps_its_number_at_a_new_offset)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, change_offset(d));
	EXPECT_TRUE(outlives(self));
	EXPECT_STREQ("", part_events(&d->mon, d->before));
}

TEST_F(in_use, r6_synthetic_events_tell_it_from_the_new_medium)
{
	struct disk *d = &self->d;
	char name[32];

	part_name(d, 1, name);
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	monitor_drop(&d->mon);
	trigger(name, "change");
	trigger(d->lo.name, "change");
	EXPECT_STREQ("change p1 +1 synthetic, change disk +2 synthetic",
		     events(&d->mon, d->before));
}

TEST_F(in_use, r9_leaves_with_its_number_at_the_next_change)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	close(self->part);
	self->part = -1;
	monitor_drop(&d->mon);
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->image));
	script_parts(&d->want, "remove", 2, 1);
	script_add(&d->want, "change disk +3 media");
	if (variant->m.finder == SCAN)
		script_parts(&d->want, "add", 2, 3);
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
}

TEST_F(in_use, r6_leaves_with_its_number_at_a_rescan_when_closed)
{
	struct disk *d = &self->d;
	const char *mark;
	struct uevent ev;
	int added = 0, removed = 0;

	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));

	/* a failed rescan tells nobody anything */
	monitor_drop(&d->mon);
	EXPECT_EQ(-1, ioctl(d->lo.fd, BLKRRPART));
	EXPECT_EQ(variant->m.finder == HAND ? EINVAL : EBUSY, errno);
	EXPECT_STREQ("", events(&d->mon, d->before));
	if (variant->m.finder == HAND)
		return;

	close(self->part);
	self->part = -1;
	ASSERT_EQ(0, ioctl(d->lo.fd, BLKRRPART));
	mark = mark_now();
	while (monitor_next_before(&d->mon, &ev, mark)) {
		EXPECT_FALSE(ev.media_change);
		if (!strcmp(ev.action, "remove")) {
			EXPECT_EQ(d->before + 1, ev.diskseq);
			removed++;
		} else {
			EXPECT_EQ(d->before + 2, ev.diskseq);
			added += !!ev.partno;
		}
	}
	EXPECT_EQ(2, removed);
	EXPECT_EQ(variant->m.next, added);
}

/* The open may look for the partitions, and find another one with the same name. */
TEST_F(in_use, r15_can_be_opened_again_when_closed)
{
	struct disk *d = &self->d;
	uint64_t start, sectors;

	if (variant->m.finder != SCAN)
		SKIP(return, "the next medium has no partition table");
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	close(self->part);
	self->part = loop_open_part(&d->lo, 1, O_RDONLY);
	/* some kernels look for partitions only when the disk is opened */
	if (diskseq(self->part) == d->before + 1)
		return;
	EXPECT_EQ(d->before + 2, diskseq(self->part));
	image_part(variant->m.table, 1, &start, &sectors);
	EXPECT_TRUE(sector_is(self->part, 0, 'b', start, NULL));
}

/* No scan would find again what was added by hand. */
TEST_F(in_use, r6_only_those_of_the_new_medium_are_left_when_closed)
{
	struct disk *d = &self->d;
	uint64_t start, sectors;

	if (variant->m.finder != HAND)
		SKIP(return, "the next open scans the disk, and adds what it finds");
	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	close(self->part);
	self->part = -1;
	image_part(variant->m.table, 3, &start, &sectors);
	ASSERT_EQ(0, blkpg_add(d->lo.fd, 3, start, sectors));

	look_at(d->lo.name, 0);
	EXPECT_TRUE(loop_has_part(&d->lo, 3));
	EXPECT_EQ(1, loop_count_parts(&d->lo));
	EXPECT_EQ(d->before + 2, part_uevent_file(d, 3));
	script_add(&d->want, "add p3 +2");
	script_parts(&d->want, "remove", 2, 1);
	EXPECT_STREQ(d->want.text, part_events(&d->mon, d->before));
}

TEST_F(in_use, r6_puts_a_detach_off)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CLR_FD));
	loop_close(&d->lo);
	EXPECT_STREQ("", events(&d->mon, d->before));
	EXPECT_EQ(d->before + 1, diskseq_sysfs(d->lo.name));

	/* the last close of all is the partition's */
	close(self->part);
	self->part = -1;
	script_parts(&d->want, "remove", 2, 1);
	EXPECT_STREQ(d->want.text, part_events(&d->mon, d->before));
	EXPECT_EQ(d->before + 2, diskseq_sysfs(d->lo.name));
	EXPECT_EQ(0, loop_count_parts(&d->lo));
}

/*
 * The partition's file is the only one open, so that a detach through it is
 * carried out while the partition is in use. False where it waits for the last
 * close all the same.
 */
static bool detach_by_partition(FIXTURE_DATA(in_use) *self)
{
	loop_close(&self->d.lo);
	if (ioctl(self->part, LOOP_CLR_FD))
		die("LOOP_CLR_FD: %s", strerror(errno));
	return !loop_detach_is_deferred(&self->d.lo);
}

TEST_F(in_use, r6_outlives_a_detach)
{
	struct disk *d = &self->d;

	if (!detach_by_partition(self))
		SKIP(return, "each detach waits for the last close: since 6.11");
	EXPECT_TRUE(outlives(self));
	EXPECT_STREQ("", part_events(&d->mon, d->before));
}

TEST_F(in_use, r7_media_are_announced_in_spite_of_it)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	ASSERT_EQ(0, change_offset(d));
	EXPECT_STREQ("change disk +2 media, change disk +3 media",
		     events(&d->mon, d->before));
}

TEST_F(in_use, r7_detach_and_attach_are_announced_in_spite_of_it)
{
	struct disk *d = &self->d;

	if (!detach_by_partition(self))
		SKIP(return, "each detach waits for the last close: since 6.11");
	loop_reopen(&d->lo);
	loop_attach(&d->lo, d->next, attach_flags(&variant->m));
	EXPECT_STREQ("change disk +2 media, change disk +3 media",
		     events(&d->mon, d->before));
}

TEST_F(in_use, r9_leaves_before_an_attach_is_announced)
{
	struct disk *d = &self->d;

	if (!detach_by_partition(self))
		SKIP(return, "each detach waits for the last close: since 6.11");
	close(self->part);
	self->part = -1;
	loop_reopen(&d->lo);
	monitor_drop(&d->mon);
	loop_attach(&d->lo, d->next, attach_flags(&variant->m));
	script_parts(&d->want, "remove", 2, 1);
	script_add(&d->want, "change disk +3 media");
	script_parts(&d->want, "add", variant->m.next, 3);
	EXPECT_STREQ(d->want.text, events(&d->mon, d->before));
}

TEST_F(in_use, r6_outlives_a_detach_and_an_attach)
{
	struct disk *d = &self->d;

	if (!detach_by_partition(self))
		SKIP(return, "each detach waits for the last close: since 6.11");
	loop_reopen(&d->lo);
	loop_attach(&d->lo, d->next, attach_flags(&variant->m));
	EXPECT_EQ(d->before + 1, diskseq(self->part));
	EXPECT_EQ(d->before + 1, part_uevent_file(d, 1));
	EXPECT_EQ(d->before + 3, diskseq(d->lo.fd));
	EXPECT_STREQ("", part_events(&d->mon, d->before));
}

TEST_F(in_use, r6_outlives_an_attach_by_its_own_file)
{
	struct disk *d = &self->d;
	struct loop_config config = {
		.fd = d->next,
		.info.lo_flags = attach_flags(&variant->m),
	};

	if (!detach_by_partition(self))
		SKIP(return, "each detach waits for the last close: since 6.11");
	ASSERT_EQ(0, ioctl(self->part, LOOP_CONFIGURE, &config));
	EXPECT_EQ(d->before + 1, diskseq(self->part));
	EXPECT_EQ(d->before + 1, part_uevent_file(d, 1));
	EXPECT_EQ(d->before + 3, diskseq_sysfs(d->lo.name));
	EXPECT_STREQ("", part_events(&d->mon, d->before));
}

/*
 * A program that has mapped the disk keeps the pages of the old medium, with its
 * table; the partitions of the new one are not to be read from there.
 */
FIXTURE(mapped) {
	struct disk d;
	void *pages;
};

FIXTURE_VARIANT(mapped) {
	struct medium m;
};

FIXTURE_VARIANT_ADD(mapped, gpt) {
	.m = { .table = TABLE_GPT, .finder = SCAN, .count = 3, .next = 1 },
};

FIXTURE_VARIANT_ADD(mapped, msdos) {
	.m = { .table = TABLE_MSDOS, .finder = SCAN, .count = 3, .next = 1 },
};

FIXTURE_SETUP(mapped)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	disk_create(&self->d, &variant->m);
	self->d.before = diskseq(self->d.lo.fd);
	attach(&self->d, &variant->m, LO_FLAGS_READ_ONLY);
	/* newer kernels map what is read-only by such a file alone */
	loop_close(&self->d.lo);
	self->d.lo.fd = loop_open(&self->d.lo, O_RDONLY);
	self->pages = mmap(NULL, IMAGE_BYTES, PROT_READ,
			   MAP_SHARED | MAP_POPULATE, self->d.lo.fd, 0);
	ASSERT_TRUE(self->pages != MAP_FAILED);
	monitor_drop(&self->d.mon);
}

FIXTURE_TEARDOWN(mapped)
{
	munmap(self->pages, IMAGE_BYTES);
	disk_destroy(&self->d);
}

TEST_F(mapped, r6_partitions_are_those_of_the_medium_after_a_detach)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CLR_FD));
	if (loop_detach_is_deferred(&d->lo))
		SKIP(return, "the detach waits for the mapping to go: since 6.11");
	loop_attach(&d->lo, d->next, LO_FLAGS_PARTSCAN);
	EXPECT_STREQ("remove p1-3 +1, add p1 +3",
		     part_events(&d->mon, d->before));
}

TEST_F(mapped, r6_partitions_are_those_of_the_medium_after_change_fd)
{
	struct disk *d = &self->d;

	ASSERT_EQ(0, ioctl(d->lo.fd, LOOP_CHANGE_FD, d->next));
	EXPECT_STREQ("remove p1-3 +1, add p1 +2",
		     part_events(&d->mon, d->before));
}

/*
 * Programs that look at each disk and partition of which they get an event, as
 * udev does, while media come and go. This is done once for all tests of a
 * variant, by the first of them.
 */
#define MAX_ATTACHES		200
#define OPENERS			2
#define PARTS			3

struct result {
	bool done;
	int attaches;
	uint64_t before;
	uint64_t last;		/* number that was announced */
	int announced;
	int not_next;		/* announcements that are not of the next number */
	int not_greater;	/* announcements of a number below the last one */
	int other_events;	/* of the disk, that are no announcements */
	int added_twice;	/* partitions, for one number */
	int not_added;
	int other_medium;	/* that leave with another number */
	int not_removed;
};

static struct result *results;

static void __attribute__((constructor)) results_alloc(void)
{
	results = shared_memory(4 * sizeof(*results));
}

FIXTURE(opener) {
	struct result *result;
};

FIXTURE_VARIANT(opener) {
	int run;
	int attaches;
	enum table table;
	unsigned int flags;
	bool busy;
};

FIXTURE_VARIANT_ADD(opener, gpt) {
	.run = 0,
	.attaches = MAX_ATTACHES,
	.table = TABLE_GPT,
	.flags = LO_FLAGS_PARTSCAN,
};

FIXTURE_VARIANT_ADD(opener, msdos) {
	.run = 1,
	.attaches = 50,
	.table = TABLE_MSDOS,
	.flags = LO_FLAGS_PARTSCAN,
};

/* LO_FLAGS_PARTSCAN by a LOOP_SET_STATUS64 of its own */
FIXTURE_VARIANT_ADD(opener, gpt_scanned_later) {
	.run = 2,
	.attaches = 50,
	.table = TABLE_GPT,
};

/*
 * While other loop devices come and go, each step of an open takes its time, and
 * an open that finds its partition gone may get in the way of the next attach.
 */
FIXTURE_VARIANT_ADD(opener, gpt_busy) {
	.run = 3,
	.attaches = 60,
	.table = TABLE_GPT,
	.flags = LO_FLAGS_PARTSCAN,
	.busy = true,
};

/*
 * Returns the number of the medium. The last detach may not have been carried
 * out: then it has to be tried again.
 */
static uint64_t attach_when_free(const struct loop *lo, int image,
				 unsigned int flags)
{
	int64_t end = now_ms() + limit_ms();
	struct loop try = *lo;
	uint64_t number;

	for (;;) {
		try.fd = loop_open(lo, O_RDWR);
		if (!loop_configure(&try, image, flags))
			break;
		if (errno != EBUSY || now_ms() > end)
			die("LOOP_CONFIGURE: %s", strerror(errno));
		close(try.fd);
		poll(NULL, 0, 1);
	}
	if (!(flags & LO_FLAGS_PARTSCAN)) {
		struct loop_info64 info = { .lo_flags = LO_FLAGS_PARTSCAN };

		if (ioctl(try.fd, LOOP_SET_STATUS64, &info))
			die("LOOP_SET_STATUS64: %s", strerror(errno));
	}
	number = diskseq(try.fd);
	if (ioctl(try.fd, LOOP_CLR_FD))
		die("LOOP_CLR_FD: %s", strerror(errno));
	close(try.fd);
	return number;
}

/* Which of the media that were attached has this number? */
static int medium_of(const struct result *result, const uint64_t *numbers,
		     uint64_t number)
{
	int i;

	for (i = 0; i < result->attaches; i++)
		if (numbers[i] == number)
			return i;
	return -1;
}

static void check_openers(struct result *result, struct monitor *mon,
			  const uint64_t *numbers, const char *mark)
{
	static int added[MAX_ATTACHES][PARTS + 1];
	uint64_t number[PARTS + 1] = { 0 };
	struct uevent ev;
	int i, p;

	result->last = result->before;
	while (monitor_next_before(mon, &ev, mark)) {
		if (!ev.partno && ev.media_change) {
			result->announced++;
			result->not_next += ev.diskseq != result->last + 1;
			result->not_greater += ev.diskseq <= result->last;
			result->last = ev.diskseq;
		} else if (!ev.partno) {
			result->other_events++;
		} else if (ev.partno > PARTS) {
			die("a partition that is not in the table");
		} else if (!strcmp(ev.action, "add")) {
			i = medium_of(result, numbers, ev.diskseq);
			result->other_medium += i < 0;
			if (i >= 0)
				result->added_twice += added[i][ev.partno]++;
			number[ev.partno] = ev.diskseq;
		} else {
			result->other_medium += number[ev.partno] != ev.diskseq;
			number[ev.partno] = 0;
		}
	}
	for (p = 1; p <= PARTS; p++) {
		for (i = 0; i < result->attaches; i++)
			result->not_added += !added[i][p];
		result->not_removed += !!number[p];
	}
}

static pid_t start_making_disks(void)
{
	pid_t pid = spawn();

	while (!pid)
		next_number();
	return pid;
}

static void attach_with_openers(struct result *result,
				const FIXTURE_VARIANT(opener) *v)
{
	uint64_t numbers[MAX_ATTACHES];
	pid_t pid[OPENERS], maker = 0;
	struct monitor mon;
	struct loop lo;
	int image, i;

	loop_create(&lo);
	image = image_create('a', 1);
	image_table(image, 0, v->table, PARTS, "part");
	result->attaches = v->attaches;
	result->before = diskseq(lo.fd);
	monitor_open(&mon, lo.name);
	loop_close(&lo);
	for (i = 0; i < OPENERS; i++)
		pid[i] = spawn_opener(lo.name);
	if (v->busy)
		maker = start_making_disks();

	for (i = 0; i < result->attaches; i++)
		numbers[i] = attach_when_free(&lo, image, v->flags);
	for (i = 0; i < OPENERS; i++)
		end_child(pid[i]);
	if (maker)
		end_child(maker);
	check_openers(result, &mon, numbers, mark_now());

	monitor_close(&mon);
	loop_destroy(&lo);
	close(image);
	result->done = true;
}

FIXTURE_SETUP(opener)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	self->result = &results[variant->run];
	if (!self->result->done) {
		memset(self->result, 0, sizeof(*self->result));
		attach_with_openers(self->result, variant);
	}
}

FIXTURE_TEARDOWN(opener)
{
}

TEST_F(opener, r10_does_not_make_partitions_come_twice)
{
	EXPECT_EQ(0, self->result->added_twice);
	EXPECT_EQ(0, self->result->not_added);
}

TEST_F(opener, r6_does_not_change_what_partitions_leave_with)
{
	EXPECT_EQ(0, self->result->other_medium);
	EXPECT_EQ(0, self->result->not_removed);
}

TEST_F(opener, r7_does_not_raise_or_lose_announcements)
{
	/* attached and detached */
	EXPECT_EQ(2 * variant->attaches, self->result->announced);
	EXPECT_EQ(0, variant->busy ? self->result->not_greater :
				     self->result->not_next);
	/* a scan that is asked for may tell that it was done */
	if (variant->flags & LO_FLAGS_PARTSCAN) {
		EXPECT_EQ(0, self->result->other_events);
	}
}

TEST_HARNESS_MAIN
