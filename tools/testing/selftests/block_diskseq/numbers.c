// SPDX-License-Identifier: GPL-2.0
/*
 * Where numbers come from: one counter for all disks (rule 1), from which a disk
 * has its first number before anybody can see it (rule 2), and which holds when
 * many processes change and read disks at once (rule 4).
 */
#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

/* Operations that each of the processes that change a disk does. */
#define CHANGES			80
#define CHANGERS		3
/* Disks that each of the processes that make disks makes. */
#define MADE			10
/* Disks that somebody attaches an image to while they are made. */
#define AWAITED			200

FIXTURE(counter) {
	struct loop lo[8];
	struct monitor all;
	int image;
};

FIXTURE_SETUP(counter)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	self->image = image_create('a', 1);
	monitor_open(&self->all, NULL);
}

FIXTURE_TEARDOWN(counter)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(self->lo); i++)
		loop_destroy(&self->lo[i]);
	monitor_close(&self->all);
	close(self->image);
}

TEST_F(counter, r1_each_new_disk_takes_a_greater_number)
{
	uint64_t number, last = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(self->lo); i++) {
		loop_create(&self->lo[i]);
		number = diskseq(self->lo[i].fd);
		EXPECT_LT(last, number);
		last = number;
	}
}

static DIR *open_dir(const char *path)
{
	DIR *dir = opendir(path);

	if (!dir)
		die("%s: %s", path, strerror(errno));
	return dir;
}

TEST_F(counter, r1_no_disk_has_number_0)
{
	struct dirent *entry;
	DIR *dir;

	loop_create(&self->lo[0]);
	dir = open_dir("/sys/block");
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		EXPECT_NE(0ULL, diskseq_sysfs(entry->d_name)) {
			TH_LOG("%s", entry->d_name);
		}
	}
	closedir(dir);
}

TEST_F(counter, r1_no_two_disks_have_the_same_number)
{
	uint64_t numbers[512];
	struct dirent *entry;
	size_t count = 0, i;
	DIR *dir;

	for (i = 0; i < ARRAY_SIZE(self->lo); i++)
		loop_create(&self->lo[i]);
	dir = open_dir("/sys/block");
	while ((entry = readdir(dir)) && count < ARRAY_SIZE(numbers)) {
		if (entry->d_name[0] == '.')
			continue;
		numbers[count] = diskseq_sysfs(entry->d_name);
		for (i = 0; i < count; i++) {
			EXPECT_NE(numbers[i], numbers[count]) {
				TH_LOG("%s", entry->d_name);
			}
		}
		count++;
	}
	closedir(dir);
}

TEST_F(counter, r1_disks_take_turns_at_one_counter)
{
	uint64_t last;
	int i, turn;

	for (i = 0; i < 3; i++)
		loop_create(&self->lo[i]);
	last = diskseq(self->lo[2].fd);
	for (turn = 0; turn < 4; turn++) {
		for (i = 0; i < 3; i++) {
			if (turn % 2)
				loop_detach(&self->lo[i]);
			else
				loop_attach(&self->lo[i], self->image, 0);
			EXPECT_EQ(last + 1, diskseq(self->lo[i].fd));
			last++;
		}
	}
}

TEST_F(counter, r1_number_of_a_removed_disk_does_not_come_back)
{
	uint64_t number;

	loop_create(&self->lo[0]);
	number = diskseq(self->lo[0].fd);
	loop_destroy(&self->lo[0]);
	loop_create(&self->lo[1]);
	EXPECT_LT(number, diskseq(self->lo[1].fd));
}

TEST_F(counter, r1_number_of_an_earlier_medium_does_not_come_back)
{
	uint64_t first, empty;

	loop_create(&self->lo[0]);
	loop_attach(&self->lo[0], self->image, 0);
	first = diskseq(self->lo[0].fd);
	loop_detach(&self->lo[0]);
	empty = diskseq(self->lo[0].fd);
	EXPECT_LT(first, empty);
	loop_attach(&self->lo[0], self->image, 0);
	EXPECT_LT(empty, diskseq(self->lo[0].fd));
}

TEST_F(counter, r2_disk_takes_one_number_to_come_into_being)
{
	uint64_t before = next_number();

	loop_create(&self->lo[0]);
	EXPECT_EQ(before + 1, diskseq(self->lo[0].fd));
	EXPECT_EQ(before + 2, next_number());
}

TEST_F(counter, r7_first_number_is_announced_by_add)
{
	struct monitor mon;
	uint64_t number;

	loop_create(&self->lo[0]);
	number = diskseq(self->lo[0].fd);
	snprintf(self->all.disk, sizeof(self->all.disk), "%s", self->lo[0].name);
	EXPECT_STREQ("add disk +0", events(&self->all, number));

	/* and it leaves with the number that it has then */
	monitor_open(&mon, self->lo[0].name);
	loop_attach(&self->lo[0], self->image, 0);
	loop_detach(&self->lo[0]);
	number = diskseq(self->lo[0].fd);
	monitor_drop(&mon);
	loop_destroy(&self->lo[0]);
	EXPECT_STREQ("remove disk +0", events(&mon, number));
	monitor_close(&mon);
}

TEST_F(counter, r8_first_number_can_be_read_when_add_comes)
{
	const char *mark = mark_new();
	struct uevent ev;
	pid_t pid;

	/* another process makes the disks, this one looks at once */
	pid = spawn();
	if (!pid) {
		struct loop lo;
		int i;

		for (i = 0; i < 20; i++) {
			loop_create(&lo);
			loop_close(&lo);
		}
		mark_raise(mark);
		_exit(0);
	}
	while (monitor_next_before(&self->all, &ev, mark)) {
		if (strcmp(ev.action, "add"))
			continue;
		EXPECT_LE(ev.diskseq, diskseq_sysfs(ev.disk));
		EXPECT_EQ(ev.diskseq, diskseq_uevent_file(ev.disk));
	}
	ASSERT_EQ(0, child_status(pid));
}

/* Attaches an image to the disk as soon as it is there. */
static pid_t start_attacher(const char *path, int image)
{
	struct loop_config config = { .fd = image, .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	struct gate ready;
	pid_t pid;
	int fd, ret;

	gate_create(&ready);
	pid = spawn();
	if (!pid) {
		gate_pass(&ready);
		do {
			fd = open(path, O_RDWR | O_CLOEXEC);
			ret = ioctl(fd, LOOP_CONFIGURE, &config);
			close(fd);
		} while (ret);
		_exit(0);
	}
	close(ready.fd[1]);
	gate_wait(&ready);
	close(ready.fd[0]);
	return pid;
}

TEST_F(counter, r7_add_comes_before_a_medium_is_announced)
{
	struct loop *lo = &self->lo[0];
	struct uevent ev;
	uint64_t number;
	char path[32];
	pid_t pid;
	int i;

	loop_create(lo);
	strcpy(path, lo->path);
	strcpy(self->all.disk, lo->name);
	loop_destroy(lo);
	monitor_drop(&self->all);

	for (i = 0; i < AWAITED; i++) {
		pid = start_attacher(path, self->image);
		loop_create(lo);
		ASSERT_STREQ(path, lo->path);
		ASSERT_EQ(0, child_status(pid));
		loop_destroy(lo);

		ASSERT_TRUE(monitor_next(&self->all, &ev, limit_ms()));
		ASSERT_STREQ("add", ev.action);
		do {
			number = ev.diskseq;
			ASSERT_TRUE(monitor_next(&self->all, &ev, limit_ms()));
			/* add has told of the medium that the disk had by then */
			if (ev.media_change)
				ASSERT_LT(number, ev.diskseq);
		} while (strcmp(ev.action, "remove"));
		ASSERT_EQ(number, ev.diskseq);
	}
}

/* Create, attach, detach and remove disks; the numbers go to @numbers. */
static pid_t start_maker(int image, uint64_t *numbers)
{
	pid_t pid = spawn();
	struct loop lo;
	int n;

	if (pid)
		return pid;
	for (n = 0; n < MADE; n++) {
		loop_create(&lo);
		*numbers++ = diskseq(lo.fd);
		loop_attach(&lo, image, 0);
		*numbers++ = diskseq(lo.fd);
		loop_detach(&lo);
		*numbers++ = diskseq(lo.fd);
		loop_destroy(&lo);
	}
	_exit(0);
}

TEST_F(counter, r1_concurrent_disks_never_share_a_number)
{
	const size_t total = CHANGERS * MADE * 3;
	uint64_t *numbers = shared_memory(total * sizeof(*numbers));
	uint64_t before = next_number();
	uint8_t seen[CHANGERS * MADE * 3] = { 0 };
	pid_t pid[CHANGERS];
	size_t i;

	for (i = 0; i < CHANGERS; i++)
		pid[i] = start_maker(self->image, numbers + i * MADE * 3);
	for (i = 0; i < CHANGERS; i++) {
		ASSERT_EQ(0, child_status(pid[i]));
	}
	for (i = 0; i < total; i++) {
		ASSERT_LT(before, numbers[i]);
		ASSERT_GE(before + total, numbers[i]);
		EXPECT_EQ(0, seen[numbers[i] - before - 1]++);
	}
	EXPECT_EQ(before + total + 1, next_number());
}

/*
 * Several processes change the medium of one disk at once, each in its own way,
 * while others read its number. This is done once for all tests of a variant, by
 * the first of them.
 */
struct result {
	bool done;
	uint64_t changes;	/* that were not refused */
	uint64_t numbers;	/* that were taken */
	uint64_t last;		/* that the disk has in the end */
	uint64_t backward;	/* readings below an earlier one */
	uint64_t torn;		/* readings of what was never given */
	uint64_t announced;
	uint64_t not_next;	/* announcements that are not of the next number */
	uint64_t part_events;
	uint64_t other_medium;	/* partition events with a wrong number */
	uint64_t out_of_order;	/* partitions not around the announcement */
	/* by the process that measures it */
	uint64_t before;
	int stop;
	uint64_t reading[3];	/* by each way */
};

static struct result *results;

static void __attribute__((constructor)) results_alloc(void)
{
	results = shared_memory(2 * sizeof(*results));
}

FIXTURE(one_disk) {
	struct result *result;
};

FIXTURE_VARIANT(one_disk) {
	int run;
	unsigned int flags;
	enum table table;
};

FIXTURE_VARIANT_ADD(one_disk, plain) {
	.run = 0,
	.flags = LO_FLAGS_READ_ONLY,
	.table = TABLE_NONE,
};

FIXTURE_VARIANT_ADD(one_disk, partscan) {
	.run = 1,
	.flags = LO_FLAGS_READ_ONLY | LO_FLAGS_PARTSCAN,
	.table = TABLE_GPT,
};

static void count(uint64_t *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

/* One process gives it another file, the others another offset. */
static int change(const struct loop *lo, const int image[2], int process, int n)
{
	struct loop_info64 info;

	if (process == 0)
		return ioctl(lo->fd, LOOP_CHANGE_FD, image[n % 2]);
	loop_get_status(lo, &info);
	/* there is a table only where the second process puts the offset */
	if (process == 1)
		info.lo_offset = n % 2 ? 8 * SECTOR : 16 * SECTOR;
	else
		info.lo_offset = n % 2 ? IMAGE_BYTES : 0;
	info.lo_sizelimit = IMAGE_BYTES;
	return ioctl(lo->fd, LOOP_SET_STATUS64, &info);
}

static pid_t start_changer(struct result *result, const struct loop *lo,
			   const int image[2], int process)
{
	pid_t pid = spawn();
	int n;

	if (pid)
		return pid;
	for (n = 0; n < CHANGES; n++) {
		/*
		 * Refused while the others have pages in the cache (EAGAIN) or
		 * sizes differ for a moment (EINVAL).
		 */
		if (!change(lo, image, process, n))
			count(&result->changes);
		else if (errno != EAGAIN && errno != EINVAL)
			die("change: %s", strerror(errno));
	}
	_exit(0);
}

enum reading { BY_IOCTL, BY_SYSFS, BY_UEVENT_FILE, READINGS };

static uint64_t reading(const struct loop *lo, enum reading how)
{
	switch (how) {
	case BY_IOCTL:
		return diskseq(lo->fd);
	case BY_SYSFS:
		return diskseq_sysfs(lo->name);
	default:
		return diskseq_uevent_file(lo->name);
	}
}

static pid_t start_reader(struct result *result, const struct loop *lo,
			  enum reading how)
{
	uint64_t number, last = result->before;
	pid_t pid = spawn();

	if (pid)
		return pid;
	while (!__atomic_load_n(&result->stop, __ATOMIC_RELAXED)) {
		number = reading(lo, how);
		if (number < last)
			count(&result->backward);
		/* torn, it would be far from all that were given */
		if (number > result->before + CHANGERS * CHANGES)
			count(&result->torn);
		count(&result->reading[how]);
		last = number;
	}
	_exit(0);
}

static void check_part_event(struct result *result, const struct uevent *ev,
			     uint64_t current, uint64_t number[3])
{
	count(&result->part_events);
	if (ev->partno > 2)
		die("a partition that is not in the table");
	if (!strcmp(ev->action, "add")) {
		if (number[ev->partno] || ev->diskseq != current)
			count(&result->out_of_order);
		number[ev->partno] = ev->diskseq;
	} else {
		if (ev->diskseq != number[ev->partno])
			count(&result->other_medium);
		number[ev->partno] = 0;
	}
}

static void check_events(struct result *result, struct monitor *mon, bool parts,
			 const char *mark)
{
	uint64_t number[3] = { 0 }, current = result->before;
	uint64_t last = result->before;
	struct uevent ev;

	if (parts) {
		number[1] = current;
		number[2] = current;
	}
	while (monitor_next_before(mon, &ev, mark)) {
		if (ev.partno) {
			check_part_event(result, &ev, current, number);
			continue;
		}
		if (ev.diskseq > current) {
			current = ev.diskseq;
			if (number[1] || number[2])
				count(&result->out_of_order);
		}
		if (!ev.media_change)
			continue;
		count(&result->announced);
		if (ev.diskseq != last + 1)
			count(&result->not_next);
		last = ev.diskseq;
	}
}

static void change_and_read(struct result *result, unsigned int flags,
			    enum table table)
{
	pid_t changer[CHANGERS], reader[READINGS];
	struct monitor mon;
	struct loop lo;
	int image[2], i;

	loop_create(&lo);
	for (i = 0; i < 2; i++) {
		image[i] = image_create('a' + i, 2);
		image_table(image[i], 0, table, 2, "part");
		image_table(image[i], IMAGE_SECTORS, table, 2, "part");
	}
	loop_attach(&lo, image[0], flags);
	memset(result, 0, sizeof(*result));
	result->before = diskseq(lo.fd);
	monitor_open(&mon, lo.name);

	for (i = 0; i < READINGS; i++)
		reader[i] = start_reader(result, &lo, i);
	for (i = 0; i < CHANGERS; i++)
		changer[i] = start_changer(result, &lo, image, i);
	for (i = 0; i < CHANGERS; i++)
		if (child_status(changer[i]))
			die("a process that changes the disk failed");
	__atomic_store_n(&result->stop, 1, __ATOMIC_RELAXED);
	for (i = 0; i < READINGS; i++)
		if (child_status(reader[i]))
			die("a process that reads the number failed");

	result->last = diskseq(lo.fd);
	result->numbers = next_number() - 1 - result->before;
	check_events(result, &mon, table != TABLE_NONE, mark_now());

	monitor_close(&mon);
	loop_destroy(&lo);
	close(image[0]);
	close(image[1]);
	result->done = true;
}

FIXTURE_SETUP(one_disk)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	self->result = &results[variant->run];
	if (!self->result->done)
		change_and_read(self->result, variant->flags, variant->table);
}

FIXTURE_TEARDOWN(one_disk)
{
}

TEST_F(one_disk, r4_readers_never_see_it_go_down_or_torn)
{
	int i;

	for (i = 0; i < READINGS; i++) {
		EXPECT_LT(0ULL, self->result->reading[i]);
	}
	EXPECT_EQ(0ULL, self->result->backward);
	EXPECT_EQ(0ULL, self->result->torn);
}

TEST_F(one_disk, r4_greatest_number_stays)
{
	EXPECT_LT(0ULL, self->result->numbers);
	EXPECT_EQ(self->result->before + self->result->numbers,
		  self->result->last);
}

TEST_F(one_disk, r3_refused_change_takes_no_number)
{
	/* one that sets the same offset again takes none either */
	EXPECT_GE(self->result->changes, self->result->numbers);
}

TEST_F(one_disk, r7_concurrent_changes_are_announced_one_by_one_in_order)
{
	EXPECT_EQ(self->result->numbers, self->result->announced);
	EXPECT_EQ(0ULL, self->result->not_next);
}

TEST_F(one_disk, r6_concurrent_changes_leave_each_partition_its_number)
{
	EXPECT_EQ(variant->table != TABLE_NONE, !!self->result->part_events);
	EXPECT_EQ(0ULL, self->result->other_medium);
}

TEST_F(one_disk, r9_concurrent_changes_keep_the_order)
{
	EXPECT_EQ(0ULL, self->result->out_of_order);
}

TEST_HARNESS_MAIN
