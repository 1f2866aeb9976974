// SPDX-License-Identifier: GPL-2.0
/*
 * Removable media, whose change is found by polling (check_events): the disc in
 * a CD-ROM drive is changed while the kernel polls the drive, whether or not
 * anybody opens it (rules 3, 7, 8, 11).
 *
 * It needs a machine that can change the disc: QEMU, with its monitor (QMP) at
 * the virtio port named "qmp", and in the environment DISKSEQ_CD, the id of the
 * drive, and DISKSEQ_DISC_A and DISKSEQ_DISC_B, the files of two discs as QEMU
 * knows them.
 */
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/cdrom.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

#define DRIVE			"sr0"
#define DRIVE_PATH		"/dev/" DRIVE
#define POLL_FILE		"/sys/block/" DRIVE "/events_poll_msecs"
#define POLL_MSECS		"50"
#define CHANGES			5
#define OPENERS			2

/* The longest wait for a change to be found. */
#define FOUND_MS		30000

/* The path of the virtio port with the monitor, or NULL. */
static const char *qmp_port(void)
{
	static char path[300];
	char name[16], attr[300];
	struct dirent *entry;
	const char *port = NULL;
	FILE *file;
	DIR *dir;

	dir = opendir("/sys/class/virtio-ports");
	if (!dir)
		return NULL;
	while (!port && (entry = readdir(dir))) {
		snprintf(attr, sizeof(attr), "/sys/class/virtio-ports/%s/name",
			 entry->d_name);
		file = fopen(attr, "re");
		if (!file)
			continue;
		if (fgets(name, sizeof(name), file) && !strcmp(name, "qmp\n")) {
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			port = path;
		}
		fclose(file);
	}
	closedir(dir);
	return port;
}

static const char *media_missing(void)
{
	if (!getenv("DISKSEQ_CD") || !getenv("DISKSEQ_DISC_A") ||
	    !getenv("DISKSEQ_DISC_B"))
		return "nobody to change the disc: DISKSEQ_CD, _DISC_A, _DISC_B not set";
	if (!qmp_port())
		return "nobody to change the disc: no virtio port named qmp";
	if (access("/sys/block/" DRIVE, F_OK))
		return "no CD-ROM drive: no " DRIVE;
	return diskseq_missing();
}

static void read_line(int fd, char *line, size_t size)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	size_t len = 0;

	while (len < size - 1) {
		if (poll(&pfd, 1, limit_ms()) != 1 || read(fd, line + len, 1) != 1)
			die("QMP: no answer");
		if (line[len] == '\n')
			break;
		len++;
	}
	line[len] = '\0';
}

/*
 * Have QEMU do something. What arrives besides the answer to it, which has its
 * id, is of no interest: the greeting, events, answers to an earlier test.
 */
static bool qmp(int fd, const char *command, const char *arguments)
{
	static unsigned int count;
	char line[4096], id[40];
	int len;

	snprintf(id, sizeof(id), "\"id\": \"%d-%u\"", (int)getpid(), ++count);
	len = snprintf(line, sizeof(line),
		       "{\"execute\": \"%s\", \"arguments\": {%s}, %s}\n",
		       command, arguments, id);
	if (write(fd, line, len) != len)
		die("QMP: %s", strerror(errno));
	do
		read_line(fd, line, sizeof(line));
	while (!strstr(line, id));
	if (!strstr(line, "\"error\""))
		return true;
	/* each test but the first is told that this has been done */
	if (strcmp(command, "qmp_capabilities"))
		fprintf(stderr, "# %s: %s\n", command, line);
	return false;
}

FIXTURE(drive) {
	int qmp;
	int sysfs;
	struct monitor mon;
	uint64_t before;
	char a[SECTOR];		/* what disc A begins with */
};

static bool insert(FIXTURE_DATA(drive) *self, const char *disc)
{
	char arguments[600];

	snprintf(arguments, sizeof(arguments),
		 "\"id\": \"%s\", \"filename\": \"%s\", \"format\": \"raw\"",
		 getenv("DISKSEQ_CD"), getenv(disc));
	return qmp(self->qmp, "blockdev-change-medium", arguments);
}

static bool eject(FIXTURE_DATA(drive) *self)
{
	char arguments[300];

	snprintf(arguments, sizeof(arguments), "\"id\": \"%s\", \"force\": true",
		 getenv("DISKSEQ_CD"));
	return qmp(self->qmp, "eject", arguments);
}

static void set_polling(const char *msecs)
{
	int fd = open(POLL_FILE, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, msecs, strlen(msecs)) < 0)
		die(POLL_FILE ": %s", strerror(errno));
	close(fd);
}

/* A disc that has just been inserted needs a moment. */
static void read_disc(char buf[SECTOR])
{
	int64_t end = now_ms() + limit_ms();
	ssize_t len = 0;
	int fd;

	for (;;) {
		fd = open(DRIVE_PATH, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			len = read(fd, buf, SECTOR);
			close(fd);
		}
		if (fd >= 0 && len == SECTOR)
			return;
		if (now_ms() > end)
			die(DRIVE_PATH " cannot be read");
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

/* Until the kernel has polled the drive again, from now on. */
static void wait_for_poll(void)
{
	static const char path[] = "/sys/block/" DRIVE "/device/iorequest_cnt";
	int64_t end = now_ms() + FOUND_MS;
	unsigned long first = 0, count;
	FILE *file;

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
static void stop_polling(void)
{
	char buf[SECTOR];

	read_disc(buf);
	set_polling("0");
}

FIXTURE_SETUP(drive)
{
	const char *missing = media_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	self->qmp = open(qmp_port(), O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->qmp);
	qmp(self->qmp, "qmp_capabilities", "");
	ASSERT_TRUE(insert(self, "DISKSEQ_DISC_A"));
	read_disc(self->a);
	stop_polling();
	self->sysfs = diskseq_open_sysfs(DRIVE);
	self->before = diskseq_read(self->sysfs);
	monitor_open(&self->mon, DRIVE);
	set_polling(POLL_MSECS);
}

FIXTURE_TEARDOWN(drive)
{
	set_polling("-1");
	monitor_close(&self->mon);
	close(self->sysfs);
	close(self->qmp);
}

TEST_F(drive, r3_new_disc_takes_a_new_number)
{
	struct uevent ev;
	char b[SECTOR];

	ASSERT_TRUE(insert(self, "DISKSEQ_DISC_B"));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	read_disc(b);
	EXPECT_NE(0, memcmp(self->a, b, SECTOR));
}

TEST_F(drive, r3_eject_takes_a_new_number_and_so_does_the_disc_after_it)
{
	struct uevent ev;
	uint64_t empty;

	ASSERT_TRUE(eject(self));
	/* QEMU's drive says nothing of an open tray until it is asked */
	EXPECT_EQ(-1, open(DRIVE_PATH, O_RDONLY));
	EXPECT_EQ(ENOMEDIUM, errno);
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	/* the same disc once more */
	empty = ev.diskseq;
	ASSERT_TRUE(insert(self, "DISKSEQ_DISC_A"));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, empty));
}

TEST_F(drive, r3_discs_that_nobody_looks_at_take_a_number_each)
{
	uint64_t last = self->before;
	struct uevent ev;
	int i;

	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? "DISKSEQ_DISC_A" :
						 "DISKSEQ_DISC_B"));
		ASSERT_TRUE(wait_for_number(&self->mon, &ev, last));
		last = ev.diskseq;
	}
}

/* The drive tells of a new disc in two ways, and one of them waits for a request. */
TEST_F(drive, r3_disc_takes_one_number_whoever_asks_the_drive_what_is_new)
{
	int fd = open(DRIVE_PATH, O_RDONLY | O_NONBLOCK), i;
	uint64_t last = self->before;
	struct uevent ev;

	ASSERT_LE(0, fd);
	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? "DISKSEQ_DISC_A" :
						 "DISKSEQ_DISC_B"));
		ASSERT_TRUE(wait_for_number(&self->mon, &ev, last));
		EXPECT_EQ(last + 1, ev.diskseq);
		last = ev.diskseq;
		EXPECT_LE(0, ioctl(fd, i % 2 ? CDROM_MEDIA_CHANGED :
					       CDROM_DRIVE_STATUS, CDSL_CURRENT));
		wait_for_poll();
	}
	close(fd);
	EXPECT_EQ(last, diskseq_read(self->sysfs));
	EXPECT_STREQ("", events(&self->mon, self->before));
}

TEST_F(drive, r3_disc_found_by_opening_takes_a_number_of_its_own)
{
	int fd = open(DRIVE_PATH, O_RDONLY | O_NONBLOCK);
	char buf[SECTOR];
	struct uevent ev;
	uint64_t empty;

	ASSERT_LE(0, fd);
	set_polling("0");
	ASSERT_TRUE(eject(self));
	/* a close has the drive looked at; nobody is told that by an open */
	close(fd);
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	empty = ev.diskseq;

	ASSERT_TRUE(insert(self, "DISKSEQ_DISC_B"));
	read_disc(buf);
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, empty));
	EXPECT_EQ(ev.diskseq, diskseq_read(self->sysfs));
}

TEST_F(drive, r3_same_disc_keeps_the_number)
{
	char buf[SECTOR];
	int i, fd;

	for (i = 0; i < CHANGES; i++) {
		read_disc(buf);
		EXPECT_EQ(0, memcmp(self->a, buf, SECTOR));
		fd = open(DRIVE_PATH, O_RDONLY | O_NONBLOCK);
		EXPECT_LE(0, fd);
		close(fd);
	}
	EXPECT_EQ(self->before, diskseq_read(self->sysfs));
	EXPECT_STREQ("", events(&self->mon, self->before));
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

TEST_F(drive, r5_three_readings_agree)
{
	struct uevent ev;
	uint64_t number;

	ASSERT_TRUE(insert(self, "DISKSEQ_DISC_B"));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	stop_polling();
	number = diskseq_of(DRIVE_PATH);
	EXPECT_LE(ev.diskseq, number);
	EXPECT_EQ(number, diskseq_sysfs(DRIVE));
	EXPECT_EQ(number, diskseq_uevent_file(DRIVE));
}

/* All events so far: each number once, one after the other, and nothing else. */
static void expect_announcements(FIXTURE_DATA(drive) *self,
				 struct __test_metadata *_metadata)
{
	uint64_t last = self->before;
	const char *mark;
	struct uevent ev;

	stop_polling();
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

/* By looking at it again and again. */
static bool wait_for_sysfs(FIXTURE_DATA(drive) *self, uint64_t above)
{
	int64_t end = now_ms() + FOUND_MS;

	while (diskseq_read(self->sysfs) <= above) {
		if (now_ms() > end)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}

TEST_F(drive, r7_each_number_is_announced_once)
{
	uint64_t number = next_number();
	char buf[SECTOR];
	int i;

	/* the drive takes the numbers after this one */
	self->before = number;
	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? "DISKSEQ_DISC_A" :
						 "DISKSEQ_DISC_B"));
		ASSERT_TRUE(wait_for_sysfs(self, number));
		read_disc(buf);
		number = diskseq_read(self->sysfs);
	}
	expect_announcements(self, _metadata);
}

TEST_F(drive, r7_opening_the_new_disc_announces_nothing_more)
{
	struct uevent ev;

	ASSERT_TRUE(insert(self, "DISKSEQ_DISC_B"));
	ASSERT_TRUE(wait_for_number(&self->mon, &ev, self->before));
	stop_polling();
	EXPECT_EQ(ev.diskseq, diskseq_read(self->sysfs));
	EXPECT_STREQ("", events(&self->mon, self->before));
}

TEST_F(drive, r7_each_number_is_announced_once_while_others_open_the_drive)
{
	uint64_t number = next_number();
	pid_t pid[OPENERS];
	int i, fd;

	self->before = number;
	for (i = 0; i < OPENERS; i++) {
		pid[i] = spawn();
		while (!pid[i]) {
			/* without locking the tray */
			fd = open(DRIVE_PATH, O_RDONLY | O_NONBLOCK);
			close(fd);
		}
	}
	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? "DISKSEQ_DISC_A" :
						 "DISKSEQ_DISC_B"));
		ASSERT_TRUE(wait_for_sysfs(self, number));
		number = diskseq_read(self->sysfs);
	}
	for (i = 0; i < OPENERS; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
	expect_announcements(self, _metadata);
}

TEST_F(drive, r8_number_can_be_read_when_it_is_announced)
{
	uint64_t last = self->before;
	char buf[SECTOR];
	struct uevent ev;
	int i;

	for (i = 0; i < CHANGES; i++) {
		ASSERT_TRUE(insert(self, i % 2 ? "DISKSEQ_DISC_A" :
						 "DISKSEQ_DISC_B"));
		ASSERT_TRUE(wait_for_number(&self->mon, &ev, last));
		EXPECT_LE(ev.diskseq, diskseq_read(self->sysfs));
		EXPECT_LE(ev.diskseq, diskseq_uevent_file(DRIVE));
		last = ev.diskseq;
		read_disc(buf);
	}
}

TEST_F(drive, r11_new_disc_wakes_who_polls_the_sysfs_file)
{
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
	ASSERT_TRUE(insert(self, "DISKSEQ_DISC_B"));
	EXPECT_TRUE(diskseq_wait(self->sysfs, FOUND_MS));
	EXPECT_LT(self->before, diskseq_read(self->sysfs));
}

TEST_HARNESS_MAIN
