// SPDX-License-Identifier: GPL-2.0
/*
 * A CD-ROM drive and a USB stick, whose media QEMU changes while the kernel polls both.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "qmp.h"

static struct disk *sr;
static char in_drive;		/* its medium, 0: none */

const char *drive_missing(void)
{
	return qmp_missing() ?: (disk_exists("sr0") ? NULL : "no sr0");
}

static void poll_often(const char *disk)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/events_poll_msecs", disk);
	file_write(path, "50");
}

static struct disk *stick(void)
{
	return disk_exists("sda") ? disk_find("sda") : NULL;
}

/* Until it is there, and its events are polled for. */
static void wait_for_stick(void)
{
	const char *path = "/sys/block/sda/events_poll_msecs";
	int64_t end = now_ms() + limit_ms() / 2;

	/* the last one may be in use, then it has another name */
	while (access(path, F_OK) && now_ms() < end)
		poll(NULL, 0, 10);
	poll_often("sda");
}

static void replace_stick(char medium)
{
	int64_t end = now_ms() + limit_ms() / 2;
	struct disk *d = disk_find("sda");

	/* it may say first that it is empty; one that is not yet registered has a number */
	owe(d, 1);
	atomic_inc(&fuzz->silent, 1);
	qmp_pull_stick();
	while (disk_exists("sda") && now_ms() < end)
		poll(NULL, 0, 10);
	if (disk_exists("sda"))
		broken(NO_HANG, d, "it was pulled, and does not go");
	qmp_plug_stick(medium);
	wait_for_stick();
}

void drive_begin(struct worker *w)
{
	sr = disk_find("sr0");
	op_begin(sr, "take over");
	qmp_open();
	/* what it has now may just have been put in */
	owe(sr, 2);
	qmp_insert("cdrom", 'a');
	in_drive = 'a';
	poll_often("sr0");
	poll(NULL, 0, 500);
	/* who was killed may have left it half plugged in, or half pulled */
	replace_stick('a');
	op_end(0);
}

/* The content of the disc that was put in, once it has the number. */
static void check_disc(void)
{
	int64_t end = now_ms() + limit_ms() / 2;
	char want[16], buf[SECTOR * 4] = "";
	bool right = false;
	int fd;

	snprintf(want, sizeof(want), "cdrom-%c", in_drive);
	/* it needs a moment until it can be read */
	while (!right && now_ms() < end) {
		fd = open("/dev/sr0", O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			if (read(fd, buf, sizeof(buf)) == sizeof(buf)) {
				right = !memcmp(buf, want, strlen(want));
				if (!right) {
					broken(8, sr, "has %s in it, and '%.8s' was read", want, buf);
					right = true;
				}
			}
			close(fd);
		}
		if (!right)
			poll(NULL, 0, 10);
	}
	if (!right)
		broken(14, sr, "cannot be read");
}

static void change_disc(void)
{
	uint64_t before = number_by_name(sr);
	char medium = draw(3) ? 'a' + draw(2) : 0;
	bool changes = medium || in_drive;

	op_begin(sr, medium ? "put in %c" : "eject", medium);
	/*
	 * The tray opens, and closes again if a disc is put in: the drive may be asked
	 * in between. An empty one, too, says that its medium went.
	 */
	owe(sr, medium ? 2 : 1);
	if (medium) {
		qmp_insert("cdrom", medium);
	} else {
		qmp_eject("cdrom");
		/* QEMU's drive says nothing of an open tray until it is asked */
		close(open_disk(sr, 0, O_RDONLY));
	}
	if (changes && !number_follows(sr, before))
		broken(3, sr, "a disc was %s, and that takes no number",
		       medium ? "put in" : "ejected");
	in_drive = medium;
	op_end(0);
	if (!medium)
		return;
	op_begin(sr, "read it");
	check_disc();
	op_end(0);
}

static void change_stick(void)
{
	struct disk *d = stick();
	char medium = draw(3) ? 'a' + draw(2) : 0;

	if (!d)
		return;
	op_begin(d, medium ? "put in %c" : "take out", medium);
	/* QEMU forgets to tell of it if a command ends at that moment */
	owe(d, 1);
	if (medium)
		qmp_insert("stick", medium);
	else
		qmp_eject("stick");
	poll(NULL, 0, 100 + draw(200));
	op_end(0);
	number_by_name(d);
}

static void pull_stick(void)
{
	struct disk *d = stick();

	if (!d)
		return;
	op_begin(d, "pull the stick, and plug it in again");
	replace_stick('a' + draw(2));
	op_end(0);
}

void drive_step(struct worker *w)
{
	switch (draw(8)) {
	case 0 ... 2:
		change_disc();
		break;
	case 3 ... 4:
		change_stick();
		break;
	case 5:
		pull_stick();
		break;
	case 6 ... 7:
		poll(NULL, 0, draw(200));
		break;
	}
}

/* What was put in a moment ago is found before the end. */
void drive_end(struct worker *w)
{
	op_begin(sr, "let the drives rest");
	poll(NULL, 0, 500);
	file_write("/sys/block/sr0/events_poll_msecs", "0");
	if (stick())
		file_write("/sys/block/sda/events_poll_msecs", "0");
	poll(NULL, 0, 500);
	op_end(0);
}
