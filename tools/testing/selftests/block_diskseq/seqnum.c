// SPDX-License-Identifier: GPL-2.0
/*
 * The events of a disk arrive in the order of their SEQNUM (rule 9). udev goes by
 * it: while one event of a device is processed, those with a greater SEQNUM wait.
 * If the greater one comes first, both are processed at the same time, and what
 * one of them has done is lost.
 *
 * Several processes write to the disk's uevent file, as udev does, so that all
 * raise events at the same time.
 */
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

#define WRITERS			4
#define EVENTS			1000	/* of each */

FIXTURE(seqnum) {
	struct loop lo;
	struct monitor mon;
};

FIXTURE_SETUP(seqnum)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	monitor_open(&self->mon, self->lo.name);
}

FIXTURE_TEARDOWN(seqnum)
{
	monitor_close(&self->mon);
	loop_destroy(&self->lo);
}

static pid_t start_writer(const char *disk)
{
	pid_t pid = spawn();
	int i;

	if (pid)
		return pid;
	for (i = 0; i < EVENTS; i++)
		trigger(disk, "change");
	_exit(0);
}

/* All writers, and a mark when they are done. */
static pid_t start_writers(const char *disk, const char *mark)
{
	pid_t pid = spawn(), writer[WRITERS];
	int i, failed = 0;

	if (pid)
		return pid;
	for (i = 0; i < WRITERS; i++)
		writer[i] = start_writer(disk);
	for (i = 0; i < WRITERS; i++)
		failed |= child_status(writer[i]);
	mark_raise(mark);
	_exit(!!failed);
}

TEST_F(seqnum, r9_events_arrive_in_its_order)
{
	unsigned int events = 0, overtaken = 0;
	const char *mark = mark_new();
	uint64_t last = 0;
	struct uevent ev;
	pid_t pid;

	monitor_drop(&self->mon);
	pid = start_writers(self->lo.name, mark);
	while (monitor_next_before(&self->mon, &ev, mark)) {
		events++;
		if (ev.seqnum < last)
			overtaken++;
		else
			last = ev.seqnum;
	}
	EXPECT_EQ(0, child_status(pid));
	EXPECT_EQ((unsigned int)(WRITERS * EVENTS), events);
	EXPECT_EQ(0U, overtaken)
		TH_LOG("%u of %u events came after one with a greater SEQNUM",
		       overtaken, events);
}

TEST_HARNESS_MAIN
