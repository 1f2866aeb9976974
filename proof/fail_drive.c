// SPDX-License-Identifier: GPL-2.0
/*
 * A CD-ROM drive and a floppy drive, whose media QEMU changes: an open finds it, or
 * the worker that polls the drive.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/cdrom.h>

#include "inject.h"
#include "qmp.h"

#define FOUND_MS	10000
#define LOOKED_MS	300

static const struct drive {
	const char *id, *disk;
} drives[] = {
	{ "cdrom", "sr0" },
	{ "floppy", "fd0" },
};

static const struct drive *drive;
static int fd = -1;
static char medium;

static int open_drive(void)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/%s", drive->disk);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? errno : 0;
}

static void close_drive(void)
{
	if (fd >= 0)
		close(fd);
	fd = -1;
}

/* Until it can be opened. Each close has a worker look, whose time is over then. */
static void wait_ready(void)
{
	int64_t end = now_ms() + FOUND_MS;

	while (open_drive()) {
		if (now_ms() > end)
			die("%s does not get ready", drive->disk);
		poll(NULL, 0, 10);
	}
	close_drive();
	poll(NULL, 0, LOOKED_MS);
}

static void poll_drive(const char *ms)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/events_poll_msecs", drive->disk);
	file_write(path, ms);
	poll(NULL, 0, 50);
}

static void set_up(void)
{
	const char *missing = qmp_missing();

	drive = &drives[op->arg];
	if (missing || !disk_exists(drive->disk))
		skip(missing ?: "no such drive");
	qmp_open();
	poll_drive("0");
	medium = 'a';
	qmp_insert(drive->id, medium);
	wait_ready();
	let_requests_fail(drive->disk);
	watch(drive->disk);
}

static void put_in_another(void)
{
	medium ^= 'a' ^ 'b';
	if (!qmp_insert(drive->id, medium))
		die("QMP: %s: cannot put in %c", drive->id, medium);
}

static void restore(void)
{
	close_drive();
	wait_ready();
}

static void opened(void)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/%s", drive->disk);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
}

static int eject(void)
{
	return called(ioctl(fd, CDROMEJECT));
}

static void close_tray(void)
{
	ioctl(fd, CDROMCLOSETRAY);
	put_in_another();
	restore();
}

/* The worker takes its time, and comes back with a number unless it has failed. */
static int check_now(void)
{
	uint64_t before = diskseq_sysfs(drive->disk);
	int64_t end = now_ms() + LOOKED_MS;

	poll_drive("0");
	while (diskseq_sysfs(drive->disk) == before && now_ms() < end)
		poll(NULL, 0, 10);
	return 0;
}

#define DRIVE	.set_up = set_up, .restore = restore

const struct operation drive_operations[] = {
	{ "sr_open_changed", DRIVE, .prepare = put_in_another, .act = open_drive,
	  .flags = NO_LOOK | MEDIUM_CAME, .taken = 1 },
	{ "sr_eject", .set_up = set_up, .restore = close_tray, .prepare = opened,
	  .act = eject, .flags = NO_LOOK },
	{ "sr_poll_changed", DRIVE, .prepare = put_in_another, .act = check_now,
	  .flags = NO_LOOK | BY_WORKER, .within = "disk_events_workfn", .taken = 1 },
	{ "fd_open_changed", DRIVE, .prepare = put_in_another, .act = open_drive,
	  .flags = NO_LOOK | MEDIUM_CAME, .taken = 1, .arg = 1,
	  .known_in = "__floppy_read_block_0",
	  .known = "floppy_open() does not look whether floppy_revalidate() knows the format" },
	{ }
};
