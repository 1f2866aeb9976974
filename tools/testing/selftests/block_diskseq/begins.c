// SPDX-License-Identifier: GPL-2.0
/*
 * Data that are written to a medium from the first moment on at which that is
 * possible, before it is announced and before the call returns that makes it
 * accessible: none are discarded (rule 14).
 *
 * A process has the disk open, and writes as soon as it has a size. How often it
 * comes before the call returns is a matter of chance, so there are many media. A
 * kernel that can be preempted is stopped between any two steps, too: on one CPU,
 * by the writer, which wakes up all the time and comes before who attaches.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "nbd_dev.h"
#include "zram_dev.h"

#define BLOCK			4096
#define BLOCKS			8	/* that are written of each medium */
#define SECONDS			6

struct race {
	int medium;		/* the writer opens the disk for it */
	int ready;		/* it has */
	int attached;		/* the medium is there for sure */
	int done;		/* the writer has closed the disk */
	int one_cpu;		/* for both */
	unsigned int early;	/* media that were written to before */
	unsigned int lost;	/* blocks that cannot be read any more */
	unsigned int astray;	/* that are not what is behind the disk */
	unsigned int failed;	/* calls of fsync() */
};

/* Nothing here waits for an event: the limit for those that never come is not for it. */
static void __attribute__((constructor)) limit_unset(void)
{
	unsetenv("DISKSEQ_LIMIT");
}

static int get(const int *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void set(int *p, int value)
{
	__atomic_store_n(p, value, __ATOMIC_SEQ_CST);
}

/* Sleeps as short as can be, and not at all if that is not needed. */
static void let_the_other_run(const struct race *race)
{
	const struct timespec ts = { .tv_nsec = 1000 };

	if (race->one_cpu)
		nanosleep(&ts, NULL);
	else
		sched_yield();
}

static void wait_until(const struct race *race, const int *p, int value)
{
	int64_t end = now_ms() + limit_ms();

	while (get(p) != value) {
		if (now_ms() > end)
			die("who writes, or who attaches, does not come to its end");
		let_the_other_run(race);
	}
}

static void use_one_cpu(void)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) || prctl(PR_SET_TIMERSLACK, 1))
		die("no CPU 0: %s", strerror(errno));
}

static void set_policy(int policy)
{
	const struct sched_param param = { };

	if (sched_setscheduler(0, policy, &param))
		die("sched_setscheduler: %s", strerror(errno));
}

static void block_content(char *buf, int medium, int block)
{
	memset(buf, 'A' + block, BLOCK);
	snprintf(buf, BLOCK, "medium %d block %d", medium, block);
}

enum way { WRITTEN, DIRECT, SYNC, STORED };

static bool put_block(int fd, enum way way, const char *data, uint64_t at)
{
	char *page;

	if (way != STORED)
		return pwrite(fd, data, BLOCK, at) == BLOCK;
	/* beyond the end there are no pages */
	if (disk_bytes(fd) < at + BLOCK)
		return false;
	page = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
	if (page == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	memcpy(page, data, BLOCK);
	munmap(page, BLOCK);
	return true;
}

static void write_medium(struct race *race, int fd, int backing, int medium,
			 enum way way)
{
	static char data[BLOCK] __aligned(BLOCK);
	static char back[BLOCK] __aligned(BLOCK);
	int64_t end = now_ms() + limit_ms();
	int i;

	block_content(data, medium, 0);
	while (!put_block(fd, way, data, 0)) {
		if (now_ms() > end)
			die("no write to the new medium, which has %llu bytes: %s",
			    (unsigned long long)disk_bytes(fd), strerror(errno));
		if (race->one_cpu)
			let_the_other_run(race);
	}
	race->early += get(&race->attached) != medium;
	for (i = 1; i < BLOCKS; i++) {
		block_content(data, medium, i);
		if (!put_block(fd, way, data, i * BLOCK))
			die("write: %s", strerror(errno));
	}
	wait_until(race, &race->attached, medium);
	if (fsync(fd)) {
		race->failed++;
		return;
	}
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	for (i = 0; i < BLOCKS; i++) {
		block_content(data, medium, i);
		if (pread(fd, back, BLOCK, i * BLOCK) != BLOCK ||
		    memcmp(data, back, BLOCK))
			race->lost++;
		if (backing >= 0 && (pread(backing, back, BLOCK, i * BLOCK) != BLOCK ||
				     memcmp(data, back, BLOCK)))
			race->astray++;
	}
}

static void wait_for_size(const struct race *race, const char *disk)
{
	int64_t end = now_ms() + limit_ms();

	while (!disk_has_size(disk)) {
		if (now_ms() > end)
			die("%s: no new medium", disk);
		if (race->one_cpu)
			let_the_other_run(race);
	}
}

static void write_media(struct race *race, const char *disk, int backing,
			enum way way, bool opens_late)
{
	int flags = way == DIRECT ? O_DIRECT : way == SYNC ? O_SYNC : 0;
	int medium, fd;

	for (medium = 1; ; medium++) {
		wait_until(race, &race->medium, medium);
		if (opens_late) {
			set(&race->ready, medium);
			wait_for_size(race, disk);
		}
		fd = disk_open(disk, 0, O_RDWR | flags);
		set(&race->ready, medium);
		write_medium(race, fd, backing, medium, way);
		close(fd);
		set(&race->done, medium);
	}
}

FIXTURE(medium) {
	struct loop lo;
	struct zram z;
	struct nbd n;
	const char *disk;
	int backing;
	struct race *race;
};

FIXTURE_VARIANT(medium) {
	const char *(*missing)(void);
	void (*create)(FIXTURE_DATA(medium) *self);
	void (*attach)(FIXTURE_DATA(medium) *self);
	void (*detach)(FIXTURE_DATA(medium) *self);
	/* cannot be attached while it is open: opened as soon as it has a size */
	bool opens_late;
};

static void create_loop(FIXTURE_DATA(medium) *self)
{
	loop_create(&self->lo);
	self->disk = self->lo.name;
	self->backing = image_create('a', 1);
}

static void configure_loop(FIXTURE_DATA(medium) *self)
{
	loop_attach(&self->lo, self->backing, 0);
}

static void set_loop(FIXTURE_DATA(medium) *self)
{
	if (ioctl(self->lo.fd, LOOP_SET_FD, self->backing))
		die("LOOP_SET_FD: %s", strerror(errno));
}

static void detach_loop(FIXTURE_DATA(medium) *self)
{
	loop_detach(&self->lo);
}

static void create_zram(FIXTURE_DATA(medium) *self)
{
	zram_create(&self->z);
	self->disk = self->z.name;
}

static void size_zram(FIXTURE_DATA(medium) *self)
{
	must(zram_set_size(&self->z), "disksize");
}

static void reset_zram(FIXTURE_DATA(medium) *self)
{
	must(zram_reset(&self->z), "reset");
}

static void create_nbd(FIXTURE_DATA(medium) *self)
{
	nbd_create(&self->n, MAX_INDEX);
	self->disk = self->n.name;
	self->backing = self->n.image[0];
}

static void connect_nbd(FIXTURE_DATA(medium) *self)
{
	by_ioctl(&self->n);
}

static void disconnect_nbd(FIXTURE_DATA(medium) *self)
{
	must(op_disconnect_by_ioctl(&self->n), "NBD_DISCONNECT");
	end_server(&self->n, 0);
}

static void connect_nbd_by_netlink(FIXTURE_DATA(medium) *self)
{
	by_netlink(&self->n);
}

static void disconnect_nbd_by_netlink(FIXTURE_DATA(medium) *self)
{
	must(op_disconnect_by_netlink(&self->n), "NBD_CMD_DISCONNECT");
	end_server(&self->n, 0);
}

FIXTURE_VARIANT_ADD(medium, loop_set_fd) {
	.missing = diskseq_missing,
	.create = create_loop,
	.attach = set_loop,
	.detach = detach_loop,
};

FIXTURE_VARIANT_ADD(medium, loop_configure) {
	.missing = diskseq_missing,
	.create = create_loop,
	.attach = configure_loop,
	.detach = detach_loop,
};

FIXTURE_VARIANT_ADD(medium, nbd) {
	.missing = nbd_missing,
	.create = create_nbd,
	.attach = connect_nbd,
	.detach = disconnect_nbd,
};

FIXTURE_VARIANT_ADD(medium, nbd_by_netlink) {
	.missing = nbd_missing,
	.create = create_nbd,
	.attach = connect_nbd_by_netlink,
	.detach = disconnect_nbd_by_netlink,
	.opens_late = true,
};

FIXTURE_VARIANT_ADD(medium, zram) {
	.missing = zram_missing,
	.create = create_zram,
	.attach = size_zram,
	.detach = reset_zram,
};

FIXTURE_SETUP(medium)
{
	const char *missing = variant->missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	self->backing = -1;
	self->race = shared_memory(sizeof(*self->race));
	variant->create(self);
}

FIXTURE_TEARDOWN(medium)
{
	loop_destroy(&self->lo);
	zram_destroy(&self->z);
	if (self->n.name[0])
		nbd_destroy(&self->n);
	else
		close(self->backing);
}

/* Returns how many media there were. */
static int race(FIXTURE_DATA(medium) *self, const FIXTURE_VARIANT(medium) *v,
		enum way way, bool one_cpu, int seconds)
{
	int64_t end = now_ms() + 1000 * seconds;
	struct race *race = self->race;
	int medium;
	pid_t pid;

	race->one_cpu = one_cpu;
	if (one_cpu)
		use_one_cpu();
	pid = spawn();
	if (!pid) {
		/* it must not be one more who has the disk open */
		loop_close(&self->lo);
		write_media(race, self->disk, self->backing, way, v->opens_late);
	}
	/* a busy machine may take longer for the first one */
	for (medium = 1; medium <= 2 || now_ms() < end; medium++) {
		set(&race->medium, medium);
		wait_until(race, &race->ready, medium);
		if (one_cpu)
			set_policy(SCHED_IDLE);
		v->attach(self);
		if (one_cpu)
			set_policy(SCHED_OTHER);
		set(&race->attached, medium);
		wait_until(race, &race->done, medium);
		v->detach(self);
	}
	end_child(pid);
	return medium - 1;
}

#define EXPECT_NOTHING_LOST(way, one_cpu, seconds) do {			\
	int media = race(self, variant, way, one_cpu, seconds);		\
									\
	EXPECT_LT(1, media);						\
	EXPECT_EQ(0U, self->race->failed);				\
	EXPECT_EQ(0U, self->race->lost);				\
	EXPECT_EQ(0U, self->race->astray) {				\
		TH_LOG("%d media, %u of them early", media,		\
		       self->race->early);				\
	}								\
} while (0)

TEST_F(medium, r14_keeps_what_is_written_at_once)
{
	EXPECT_NOTHING_LOST(WRITTEN, false, SECONDS);
}

TEST_F(medium, r14_keeps_what_is_written_between_two_steps)
{
	EXPECT_NOTHING_LOST(WRITTEN, true, SECONDS);
}

TEST_F(medium, r14_keeps_what_is_stored_at_once)
{
	EXPECT_NOTHING_LOST(STORED, false, SECONDS / 3);
}

TEST_F(medium, r14_keeps_what_is_written_directly)
{
	EXPECT_NOTHING_LOST(DIRECT, false, SECONDS / 3);
}

TEST_F(medium, r14_keeps_what_is_written_synchronously)
{
	EXPECT_NOTHING_LOST(SYNC, false, SECONDS / 3);
}

TEST_HARNESS_MAIN
