// SPDX-License-Identifier: GPL-2.0
/*
 * A program that waits for a number with poll() on the sysfs file needs no
 * socket (rule 11): the wait ends at each new number, and at nothing else. What
 * each single operation does to one that polls is in loop.c. The wait also ends
 * when the disk is removed, since no number will come.
 */
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "zram_dev.h"

#define ATTACHES		50
#define REMOVALS		30

FIXTURE(waiting) {
	struct loop lo;
	int image;
	int sysfs;
	uint64_t before;
};

FIXTURE_SETUP(waiting)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	self->image = image_create('a', 1);
	self->sysfs = diskseq_open_sysfs(self->lo.name);
	self->before = diskseq_read(self->sysfs);
}

FIXTURE_TEARDOWN(waiting)
{
	close(self->sysfs);
	loop_destroy(&self->lo);
	close(self->image);
}

TEST_F(waiting, r11_poll_returns_POLLPRI_and_POLLERR)
{
	struct pollfd pfd = { .fd = self->sysfs, .events = POLLPRI };

	EXPECT_EQ(0, poll(&pfd, 1, 0));
	loop_attach(&self->lo, self->image, 0);
	EXPECT_EQ(1, poll(&pfd, 1, 0));
	EXPECT_EQ(POLLPRI | POLLERR, pfd.revents);

	/* until the new number is read */
	EXPECT_EQ(1, poll(&pfd, 1, 0));
	EXPECT_EQ(self->before + 1, diskseq_read(self->sysfs));
	EXPECT_EQ(0, poll(&pfd, 1, 0));
}

TEST_F(waiting, r11_poll_returns_POLLERR_to_who_asks_for_nothing)
{
	struct pollfd pfd = { .fd = self->sysfs };

	EXPECT_EQ(0, poll(&pfd, 1, 0));
	loop_attach(&self->lo, self->image, 0);
	EXPECT_EQ(1, poll(&pfd, 1, 0));
	EXPECT_EQ(POLLERR, pfd.revents);
}

TEST_F(waiting, r11_epoll_reports_it_edge_triggered_as_well)
{
	struct epoll_event want = { .events = EPOLLPRI | EPOLLET }, got;
	int fd = epoll_create1(EPOLL_CLOEXEC);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, epoll_ctl(fd, EPOLL_CTL_ADD, self->sysfs, &want));
	EXPECT_EQ(0, epoll_wait(fd, &got, 1, 0));
	loop_attach(&self->lo, self->image, 0);
	EXPECT_EQ(1, epoll_wait(fd, &got, 1, 0));
	EXPECT_EQ((uint32_t)(EPOLLPRI | EPOLLERR), got.events);
	EXPECT_EQ(0, epoll_wait(fd, &got, 1, 0));
	EXPECT_EQ(self->before + 1, diskseq_read(self->sysfs));
	loop_detach(&self->lo);
	EXPECT_EQ(1, epoll_wait(fd, &got, 1, 0));
	close(fd);
}

TEST_F(waiting, r11_changes_between_two_polls_end_the_wait_once)
{
	loop_attach(&self->lo, self->image, 0);
	loop_detach(&self->lo);
	loop_attach(&self->lo, self->image, 0);
	EXPECT_TRUE(diskseq_wait(self->sysfs, 0));
	EXPECT_EQ(self->before + 3, diskseq_read(self->sysfs));
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

TEST_F(waiting, r11_each_open_file_waits_on_its_own)
{
	int other = diskseq_open_sysfs(self->lo.name);

	diskseq_read(other);
	loop_attach(&self->lo, self->image, 0);
	diskseq_read(self->sysfs);
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
	EXPECT_TRUE(diskseq_wait(other, 0));
	close(other);
}

TEST_F(waiting, r11_other_disks_do_not_end_the_wait)
{
	struct loop other;

	loop_create(&other);
	loop_attach(&other, self->image, 0);
	loop_destroy(&other);
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

TEST_F(waiting, r11_events_without_a_number_do_not_end_the_wait)
{
	trigger(self->lo.name, "change");
	trigger(self->lo.name, "add");
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

/*
 * The waiter has nothing but the file. It tells the attacher of each number that
 * it sees, and the attacher goes on only then.
 */
static void wait_for_numbers(struct loop *lo, const struct gate *ready,
			     const struct gate *seen, uint64_t number, int count)
{
	int sysfs = diskseq_open_sysfs(lo->name);

	/* a detach that is left to the last close must not wait for it */
	loop_close(lo);
	if (diskseq_read(sysfs) != number)
		die("not the number before");
	gate_pass(ready);
	while (count--) {
		if (!diskseq_wait(sysfs, limit_ms()))
			die("no end of the wait for number %llu",
			    (unsigned long long)number + 1);
		if (diskseq_read(sysfs) != ++number)
			die("woken without number %llu",
			    (unsigned long long)number);
		gate_pass(seen);
	}
}

TEST_F(waiting, r11_who_waits_for_it_alone_sees_every_attach)
{
	struct gate ready, seen;
	int i, w, waiters = 3;
	pid_t pid[3];

	gate_create(&ready);
	gate_create(&seen);
	for (w = 0; w < waiters; w++) {
		pid[w] = spawn();
		if (!pid[w]) {
			wait_for_numbers(&self->lo, &ready, &seen, self->before,
					 2 * ATTACHES);
			_exit(0);
		}
		gate_wait(&ready);
	}
	/* if a waiter dies, so that nobody passes the gate, it is left to him */
	close(seen.fd[1]);
	for (i = 0; i < ATTACHES; i++) {
		loop_attach(&self->lo, self->image, 0);
		for (w = 0; w < waiters; w++)
			gate_wait(&seen);
		loop_detach(&self->lo);
		for (w = 0; w < waiters; w++)
			gate_wait(&seen);
	}
	for (w = 0; w < waiters; w++) {
		EXPECT_EQ(0, child_status(pid[w]));
	}
}

/*
 * What the documentation tells a program to do: attach, read the number, and
 * look at the disk until it has another one.
 */
TEST_F(waiting, r11_the_end_of_a_medium_is_seen_without_any_event)
{
	struct gate ready;
	uint64_t mine;
	pid_t pid;

	gate_create(&ready);
	loop_attach(&self->lo, self->image, 0);
	mine = diskseq(self->lo.fd);
	pid = spawn();
	if (!pid) {
		uint64_t now;

		loop_close(&self->lo);
		gate_pass(&ready);
		while ((now = diskseq_read(self->sysfs)) <= mine)
			if (!diskseq_wait(self->sysfs, limit_ms()))
				_exit(2);
		_exit(now == mine + 1 ? 0 : 1);
	}
	gate_wait(&ready);
	loop_detach(&self->lo);
	EXPECT_EQ(0, child_status(pid));
}

/* A disk that is removed while somebody waits for its next number. */
FIXTURE(removed) {
	struct loop lo;
	struct zram z;
};

FIXTURE_VARIANT(removed) {
	bool zram;
};

FIXTURE_VARIANT_ADD(removed, loop) {
};

FIXTURE_VARIANT_ADD(removed, zram) {
	.zram = true,
};

FIXTURE_SETUP(removed)
{
	const char *missing = variant->zram ? zram_missing() : diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
}

FIXTURE_TEARDOWN(removed)
{
	loop_destroy(&self->lo);
	zram_destroy(&self->z);
}

/* When its time is up, poll() looks once more: what it finds then woke nobody. */
static int wait_once(int sysfs)
{
	struct pollfd pfd = { .fd = sysfs, .events = POLLPRI };
	int64_t end = now_ms() + limit_ms();

	if (poll(&pfd, 1, limit_ms()) != 1 || now_ms() >= end)
		return 1;
	if (pfd.revents != (POLLPRI | POLLERR))
		return 2;
	return diskseq_gone(sysfs) ? 0 : 3;
}

static int wait_again_and_again(int sysfs)
{
	return diskseq_wait_gone(sysfs) ? 0 : 1;
}

/* Edge-triggered, and without a read in between. */
static int wait_by_epoll(int sysfs)
{
	struct epoll_event want = { .events = EPOLLPRI | EPOLLET }, got;
	int fd = epoll_create1(EPOLL_CLOEXEC);

	if (epoll_ctl(fd, EPOLL_CTL_ADD, sysfs, &want) ||
	    epoll_wait(fd, &got, 1, limit_ms()) != 1)
		return 1;
	return diskseq_gone(sysfs) ? 0 : 3;
}

/* Starts @wait in a process of its own, and removes the disk. */
static int remove_under(FIXTURE_DATA(removed) *self, bool zram,
			int (*wait)(int sysfs))
{
	struct gate ready;
	const char *disk;
	pid_t pid;
	int sysfs;

	if (zram)
		zram_create(&self->z);
	else
		loop_create(&self->lo);
	disk = zram ? self->z.name : self->lo.name;
	gate_create(&ready);
	pid = spawn();
	if (!pid) {
		loop_close(&self->lo);
		sysfs = diskseq_open_sysfs(disk);
		diskseq_read(sysfs);
		gate_pass(&ready);
		_exit(wait(sysfs));
	}
	gate_wait(&ready);
	close(ready.fd[0]);
	close(ready.fd[1]);
	/* who comes later than the removal finds it, and was not woken */
	if (wait != wait_again_and_again)
		poll(NULL, 0, 100);
	loop_destroy(&self->lo);
	zram_destroy(&self->z);
	return child_status(pid);
}

TEST_F(removed, r11_ends_poll)
{
	EXPECT_EQ(0, remove_under(self, variant->zram, wait_once));
}

TEST_F(removed, r11_ends_poll_of_who_reads_and_polls_again)
{
	int i;

	for (i = 0; i < (variant->zram ? 2 : REMOVALS); i++) {
		ASSERT_EQ(0, remove_under(self, variant->zram,
					  wait_again_and_again));
	}
}

TEST_F(removed, r11_ends_epoll_wait)
{
	EXPECT_EQ(0, remove_under(self, variant->zram, wait_by_epoll));
}

TEST_HARNESS_MAIN
