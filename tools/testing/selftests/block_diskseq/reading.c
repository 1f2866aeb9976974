// SPDX-License-Identifier: GPL-2.0
/*
 * The three ways to read a number (rule 5): BLKGETDISKSEQ, the file in sysfs and
 * the variable in every uevent, for disks and for partitions, with and without
 * privileges.
 */
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

FIXTURE(reading) {
	struct loop lo;
	struct monitor mon;
	uint64_t number;
	int image;
	int part;
	char part_name[32];
};

FIXTURE_SETUP(reading)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	self->image = image_create('a', 1);
	image_table(self->image, 0, TABLE_GPT, 1, "part");
	loop_attach(&self->lo, self->image, LO_FLAGS_PARTSCAN);
	self->number = diskseq(self->lo.fd);
	self->part = loop_open_part(&self->lo, 1, O_RDONLY);
	snprintf(self->part_name, sizeof(self->part_name), "%sp1", self->lo.name);
	monitor_open(&self->mon, self->lo.name);
}

FIXTURE_TEARDOWN(reading)
{
	monitor_close(&self->mon);
	close(self->part);
	loop_destroy(&self->lo);
	close(self->image);
}

TEST_F(reading, r5_three_readings_agree_on_a_disk)
{
	EXPECT_EQ(self->number, diskseq_sysfs(self->lo.name));
	EXPECT_EQ(self->number, diskseq_uevent_file(self->lo.name));
}

/* Programs have it compiled in. */
TEST_F(reading, r5_ioctl_has_its_fixed_number)
{
	uint64_t number;

	EXPECT_EQ((unsigned long)_IOR(0x12, 128, __u64),
		  (unsigned long)BLKGETDISKSEQ);
	ASSERT_EQ(0, ioctl(self->lo.fd, _IOR(0x12, 128, __u64), &number));
	EXPECT_EQ(self->number, number);
}

TEST_F(reading, r5_ioctl_and_uevent_file_agree_on_a_partition)
{
	EXPECT_EQ(self->number, diskseq(self->part));
	EXPECT_EQ(self->number, diskseq_uevent_file(self->part_name));
}

TEST_F(reading, r5_ioctl_works_however_the_disk_is_open)
{
	static const int flags[] = {
		O_RDONLY, O_WRONLY, O_RDWR, O_RDONLY | O_EXCL,
		O_RDONLY | O_NONBLOCK, O_RDONLY | O_DIRECT,
	};
	size_t i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = loop_open(&self->lo, flags[i]);
		EXPECT_EQ(self->number, diskseq(fd));
		close(fd);
	}
}

TEST_F(reading, r5_ioctl_works_however_the_partition_is_open)
{
	static const int flags[] = { O_RDONLY, O_WRONLY, O_RDWR };
	size_t i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = loop_open_part(&self->lo, 1, flags[i]);
		EXPECT_EQ(self->number, diskseq(fd));
		close(fd);
	}
}

TEST_F(reading, r5_ioctl_works_on_a_read_only_disk)
{
	int on = 1, fd;

	ASSERT_EQ(0, ioctl(self->lo.fd, BLKROSET, &on));
	fd = loop_open(&self->lo, O_RDONLY);
	EXPECT_EQ(self->number, diskseq(fd));
	close(fd);
}

TEST_F(reading, r5_ioctl_works_on_a_disk_without_medium)
{
	close(self->part);
	loop_detach(&self->lo);
	EXPECT_EQ(self->number + 1, diskseq(self->lo.fd));
	EXPECT_EQ(self->number + 1, diskseq_sysfs(self->lo.name));
	EXPECT_EQ(self->number + 1, diskseq_uevent_file(self->lo.name));
}

TEST_F(reading, r5_ioctl_writes_8_bytes_and_no_more)
{
	struct {
		uint64_t before;
		uint64_t number;
		uint64_t after;
	} arg = { ~0ULL, ~0ULL, ~0ULL };

	ASSERT_EQ(0, ioctl(self->lo.fd, BLKGETDISKSEQ, &arg.number));
	EXPECT_EQ(~0ULL, arg.before);
	EXPECT_EQ(self->number, arg.number);
	EXPECT_EQ(~0ULL, arg.after);
}

TEST_F(reading, r5_ioctl_takes_an_unaligned_pointer)
{
	char buf[1 + sizeof(uint64_t)];
	uint64_t number;

	ASSERT_EQ(0, ioctl(self->lo.fd, BLKGETDISKSEQ, buf + 1));
	memcpy(&number, buf + 1, sizeof(number));
	EXPECT_EQ(self->number, number);
}

TEST_F(reading, r5_ioctl_refuses_a_bad_pointer)
{
	long page = sysconf(_SC_PAGESIZE);
	char *map = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *bad[4];
	size_t i;

	ASSERT_TRUE(map != MAP_FAILED);
	ASSERT_EQ(0, mprotect(map + page, page, PROT_READ));
	ASSERT_EQ(0, mprotect(map + 2 * page, page, PROT_NONE));
	bad[0] = NULL;
	bad[1] = map + page;		/* may be read only */
	bad[2] = map + 2 * page;	/* may not be touched */
	bad[3] = map + page - 4;	/* ends where it may not be written */
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		errno = 0;
		EXPECT_EQ(-1, ioctl(self->lo.fd, BLKGETDISKSEQ, bad[i]));
		EXPECT_EQ(EFAULT, errno);
		errno = 0;
		EXPECT_EQ(-1, ioctl(self->part, BLKGETDISKSEQ, bad[i]));
		EXPECT_EQ(EFAULT, errno);
	}
	munmap(map, 3 * page);
	EXPECT_EQ(self->number, diskseq(self->lo.fd));
}

TEST_F(reading, r5_ioctl_is_unknown_to_what_is_no_block_device)
{
	int ends[2], fd[5];
	uint64_t number;
	size_t i;

	ASSERT_EQ(0, pipe(ends));
	fd[0] = self->image;
	fd[1] = open("/", O_RDONLY | O_DIRECTORY);
	fd[2] = open("/dev/null", O_RDWR);
	fd[3] = ends[0];
	fd[4] = diskseq_open_sysfs(self->lo.name);
	for (i = 0; i < ARRAY_SIZE(fd); i++) {
		ASSERT_LE(0, fd[i]);
		errno = 0;
		EXPECT_EQ(-1, ioctl(fd[i], BLKGETDISKSEQ, &number));
		EXPECT_EQ(ENOTTY, errno) {
			TH_LOG("file %zu", i);
		}
		if (i)
			close(fd[i]);
	}
	close(ends[1]);
}

TEST_F(reading, r5_ioctl_needs_a_file_that_is_open)
{
	uint64_t number;
	int fd;

	EXPECT_EQ(-1, ioctl(-1, BLKGETDISKSEQ, &number));
	EXPECT_EQ(EBADF, errno);

	fd = loop_open(&self->lo, O_PATH);
	EXPECT_EQ(-1, ioctl(fd, BLKGETDISKSEQ, &number));
	EXPECT_EQ(EBADF, errno);
	close(fd);
}

TEST_F(reading, r5_sysfs_file_is_for_everybody_to_read)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/sys/block/%s/diskseq", self->lo.name);
	ASSERT_EQ(0, stat(path, &st));
	EXPECT_EQ((mode_t)(S_IFREG | 0444), st.st_mode);
}

TEST_F(reading, r5_sysfs_file_cannot_be_written)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/diskseq", self->lo.name);
	EXPECT_EQ(-1, open(path, O_WRONLY));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, open(path, O_RDWR));
	EXPECT_EQ(EACCES, errno);
}

TEST_F(reading, r5_sysfs_file_is_a_decimal_number_and_a_newline)
{
	char want[32], have[32] = "";
	int fd = diskseq_open_sysfs(self->lo.name);
	int len;

	len = snprintf(want, sizeof(want), "%llu\n",
		       (unsigned long long)self->number);
	EXPECT_EQ(len, read(fd, have, sizeof(have)));
	EXPECT_STREQ(want, have);
	EXPECT_EQ(0, read(fd, have, sizeof(have)));
	close(fd);
}

TEST_F(reading, r5_open_sysfs_file_shows_each_new_number)
{
	int fd = diskseq_open_sysfs(self->lo.name);

	close(self->part);
	EXPECT_EQ(self->number, diskseq_read(fd));
	loop_detach(&self->lo);
	EXPECT_EQ(self->number + 1, diskseq_read(fd));
	loop_attach(&self->lo, self->image, 0);
	EXPECT_EQ(self->number + 2, diskseq_read(fd));
	close(fd);
}

TEST_F(reading, r5_synthetic_events_carry_the_number)
{
	trigger(self->lo.name, "change");
	trigger(self->part_name, "change");
	EXPECT_STREQ("change disk +0 synthetic, change p1 +0 synthetic",
		     events(&self->mon, self->number));
	trigger(self->lo.name, "add");
	trigger(self->part_name, "add");
	EXPECT_STREQ("add disk +0 synthetic, add p1 +0 synthetic",
		     events(&self->mon, self->number));
}

TEST_F(reading, r5_resize_event_carries_the_number)
{
	const char *mark;
	struct uevent ev;
	int count = 0;

	ASSERT_EQ(0, ftruncate(self->image, 2 * IMAGE_BYTES));
	ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_SET_CAPACITY));
	mark = mark_now();
	while (monitor_next_before(&self->mon, &ev, mark)) {
		EXPECT_EQ(self->number, ev.diskseq);
		EXPECT_FALSE(ev.media_change);
		count++;
	}
	EXPECT_LE(1, count);
}

TEST_F(reading, r5_events_of_other_disks_carry_theirs)
{
	struct loop other;
	struct monitor mon;
	uint64_t number;

	loop_create(&other);
	number = diskseq(other.fd);
	monitor_open(&mon, other.name);
	trigger(self->lo.name, "change");
	trigger(other.name, "change");
	EXPECT_STREQ("change disk +0 synthetic",
		     events(&self->mon, self->number));
	EXPECT_STREQ("change disk +0 synthetic", events(&mon, number));
	monitor_close(&mon);
	loop_destroy(&other);
}

/* What somebody without any privilege finds. */
struct nobody {
	const struct loop *lo;
	int disk;
	int part;
	uint64_t number;
};

static int nobody_ioctl(void *arg)
{
	struct nobody *n = arg;

	return diskseq(n->disk) == n->number && diskseq(n->part) == n->number ?
	       0 : 1;
}

static int nobody_sysfs(void *arg)
{
	struct nobody *n = arg;

	return diskseq_sysfs(n->lo->name) == n->number &&
	       diskseq_uevent_file(n->lo->name) == n->number ? 0 : 1;
}

static int nobody_polls(void *arg)
{
	struct nobody *n = arg;
	int fd = diskseq_open_sysfs(n->lo->name);

	diskseq_read(fd);
	return diskseq_wait(fd, 0);
}

static int nobody_opens(void *arg)
{
	struct nobody *n = arg;

	return open(n->lo->path, O_RDONLY) < 0 ? errno : 0;
}

TEST_F(reading, r5_unprivileged_process_reads_from_a_file_that_it_was_given)
{
	struct nobody n = {
		.disk = loop_open(&self->lo, O_RDONLY),
		.part = self->part,
		.number = self->number,
	};

	EXPECT_EQ(0, as_nobody(nobody_ioctl, &n));
	close(n.disk);
}

TEST_F(reading, r5_unprivileged_process_reads_sysfs)
{
	struct nobody n = { .lo = &self->lo, .number = self->number };

	/* who may not open the disk itself */
	EXPECT_EQ(EACCES, as_nobody(nobody_opens, &n));
	EXPECT_EQ(0, as_nobody(nobody_sysfs, &n));
	EXPECT_EQ(0, as_nobody(nobody_polls, &n));
}

TEST_HARNESS_MAIN
