// SPDX-License-Identifier: GPL-2.0
/*
 * Removable media, whose change is found by polling (check_events): the medium
 * in a drive is changed while the kernel polls the drive, whether or not anybody
 * opens it (rules 3, 7, 8, 11).
 *
 * It needs a machine that can change media: QEMU with its monitor (qmp.h), drives
 * with the ids below, two media for each of them, a and b, the stick's medium p, and
 * a USB controller. The USB stick is plugged in here.
 */
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/cdrom.h>
#include <linux/fd.h>
#include <linux/major.h>
#include <scsi/sg.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "qmp.h"

#define POLL_MSECS		"50"
#define POLLS_MS		200
#define CHANGES			5
#define MANY_CHANGES		20
#define OPENERS			2
#define TRIES			6

/* The longest wait for a change to be found. */
#define FOUND_MS		30000

/* Longer than it takes whatever happens again and again to happen again. */
#define QUIET_MS		4000

static const char *media_missing(const char *disk)
{
	static char message[64];
	char path[64];

	if (qmp_missing())
		return qmp_missing();
	if (!strcmp(disk, "sda"))
		snprintf(path, sizeof(path), "/sys/bus/usb/drivers/usb-storage");
	else
		snprintf(path, sizeof(path), "/sys/block/%s", disk);
	if (access(path, F_OK)) {
		snprintf(message, sizeof(message), "no such drive: %s", disk);
		return message;
	}
	return diskseq_missing();
}

/* Until all of it is there; this file comes last, after the events. */
static bool wait_for_disk(const char *disk)
{
	int64_t end = now_ms() + FOUND_MS;
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/events_poll_msecs", disk);
	while (access(path, F_OK)) {
		if (now_ms() > end)
			return false;
		poll(NULL, 0, 10);
	}
	return true;
}

FIXTURE(drive) {
	const char *id;		/* of the drive, for QEMU */
	const char *disk;
	char path[32];
	int sysfs;
	struct monitor mon;
	uint64_t before;
	char a[SECTOR];		/* what medium A begins with */
};

FIXTURE_VARIANT(drive) {
	const char *id;
	const char *disk;
	int empty_errno;
	/* numbers that a drive takes whose medium is replaced by another one */
	int numbers;
	/* a new medium is found without an open, also if there was none before */
	bool asks;
	/* of the SCSI device, if it is one */
	const char *driver;
};

FIXTURE_VARIANT_ADD(drive, cdrom) {
	.id = "cdrom",
	.disk = "sr0",
	.empty_errno = ENOMEDIUM,
	.numbers = 1,
	.asks = true,
	.driver = "sr",
};

/* QEMU lets it say that the tray is empty before it tells of the next disc. */
FIXTURE_VARIANT_ADD(drive, ide_cdrom) {
	.id = "idecd",
	.disk = "hdc",
	.empty_errno = ENOMEDIUM,
	.numbers = 2,
	.asks = true,
};

FIXTURE_VARIANT_ADD(drive, usb_stick) {
	.id = "stick",
	.disk = "sda",
	.empty_errno = ENOMEDIUM,
	.numbers = 1,
	.asks = true,
	.driver = "sd",
};

/* Only a step of its head tells whether there is a disk, and so only an open. */
FIXTURE_VARIANT_ADD(drive, floppy) {
	.id = "floppy",
	.disk = "fd0",
	.empty_errno = ENXIO,
	.numbers = 1,
	.asks = false,
};

static bool insert(FIXTURE_DATA(drive) *self, char medium)
{
	return qmp_insert(self->id, medium);
}

static bool eject(FIXTURE_DATA(drive) *self)
{
	return qmp_eject(self->id);
}

static void write_file(const char *path, const char *text)
{
	int err = file_write(path, text);

	if (err)
		die("%s: %s", path, strerror(err));
}

static void set_polling(const char *disk, const char *msecs)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/events_poll_msecs", disk);
	write_file(path, msecs);
}

/* A medium that has just been inserted needs a moment. */
static void read_medium(FIXTURE_DATA(drive) *self, char buf[SECTOR])
{
	int64_t end = now_ms() + limit_ms();
	char end_of_medium[SECTOR];
	ssize_t len = 0;
	int fd;

	for (;;) {
		fd = open(self->path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			len = read(fd, buf, SECTOR);
			/*
			 * Leave the head of the floppy drive far from the first
			 * track. QEMU's goes on to the next one by itself after
			 * a read, and would not step there, as the driver has it
			 * do to find out whether there is a disk.
			 */
			if (len == SECTOR)
				len = pread(fd, end_of_medium, SECTOR, 1 << 20);
			close(fd);
		}
		if (fd >= 0 && len == SECTOR)
			return;
		if (now_ms() > end)
			die("%s cannot be read", self->path);
		poll(NULL, 0, 10);
	}
}

static bool wait_for_number(struct monitor *mon, struct uevent *ev, uint64_t above)
{
	int64_t end = now_ms() + FOUND_MS;

	while (monitor_next(mon, ev, end - now_ms()))
		if (ev->media_change && ev->diskseq > above)
			return true;
	return false;
}

/* By looking at it again and again. */
static bool wait_for_sysfs(FIXTURE_DATA(drive) *self, uint64_t above, int ms)
{
	int64_t end = now_ms() + ms;

	while (diskseq_read(self->sysfs) <= above) {
		if (now_ms() > end)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}

/* All numbers that a drive takes for one change. */
static bool wait_for_medium(struct monitor *mon, struct uevent *ev,
			    uint64_t above, int numbers)
{
	ev->diskseq = above;
	while (numbers--)
		if (!wait_for_number(mon, ev, ev->diskseq))
			return false;
	return true;
}

/* Until the kernel has polled the drive again, from now on. */
static void wait_for_poll(FIXTURE_DATA(drive) *self)
{
	int64_t end = now_ms() + FOUND_MS;
	unsigned long first = 0, count;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/block/%s/device/iorequest_cnt",
		 self->disk);
	do {
		file = fopen(path, "re");
		if (!file || fscanf(file, "%lx", &count) != 1)
			die("%s: %s", path, strerror(errno));
		fclose(file);
		if (!first)
			first = count;
		if (now_ms() > end)
			die("nobody polls the drive");
		poll(NULL, 0, 10);
		/* one may have been on its way already */
	} while (count < first + 3);
}

/* No change will be found any more that nobody looks for. */
static void stop_polling(FIXTURE_DATA(drive) *self)
{
	char buf[SECTOR];

	read_medium(self, buf);
	set_polling(self->disk, "0");
}

/* Each open, and each close, has the drive asked what is new. */
static void start_openers(FIXTURE_DATA(drive) *self, pid_t opener[OPENERS])
{
	int i;

	for (i = 0; i < OPENERS; i++) {
		opener[i] = spawn();
		/* without locking the tray */
		while (!opener[i])
			close(open(self->path, O_RDONLY | O_NONBLOCK));
	}
}

static void end_openers(pid_t opener[OPENERS])
{
	int i;

	for (i = 0; i < OPENERS; i++)
		end_child(opener[i]);
}

FIXTURE_SETUP(drive)
{
	const char *missing = media_missing(variant->disk);

	if (missing)
		SKIP_SETUP("%s", missing);
	self->id = variant->id;
	self->disk = variant->disk;
	snprintf(self->path, sizeof(self->path), "/dev/%s", self->disk);
	qmp_open();
	if (!disk_exists(self->disk)) {
		ASSERT_TRUE(qmp_plug_stick('b'));
		ASSERT_TRUE(wait_for_disk(self->disk));
	}
	ASSERT_TRUE(insert(self, 'a'));
	read_medium(self, self->a);
	stop_polling(self);
	self->sysfs = diskseq_open_sysfs(self->disk);
	self->before = diskseq_read(self->sysfs);
	monitor_open(&self->mon, self->disk);
	set_polling(self->disk, POLL_MSECS);
}

FIXTURE_TEARDOWN(drive)
{
	set_polling(self->disk, "-1");
	monitor_close(&self->mon);
	close(self->sysfs);
	qmp_close();
}

TEST_F(drive, r3_new_medium_takes_a_new_number)
{
	struct uevent ev;
	char b[SECTOR];

	ASSERT_TRUE(insert(self, 'b'));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	read_medium(self, b);
	EXPECT_NE(0, memcmp(self->a, b, SECTOR));
}

TEST_F(drive, r3_eject_takes_a_new_number_and_so_does_the_medium_after_it)
{
	char buf[SECTOR];
	struct uevent ev;
	uint64_t empty;

	ASSERT_TRUE(eject(self));
	/* QEMU's drive says nothing of an open tray until it is asked */
	EXPECT_EQ(-1, open(self->path, O_RDONLY));
	EXPECT_EQ(variant->empty_errno, errno);
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	/* the same medium once more */
	empty = ev.diskseq;
	ASSERT_TRUE(insert(self, 'a'));
	if (!variant->asks)
		read_medium(self, buf);
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, empty));
}

TEST_F(drive, r3_eject_of_a_medium_that_nobody_has_opened_takes_a_number)
{
	struct uevent ev;

	if (!variant->asks)
		SKIP(return, "only an open finds what is in this drive");
	ASSERT_TRUE(insert(self, 'b'));
	ASSERT_TRUE(wait_for_medium(&self->mon, &ev, self->before, variant->numbers));
	ASSERT_TRUE(eject(self));
	EXPECT_EQ(-1, open(self->path, O_RDONLY));
	EXPECT_EQ(variant->empty_errno, errno);
	EXPECT_TRUE(wait_for_number(&self->mon, &ev, ev.diskseq));
}

TEST_F(drive, r3_media_that_nobody_looks_at_take_a_number_each)
{
	uint64_t last = self->before;
	struct uevent ev;
	int i;

	if (!variant->asks)
		SKIP(return, "this drive finds a medium only when it is opened");
	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		ASSERT_TRUE(wait_for_medium(&self->mon, &ev, last,
					    variant->numbers));
		last = ev.diskseq;
	}
}

/* The drive tells of a new disc in two ways, and one of them waits for a request. */
TEST_F(drive, r3_disc_takes_one_number_whoever_asks_the_drive_what_is_new)
{
	int fd = open(self->path, O_RDONLY | O_NONBLOCK), i;
	uint64_t last = self->before;
	struct uevent ev;

	if (!variant->driver || strcmp(variant->driver, "sr"))
		SKIP(return, "this drive tells in one way");
	ASSERT_LE(0, fd);
	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		ASSERT_TRUE(wait_for_number(&self->mon, &ev, last));
		EXPECT_EQ(last + 1, ev.diskseq);
		last = ev.diskseq;
		EXPECT_LE(0, ioctl(fd, i % 2 ? CDROM_MEDIA_CHANGED :
					       CDROM_DRIVE_STATUS, CDSL_CURRENT));
		wait_for_poll(self);
	}
	close(fd);
	EXPECT_EQ(last, diskseq_read(self->sysfs));
	EXPECT_STREQ("", events(&self->mon, self->before));
}

/* The drive may be asked in one way before the change, and in the other after it. */
TEST_F(drive, r3_disc_takes_one_number_while_others_open_the_drive)
{
	/* so that no close is the last: that would send another command */
	int fd = open(self->path, O_RDONLY | O_NONBLOCK), i;
	uint64_t last = self->before;
	pid_t opener[OPENERS];

	if (!variant->driver || strcmp(variant->driver, "sr"))
		SKIP(return, "this drive tells in one way");
	ASSERT_LE(0, fd);
	start_openers(self, opener);
	for (i = 0; i < MANY_CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		ASSERT_TRUE(wait_for_sysfs(self, last, FOUND_MS));
		/* another number would come with one of the next polls */
		poll(NULL, 0, POLLS_MS);
		last = diskseq_read(self->sysfs);
	}
	end_openers(opener);
	close(fd);
	stop_polling(self);
	EXPECT_EQ(self->before + MANY_CHANGES, diskseq_read(self->sysfs));
}

TEST_F(drive, r3_medium_found_by_opening_takes_a_number_of_its_own)
{
	char buf[SECTOR];
	struct uevent ev;
	uint64_t empty;
	int fd;

	/* this has the drive asked once more, and the open waits for that */
	set_polling(self->disk, "0");
	fd = open(self->path, O_RDONLY | O_NONBLOCK);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(eject(self));
	/* a close has the drive looked at; nobody is told that by an open */
	close(fd);
	/* or not even then, if it has been looked at a moment ago */
	if (!variant->asks)
		EXPECT_EQ(-1, open(self->path, O_RDONLY));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	empty = ev.diskseq;

	ASSERT_TRUE(insert(self, 'b'));
	read_medium(self, buf);
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, empty));
	EXPECT_EQ(ev.diskseq, diskseq_read(self->sysfs));
}

/* A drive tells once that it has another medium, to whoever asks it anything. */
static bool test_unit_ready(int fd)
{
	unsigned char command[6] = { 0 }, sense[32] = { 0 };
	struct sg_io_hdr hdr = {
		.interface_id = 'S',
		.dxfer_direction = SG_DXFER_NONE,
		.cmd_len = sizeof(command),
		.cmdp = command,
		.mx_sb_len = sizeof(sense),
		.sbp = sense,
		.timeout = 10000,
	};

	if (ioctl(fd, SG_IO, &hdr))
		die("SG_IO: %s", strerror(errno));
	return !hdr.status;
}

TEST_F(drive, r3_medium_that_a_program_is_told_of_takes_a_new_number)
{
	char buf[SECTOR];
	int fd, i;

	if (!variant->driver)
		SKIP(return, "not a SCSI drive");
	stop_polling(self);
	for (i = 0; i < CHANGES; i++) {
		self->before = diskseq_read(self->sysfs);
		fd = open(self->path, O_RDONLY | O_NONBLOCK);
		ASSERT_LE(0, fd);
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		EXPECT_FALSE(test_unit_ready(fd));
		/* before the close has the drive looked at */
		read_medium(self, buf);
		EXPECT_LT(self->before, diskseq(fd));
		close(fd);
	}
}

/* A drive that always reports a change is kept quiet. This one is not such a drive. */
TEST_F(drive, r3_medium_is_noticed_after_many_that_a_close_found)
{
	char buf[SECTOR];
	uint64_t number;
	int fd, i;

	stop_polling(self);
	for (i = 0; i < MANY_CHANGES; i++) {
		number = diskseq_read(self->sysfs);
		/* the open finds one, and the close another */
		ASSERT_TRUE(insert(self, 'b'));
		fd = open(self->path, O_RDONLY | O_NONBLOCK);
		ASSERT_LE(0, fd);
		if (variant->asks)
			EXPECT_LT(number, diskseq(fd));
		ASSERT_TRUE(insert(self, 'a'));
		close(fd);
		poll(NULL, 0, POLLS_MS);
	}
	read_medium(self, buf);
	for (i = 0; i < CHANGES; i++) {
		number = diskseq_read(self->sysfs);
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		read_medium(self, buf);
		EXPECT_LT(number, diskseq_read(self->sysfs));
	}
	/* until it is trusted again, and the event of the last has come */
	for (i = 0; i < MANY_CHANGES; i++)
		read_medium(self, buf);
}

TEST_F(drive, r3_same_medium_keeps_the_number)
{
	char buf[SECTOR];
	int i, fd;

	for (i = 0; i < CHANGES; i++) {
		read_medium(self, buf);
		EXPECT_EQ(0, memcmp(self->a, buf, SECTOR));
		fd = open(self->path, O_RDONLY | O_NONBLOCK);
		EXPECT_LE(0, fd);
		close(fd);
	}
	EXPECT_EQ(self->before, diskseq_read(self->sysfs));
	EXPECT_STREQ("", events(&self->mon, self->before));
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

/* They have the driver forget what it knows of the disk. */
TEST_F(drive, r3_floppy_keeps_its_number_at_FDFLUSH_and_FDSETPRM)
{
	static const char node[] = "/tmp/fd0u1440";
	struct floppy_struct format;
	char buf[SECTOR];
	uint64_t number;
	int fd;

	if (strcmp(variant->id, "floppy"))
		SKIP(return, "this drive is no floppy");
	fd = open(self->path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, ioctl(fd, FDFLUSH));
	EXPECT_EQ(SECTOR, pread(fd, buf, SECTOR, 0));
	EXPECT_EQ(0, memcmp(self->a, buf, SECTOR));
	EXPECT_EQ(0, ioctl(fd, FDGETPRM, &format));
	EXPECT_EQ(self->before, diskseq(fd));
	close(fd);

	/* format 7 of the drive, which is a disk of its own */
	unlink(node);
	ASSERT_EQ(0, mknod(node, S_IFBLK | 0600, makedev(FLOPPY_MAJOR, 7 << 2)));
	fd = open(node, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	number = diskseq(fd);
	EXPECT_EQ(0, ioctl(fd, FDSETPRM, &format));
	EXPECT_EQ(SECTOR, pread(fd, buf, SECTOR, 0));
	EXPECT_EQ(0, memcmp(self->a, buf, SECTOR));
	EXPECT_EQ(number, diskseq(fd));
	close(fd);
	unlink(node);

	read_medium(self, buf);
	EXPECT_EQ(self->before, diskseq_read(self->sysfs));
	EXPECT_STREQ("", events(&self->mon, self->before));
}

TEST_F(drive, r5_three_readings_agree)
{
	struct uevent ev;
	uint64_t number;

	ASSERT_TRUE(insert(self, 'b'));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	stop_polling(self);
	number = diskseq_of(self->path);
	EXPECT_LE(ev.diskseq, number);
	EXPECT_EQ(number, diskseq_sysfs(self->disk));
	EXPECT_EQ(number, diskseq_uevent_file(self->disk));
}

/* All events so far: each number once, one after the other, and nothing else. */
static void expect_announcements(FIXTURE_DATA(drive) *self,
				 struct __test_metadata *_metadata)
{
	uint64_t last = self->before;
	const char *mark;
	struct uevent ev;

	stop_polling(self);
	mark = mark_now();
	while (monitor_next_before(&self->mon, &ev, mark)) {
		/* QEMU asks for the disc before it takes it */
		if (ev.eject && !ev.media_change)
			continue;
		EXPECT_TRUE(ev.media_change);
		EXPECT_EQ(last + 1, ev.diskseq);
		last = ev.diskseq;
	}
	EXPECT_EQ(last, diskseq_read(self->sysfs));
	EXPECT_EQ(last + 1, next_number());
}

TEST_F(drive, r7_each_number_is_announced_once)
{
	uint64_t number = next_number();
	char buf[SECTOR];
	int i;

	/* the drive takes the numbers after this one */
	self->before = number;
	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		ASSERT_TRUE(wait_for_sysfs(self, number, FOUND_MS));
		read_medium(self, buf);
		number = diskseq_read(self->sysfs);
	}
	expect_announcements(self, _metadata);
}

TEST_F(drive, r7_opening_the_new_medium_announces_nothing_more)
{
	struct uevent ev;

	ASSERT_TRUE(insert(self, 'b'));
	ASSERT_TRUE(wait_for_medium(&self->mon, &ev, self->before,
				    variant->numbers));
	stop_polling(self);
	EXPECT_EQ(ev.diskseq, diskseq_read(self->sysfs));
	EXPECT_STREQ("", events(&self->mon, self->before));
}

/* Opens the drive at each event, until no more come. Returns how many did. */
static int open_at_each_event(FIXTURE_DATA(drive) *self)
{
	struct uevent ev;
	int count = 0, fd;

	while (count < 100 && monitor_next(&self->mon, &ev, QUIET_MS)) {
		count++;
		fd = open(self->path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0)
			close(fd);
	}
	return count;
}

TEST_F(drive, r7_events_end_although_a_program_opens_the_drive_at_each)
{
	char buf[SECTOR];
	int fd;

	ASSERT_TRUE(insert(self, 'b'));
	EXPECT_EQ(variant->numbers, open_at_each_event(self));

	/* an empty drive, opened twice before */
	ASSERT_TRUE(eject(self));
	fd = open(self->path, O_RDONLY | O_CLOEXEC);
	EXPECT_EQ(-1, fd);
	fd = open(self->path, O_RDONLY | O_CLOEXEC);
	EXPECT_EQ(-1, fd);
	EXPECT_EQ(1, open_at_each_event(self));

	ASSERT_TRUE(insert(self, 'a'));
	if (!variant->asks)
		read_medium(self, buf);
	EXPECT_EQ(1, open_at_each_event(self));
}

static void bind_driver(const char *driver, const char *device, bool bind)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/bus/scsi/drivers/%s/%s", driver,
		 bind ? "bind" : "unbind");
	write_file(path, device);
}

/* What a new disk of the drive's tells of itself. */
static void expect_one_number(FIXTURE_DATA(drive) *self,
			      const FIXTURE_VARIANT(drive) *variant,
			      struct __test_metadata *_metadata)
{
	char link[256], path[64];
	struct uevent ev;
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/sys/block/%s/device", self->disk);
	len = readlink(path, link, sizeof(link) - 1);
	ASSERT_LT(0, len);
	link[len] = '\0';
	bind_driver(variant->driver, strrchr(link, '/') + 1, false);
	do {
		ASSERT_TRUE(monitor_next(&self->mon, &ev, FOUND_MS));
	} while (strcmp(ev.action, "remove") || ev.partno);
	bind_driver(variant->driver, strrchr(link, '/') + 1, true);
	do {
		ASSERT_TRUE(monitor_next(&self->mon, &ev, FOUND_MS));
	} while (strcmp(ev.action, "add"));
	EXPECT_LT(self->before, ev.diskseq);
	ASSERT_TRUE(wait_for_disk(self->disk));

	set_polling(self->disk, POLL_MSECS);
	fd = open(self->path, O_RDONLY | O_CLOEXEC);
	close(fd);
	EXPECT_EQ(0, open_at_each_event(self));
	EXPECT_EQ(ev.diskseq, diskseq_sysfs(self->disk));
}

TEST_F(drive, r7_disk_that_is_added_announces_its_medium_just_once)
{
	struct uevent ev;

	if (!variant->driver)
		SKIP(return, "its driver cannot be bound again");
	expect_one_number(self, variant, _metadata);

	ASSERT_TRUE(eject(self));
	EXPECT_EQ(-1, open(self->path, O_RDONLY));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	expect_one_number(self, variant, _metadata);
	/* and it is the same with it as with the one that went */
	ASSERT_TRUE(insert(self, 'b'));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, diskseq_sysfs(self->disk) - 1));
}

TEST_F(drive, r7_each_number_is_announced_once_while_others_open_the_drive)
{
	uint64_t number = next_number();
	pid_t opener[OPENERS];
	char buf[SECTOR];
	int i, try;

	self->before = number;
	start_openers(self, opener);
	for (i = 0; i < CHANGES; i++) {
		/*
		 * QEMU forgets to tell of it if the stick has a command to end
		 * at that moment, which clears what the next one would say.
		 */
		for (try = 0; try < TRIES; try++) {
			ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
			if (wait_for_sysfs(self, number, FOUND_MS / TRIES))
				break;
		}
		ASSERT_GT(TRIES, try);
		if (!variant->asks)
			read_medium(self, buf);
		number = diskseq_read(self->sysfs);
	}
	end_openers(opener);
	expect_announcements(self, _metadata);
}

TEST_F(drive, r8_number_can_be_read_when_it_is_announced)
{
	uint64_t last = self->before;
	char buf[SECTOR];
	struct uevent ev;
	int i;

	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		ASSERT_TRUE(wait_for_number(&self->mon, &ev, last));
		EXPECT_LE(ev.diskseq, diskseq_read(self->sysfs));
		EXPECT_LE(ev.diskseq, diskseq_uevent_file(self->disk));
		last = ev.diskseq;
		read_medium(self, buf);
	}
}

/* Medium P of the stick is for this test: it keeps its partitions. */
TEST_F(drive, r10_partitions_of_a_new_medium_are_added_once)
{
	char buf[SECTOR];
	struct uevent ev;
	int fd;

	if (strcmp(variant->id, "stick"))
		SKIP(return, "no partitions on the media of this drive");
	ASSERT_TRUE(insert(self, 'p'));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	read_medium(self, buf);
	fd = open(self->path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	image_table(fd, 0, TABLE_MSDOS, 2, "");
	close(fd);

	ASSERT_TRUE(insert(self, 'a'));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, ev.diskseq));
	read_medium(self, buf);
	self->before = diskseq_read(self->sysfs);
	monitor_drop(&self->mon);

	ASSERT_TRUE(insert(self, 'p'));
	ASSERT_TRUE(diskseq_wait(self->sysfs, FOUND_MS));
	read_medium(self, buf);
	read_medium(self, buf);
	EXPECT_STREQ("change disk +1 media, add p1-2 +1",
		     events(&self->mon, self->before));

	EXPECT_EQ(self->before + 1, diskseq_read(self->sysfs));
	/* nobody looks for the partitions of the old one until the next open */
	ASSERT_TRUE(insert(self, 'a'));
	ASSERT_TRUE(diskseq_wait(self->sysfs, FOUND_MS));
	read_medium(self, buf);
	EXPECT_STREQ("change disk +2 media, remove p1-2 +1",
		     events(&self->mon, self->before));
}

/* A stick with a partition is replaced by one without, and nobody has looked yet. */
static void replace_partitioned(FIXTURE_DATA(drive) *self, const char *part)
{
	struct uevent ev;
	int fd;

	if (!insert(self, 'p') || !wait_for_number(&self->mon, &ev, self->before))
		die("the medium for a partition is not found");
	stop_polling(self);
	fd = open(self->path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", self->path, strerror(errno));
	image_table(fd, 0, TABLE_MSDOS, 2, "");
	if (ioctl(fd, BLKRRPART))
		die("BLKRRPART: %s", strerror(errno));
	close(fd);
	if (access(part, F_OK))
		die("%s: %s", part, strerror(errno));
	if (!insert(self, 'a'))
		die("the medium without a partition cannot be put in");
}

/* Its open is what finds the new medium, and removes the partitions of the old one. */
TEST_F(drive, r10_partition_of_the_old_medium_cannot_be_opened)
{
	char part[40];

	if (strcmp(variant->id, "stick"))
		SKIP(return, "no partitions on the media of this drive");
	snprintf(part, sizeof(part), "%s1", self->path);
	replace_partitioned(self, part);
	EXPECT_EQ(-1, open(part, O_RDONLY | O_CLOEXEC));
	/* the node has gone, but a kernel need not walk the path again to see that */
	EXPECT_TRUE(errno == ENOENT || errno == ENXIO);
	EXPECT_NE(0, access(part, F_OK));
}

/* As dd and cp open what they write to. */
TEST_F(drive, r10_partition_of_the_old_medium_is_not_replaced_by_a_file)
{
	char part[40];

	if (strcmp(variant->id, "stick"))
		SKIP(return, "no partitions on the media of this drive");
	snprintf(part, sizeof(part), "%s1", self->path);
	replace_partitioned(self, part);
	EXPECT_EQ(-1, open(part, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_NE(0, access(part, F_OK));
}

TEST_F(drive, r11_new_medium_wakes_who_polls_the_sysfs_file)
{
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
	ASSERT_TRUE(insert(self, 'b'));
	EXPECT_TRUE(diskseq_wait(self->sysfs, FOUND_MS));
	EXPECT_LT(self->before, diskseq_read(self->sysfs));
}

/* pktcdvd is a disk of its own, above that of the drive. */
TEST_F(drive, r3_disc_takes_a_number_for_the_drive_and_one_for_pktcdvd)
{
	uint64_t drive = 0, packet = 0;
	struct monitor mon;
	struct uevent ev;
	char dev[16] = "";
	FILE *file;
	int i;

	if (strcmp(variant->disk, "sr0") || access("/sys/class/pktcdvd", F_OK))
		SKIP(return, "no pktcdvd, or not for this drive");
	monitor_open(&mon, NULL);
	write_file("/sys/class/pktcdvd/add", "11:0");
	write_file("/sys/block/pktcdvd0/events_poll_msecs", "10");
	file = fopen("/sys/block/pktcdvd0/dev", "re");
	ASSERT_TRUE(!!file);
	ASSERT_TRUE(!!fgets(dev, sizeof(dev), file));
	fclose(file);
	monitor_drop(&mon);

	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? 'a' : 'b'));
		ASSERT_TRUE(monitor_next(&mon, &ev, FOUND_MS));
		EXPECT_STREQ("sr0", ev.disk);
		EXPECT_TRUE(ev.media_change);
		EXPECT_LT(drive, ev.diskseq);
		drive = ev.diskseq;
		ASSERT_TRUE(monitor_next(&mon, &ev, FOUND_MS));
		EXPECT_STREQ("pktcdvd0", ev.disk);
		EXPECT_TRUE(ev.media_change);
		EXPECT_LT(packet, ev.diskseq);
		packet = ev.diskseq;
	}
	EXPECT_FALSE(monitor_next(&mon, &ev, QUIET_MS));
	EXPECT_EQ(drive, diskseq_sysfs("sr0"));
	EXPECT_EQ(packet, diskseq_sysfs("pktcdvd0"));
	write_file("/sys/class/pktcdvd/remove", dev);
	monitor_close(&mon);
}

TEST_F(drive, r11_stick_that_is_pulled_ends_the_poll_of_its_sysfs_file)
{
	struct gate ready;
	pid_t pid;

	if (strcmp(variant->id, "stick"))
		SKIP(return, "this drive cannot be unplugged");
	gate_create(&ready);
	pid = spawn();
	if (!pid) {
		gate_pass(&ready);
		_exit(diskseq_wait_gone(self->sysfs) ? 0 : 1);
	}
	gate_wait(&ready);
	ASSERT_TRUE(qmp_pull_stick());
	EXPECT_EQ(0, child_status(pid));
	EXPECT_TRUE(diskseq_gone(self->sysfs));

	/* for the teardown */
	ASSERT_TRUE(qmp_plug_stick('a'));
	ASSERT_TRUE(wait_for_disk(self->disk));
}

TEST_F(drive, r7_stick_that_is_pulled_and_plugged_in_again_has_a_new_number)
{
	struct uevent ev;

	if (strcmp(variant->id, "stick"))
		SKIP(return, "this drive cannot be unplugged");
	ASSERT_TRUE(qmp_pull_stick());
	do {
		ASSERT_TRUE(monitor_next(&self->mon, &ev, FOUND_MS));
	} while (strcmp(ev.action, "remove"));
	/* if the drive was polled in between, it has said that it is empty */
	EXPECT_LE(self->before, ev.diskseq);
	self->before = ev.diskseq;

	ASSERT_TRUE(qmp_plug_stick('a'));
	do {
		ASSERT_TRUE(monitor_next(&self->mon, &ev, FOUND_MS));
	} while (strcmp(ev.action, "add"));
	EXPECT_LT(self->before, ev.diskseq);
	ASSERT_TRUE(wait_for_disk(self->disk));
	set_polling(self->disk, POLL_MSECS);
	EXPECT_EQ(0, open_at_each_event(self));
	EXPECT_EQ(ev.diskseq, diskseq_sysfs(self->disk));
}

/*
 * A drive that reports a change whenever it is asked, and a program that opens it in
 * response, as udev does: each open and each close asks again. That does not go on forever.
 */
#define SCSI_DEBUG		"/sys/bus/pseudo/drivers/scsi_debug/"
#define SCSI_ERRORS		"/sys/kernel/debug/scsi_debug/"
#define NOISE_MS		3000

FIXTURE(noisy) {
	char disk[16];
	struct monitor mon;
	pid_t noise;
	pid_t opener;
};

/* The disk whose SCSI device is one of scsi_debug's, and where that reports errors. */
static bool find_noisy(char disk[16], char *errors, size_t size)
{
	char path[300], target[PATH_MAX];
	struct dirent *entry;
	bool found = false;
	ssize_t len;
	DIR *dir;

	dir = opendir("/sys/block");
	while (dir && !found && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/block/%s/device", entry->d_name);
		len = readlink(path, target, sizeof(target) - 1);
		if (len < 0 || strncmp(entry->d_name, "sd", 2))
			continue;
		target[len] = '\0';
		snprintf(errors, size, SCSI_ERRORS "%.32s/error", strrchr(target, '/') + 1);
		snprintf(disk, 16, "%.15s", entry->d_name);
		found = !access(errors, W_OK);
	}
	if (dir)
		closedir(dir);
	return found;
}

/*
 * The next TEST UNIT READY gets a CHECK CONDITION: a UNIT ATTENTION, which says that the
 * medium may have changed. One that comes right after it succeeds.
 */
static pid_t make_noise(const char *errors)
{
	pid_t pid = spawn();

	if (pid)
		return pid;
	for (;;) {
		write_file(errors, "2 -1 0x00 0x00 0x00 0x02 0x06 0x28 0x00");
		poll(NULL, 0, 1);
	}
}

static void remove_noisy(void)
{
	file_write(SCSI_DEBUG "add_host", "-1");
}

FIXTURE_SETUP(noisy)
{
	const char *missing = diskseq_missing();
	int64_t end = now_ms() + FOUND_MS;
	char errors[96];
	bool found;

	if (!missing && access(SCSI_ERRORS, F_OK))
		missing = "no scsi_debug that reports errors on demand";
	if (missing)
		SKIP_SETUP("%s", missing);
	clean_up_by(remove_noisy);
	write_file(SCSI_DEBUG "removable", "1");
	write_file(SCSI_DEBUG "add_host", "1");
	while (!(found = find_noisy(self->disk, errors, sizeof(errors))) && now_ms() < end)
		poll(NULL, 0, 10);
	ASSERT_TRUE(found);
	ASSERT_TRUE(wait_for_disk(self->disk));
	self->noise = make_noise(errors);
	monitor_open(&self->mon, self->disk);
	self->opener = spawn_opener(self->disk);
	set_polling(self->disk, "1000");
}

FIXTURE_TEARDOWN(noisy)
{
	end_child(self->opener);
	end_child(self->noise);
	monitor_close(&self->mon);
	remove_noisy();
}

TEST_F(noisy, r15_drive_keeps_nobody_busy)
{
	int64_t give_up = now_ms() + limit_ms(), end;
	struct uevent ev;
	int events;

	/* it takes some changes, of which a slow machine makes few */
	do {
		end = now_ms() + NOISE_MS;
		for (events = 0; now_ms() < end; )
			events += monitor_next(&self->mon, &ev, end - now_ms());
		/* one at each poll, which may come late or early */
	} while (events > NOISE_MS / 1000 + 1 && now_ms() < give_up);
	EXPECT_GE(NOISE_MS / 1000 + 1, events);
	/* and those it still tells */
	EXPECT_LE(1, events);
}

TEST_HARNESS_MAIN
