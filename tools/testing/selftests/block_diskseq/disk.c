// SPDX-License-Identifier: GPL-2.0
/*
 * Loop devices that belong to the test alone, and the ways to read a disk's
 * sequence number. What a test makes here is removed again, also when one of
 * its assertions fails.
 */
#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/blkpg.h>

#include "diskseq.h"

/* Far from the devices that other programs take. */
#define FIRST_INDEX		700
#define MAX_LOOPS		64
#define PINNED			4096

#define NOBODY			65534

static void (*at_abort)(void);
static int owned[MAX_LOOPS];
static int nr_owned;

void die_at(const char *file, int line, const char *fmt, ...)
{
	va_list args;

	fprintf(stderr, "# %s:%d: ", file, line);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fprintf(stderr, "\n");
	abort();
}

int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

int limit_ms(void)
{
	const char *seconds = getenv("DISKSEQ_LIMIT");

	return 1000 * (seconds ? atoi(seconds) : 60);
}

/* Not kept open: that would keep the driver from being unloaded. */
static int loop_control(unsigned long request, long index)
{
	int fd = open("/dev/loop-control", O_RDWR | O_CLOEXEC), result, err;

	if (fd < 0)
		die("/dev/loop-control: %s", strerror(errno));
	result = ioctl(fd, request, index);
	err = errno;
	close(fd);
	errno = err;
	return result;
}

/* Why there is nothing to test here, or NULL. */
const char *diskseq_missing(void)
{
	char path[32];
	uint64_t number;
	int fd, index, err;

	if (geteuid())
		return "needs root";
	if (access("/dev/loop-control", R_OK | W_OK))
		return "no /dev/loop-control: kernel without loop devices";
	index = loop_control(LOOP_CTL_GET_FREE, 0);
	if (index < 0)
		die("LOOP_CTL_GET_FREE: %s", strerror(errno));
	snprintf(path, sizeof(path), "/dev/loop%d", index);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	err = ioctl(fd, BLKGETDISKSEQ, &number) ? errno : 0;
	close(fd);
	/* older loop drivers answer EINVAL to what they do not know */
	if (err == ENOTTY || err == EINVAL)
		return "no BLKGETDISKSEQ: kernel without diskseq";
	if (err)
		die("BLKGETDISKSEQ: %s", strerror(err));
	return NULL;
}

static void loop_names(struct loop *lo, int index)
{
	lo->index = index;
	snprintf(lo->name, sizeof(lo->name), "loop%d", index);
	snprintf(lo->path, sizeof(lo->path), "/dev/loop%d", index);
}

/* Others may still have the device open: who reacts to its events, for one. */
static void remove_index(int index)
{
	int64_t end = now_ms() + limit_ms();

	/* older kernels return the index, later ones 0 */
	while (loop_control(LOOP_CTL_REMOVE, index) < 0 && errno != ENODEV) {
		if (errno != EBUSY || now_ms() > end) {
			fprintf(stderr, "# cannot remove loop%d: %s\n", index,
				strerror(errno));
			return;
		}
		poll(NULL, 0, 1);
	}
}

/*
 * An assertion that fails ends the process without the fixture's teardown; the
 * devices would stay for good.
 */
static void clean_up(int sig)
{
	struct loop lo;
	int i;

	for (i = 3; i < 1024; i++)
		close(i);
	/* what is on top of the loop devices */
	if (at_abort)
		at_abort();
	/* the last device added may be on top of another one */
	while (nr_owned--) {
		loop_names(&lo, owned[nr_owned]);
		lo.fd = open(lo.path, O_RDWR);
		if (lo.fd < 0)
			continue;
		ioctl(lo.fd, LOOP_CLR_FD);
		close(lo.fd);
		remove_index(lo.index);
	}
	signal(sig, SIG_DFL);
}

/* @fn takes away what the test has made besides loop devices. */
void clean_up_by(void (*fn)(void))
{
	at_abort = fn;
	signal(SIGABRT, clean_up);
}

static int add_index(void)
{
	int index;

	for (index = FIRST_INDEX; ; index++) {
		if (loop_control(LOOP_CTL_ADD, index) >= 0)
			return index;
		if (errno != EEXIST)
			die("LOOP_CTL_ADD %d: %s", index, strerror(errno));
	}
}

/* A new loop device of the test's own, opened. */
void loop_create(struct loop *lo)
{
	if (nr_owned == MAX_LOOPS)
		die("too many loop devices");
	if (!nr_owned)
		signal(SIGABRT, clean_up);
	loop_names(lo, add_index());
	owned[nr_owned++] = lo->index;
	lo->fd = -1;
	loop_reopen(lo);
}

static void disown(struct loop *lo)
{
	int i;

	for (i = 0; i < nr_owned; i++)
		if (owned[i] == lo->index)
			owned[i--] = owned[--nr_owned];
	lo->name[0] = '\0';
}

/* Detach, if it is attached, and remove. */
void loop_destroy(struct loop *lo)
{
	if (!lo->name[0])
		return;
	if (lo->fd < 0)
		lo->fd = loop_open(lo, O_RDWR);
	if (ioctl(lo->fd, LOOP_CLR_FD) && errno != ENXIO)
		die("%s: LOOP_CLR_FD: %s", lo->name, strerror(errno));
	loop_close(lo);
	remove_index(lo->index);
	disown(lo);
}

/* To whoever keeps it, and does not let it be removed. */
void loop_leave(struct loop *lo)
{
	loop_close(lo);
	disown(lo);
}

/* The device again, after loop_close(). */
void loop_reopen(struct loop *lo)
{
	loop_close(lo);
	lo->fd = loop_open(lo, O_RDWR);
	/* udev keeps its hands off a disk that somebody has locked */
	flock(lo->fd, LOCK_EX | LOCK_NB);
}

void loop_close(struct loop *lo)
{
	if (lo->fd >= 0)
		close(lo->fd);
	lo->fd = -1;
}

/* Any disk by its name, or one of its partitions. */
int disk_open(const char *disk, int partno, int flags)
{
	char path[48];
	int fd;

	if (partno)
		snprintf(path, sizeof(path), "/dev/%sp%d", disk, partno);
	else
		snprintf(path, sizeof(path), "/dev/%s", disk);
	fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

uint64_t disk_bytes(int fd)
{
	uint64_t bytes;

	if (ioctl(fd, BLKGETSIZE64, &bytes))
		die("BLKGETSIZE64: %s", strerror(errno));
	return bytes;
}

bool disk_exists(const char *disk)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s", disk);
	return !access(path, F_OK);
}

/* By what sysfs says, since opening it may have the disk scanned. */
bool disk_has_size(const char *disk)
{
	char path[64], size[32] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/sys/block/%s/size", disk);
	file = fopen(path, "re");
	if (!file || !fgets(size, sizeof(size), file))
		die("%s: %s", path, strerror(errno));
	fclose(file);
	return strcmp(size, "0\n");
}

int disk_count_parts(const char *disk)
{
	char path[64];
	struct dirent *entry;
	int count = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/block/%s", disk);
	dir = opendir(path);
	if (!dir)
		die("%s: %s", path, strerror(errno));
	while ((entry = readdir(dir)))
		if (!strncmp(entry->d_name, disk, strlen(disk)))
			count++;
	closedir(dir);
	return count;
}

/* Write to a file of sysfs, say. Returns the errno, or 0. */
int file_write(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), err;

	if (fd < 0)
		return errno;
	err = write(fd, value, strlen(value)) < 0 ? errno : 0;
	close(fd);
	return err;
}

/*
 * From 6.11 on, nobody can open a device that is to be detached by whoever closes
 * it last (ENXIO): it is opened when that is done.
 */
int loop_open(const struct loop *lo, int flags)
{
	int64_t end = now_ms() + limit_ms();
	int fd;

	while ((fd = open(lo->path, flags | O_CLOEXEC)) < 0) {
		if (errno != ENXIO || now_ms() > end)
			die("%s: %s", lo->path, strerror(errno));
		poll(NULL, 0, 1);
	}
	return fd;
}

int loop_open_part(const struct loop *lo, int partno, int flags)
{
	return disk_open(lo->name, partno, flags);
}

bool loop_has_part(const struct loop *lo, int partno)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/%sp%d", lo->name, lo->name,
		 partno);
	return !access(path, F_OK);
}

int loop_count_parts(const struct loop *lo)
{
	return disk_count_parts(lo->name);
}

int loop_configure(const struct loop *lo, int backing, unsigned int flags)
{
	struct loop_config config = {
		.fd = backing,
		.info.lo_flags = flags,
	};

	return ioctl(lo->fd, LOOP_CONFIGURE, &config);
}

void loop_attach(const struct loop *lo, int backing, unsigned int flags)
{
	if (loop_configure(lo, backing, flags))
		die("%s: LOOP_CONFIGURE: %s", lo->name, strerror(errno));
}

/*
 * Detach now: where that waits for the last close, this closes it and opens it
 * again. Nobody else may have it open meanwhile.
 */
void loop_detach(struct loop *lo)
{
	if (ioctl(lo->fd, LOOP_CLR_FD))
		die("%s: LOOP_CLR_FD: %s", lo->name, strerror(errno));
	if (loop_detach_is_deferred(lo))
		loop_reopen(lo);
}

/*
 * After LOOP_CLR_FD: is the detach still to come, at the last close? From 6.11 on
 * it always is, before that if others have the device open. Until then it has the
 * number of its medium, and its size, which the kernel sets to 0 at the detach.
 * LOOP_GET_STATUS64 cannot tell: from 6.11 on it fails as soon as LOOP_CLR_FD has
 * been called.
 */
bool loop_detach_is_deferred(const struct loop *lo)
{
	return disk_has_size(lo->name);
}

void loop_get_status(const struct loop *lo, struct loop_info64 *info)
{
	if (ioctl(lo->fd, LOOP_GET_STATUS64, info))
		die("%s: LOOP_GET_STATUS64: %s", lo->name, strerror(errno));
}

bool loop_is_bound(const struct loop *lo)
{
	struct loop_info64 info;

	return !ioctl(lo->fd, LOOP_GET_STATUS64, &info);
}

/* The loop driver lost its transfers in 5.16. The device is detached after. */
bool loop_has_xor(struct loop *lo)
{
	int image = image_create('x', 1);
	struct loop_config config = {
		.fd = image,
		.info.lo_encrypt_type = LO_CRYPT_XOR,
		.info.lo_encrypt_key_size = 1,
		.info.lo_encrypt_key = "x",
	};
	bool has = !ioctl(lo->fd, LOOP_CONFIGURE, &config);

	if (has)
		loop_detach(lo);
	close(image);
	return has;
}

static int blkpg(int fd, int op, int partno, uint64_t start, uint64_t sectors)
{
	struct blkpg_partition part = {
		.start = start * SECTOR,
		.length = sectors * SECTOR,
		.pno = partno,
	};
	struct blkpg_ioctl_arg arg = {
		.op = op,
		.datalen = sizeof(part),
		.data = &part,
	};

	return ioctl(fd, BLKPG, &arg);
}

int blkpg_add(int fd, int partno, uint64_t start, uint64_t sectors)
{
	return blkpg(fd, BLKPG_ADD_PARTITION, partno, start, sectors);
}

int blkpg_del(int fd, int partno)
{
	return blkpg(fd, BLKPG_DEL_PARTITION, partno, 0, 0);
}

/*
 * Some kernels from 5.17 on add no partition by hand where they are not to scan
 * for any. The device is detached after.
 */
bool blkpg_needs_partscan(struct loop *lo)
{
	int image = image_create_empty();
	bool needs;

	loop_attach(lo, image, 0);
	needs = blkpg_add(lo->fd, 1, 64, 64) && errno == EINVAL;
	blkpg_del(lo->fd, 1);
	loop_detach(lo);
	close(image);
	return needs;
}

int blkpg_resize(int fd, int partno, uint64_t start, uint64_t sectors)
{
	return blkpg(fd, BLKPG_RESIZE_PARTITION, partno, start, sectors);
}

uint64_t diskseq(int fd)
{
	uint64_t number = 0;

	if (ioctl(fd, BLKGETDISKSEQ, &number))
		die("BLKGETDISKSEQ: %s", strerror(errno));
	return number;
}

/* By the ioctl, for a program that has not got the device open. */
uint64_t diskseq_of(const char *path)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	uint64_t number;

	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	number = diskseq(fd);
	close(fd);
	return number;
}

/* By a descriptor of the disk, or by its name if that is -1. */
uint64_t diskseq_ioctl(const char *disk, int fd)
{
	uint64_t number;

	fd = fd >= 0 ? dup(fd) : disk_open(disk, 0, O_RDONLY);
	number = diskseq(fd);
	close(fd);
	return number;
}

int diskseq_open_sysfs(const char *disk)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/block/%s/diskseq", disk);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

/* Of a file from diskseq_open_sysfs(): its number now. */
uint64_t diskseq_read(int sysfs)
{
	char buf[32], *end;
	ssize_t len = pread(sysfs, buf, sizeof(buf) - 1, 0);
	uint64_t number;

	if (len < 0)
		die("diskseq in sysfs: %s", strerror(errno));
	buf[len] = '\0';
	number = strtoull(buf, &end, 10);
	if (end == buf || strcmp(end, "\n"))
		die("diskseq in sysfs: '%s'", buf);
	return number;
}

uint64_t diskseq_sysfs(const char *disk)
{
	int fd = diskseq_open_sysfs(disk);
	uint64_t number = diskseq_read(fd);

	close(fd);
	return number;
}

/* From the uevent file of a disk or a partition; 0 if it has none. */
uint64_t diskseq_uevent_file(const char *dev)
{
	uint64_t number = 0;
	char path[64], line[256];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/class/block/%s/uevent", dev);
	file = fopen(path, "re");
	if (!file)
		die("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, "DISKSEQ=", 8))
			number = strtoull(line + 8, NULL, 10);
	fclose(file);
	return number;
}

/* A sample of the counter: the number of a disk made for that. */
uint64_t next_number(void)
{
	struct loop lo;
	uint64_t number;

	loop_names(&lo, add_index());
	number = diskseq_sysfs(lo.name);
	remove_index(lo.index);
	return number;
}

/* The disk of that file is no longer there: no number will come. */
bool diskseq_gone(int sysfs)
{
	char number[32];

	return pread(sysfs, number, sizeof(number), 0) < 0 && errno == ENODEV;
}

/* Wait for a number that was not read from @sysfs yet. */
bool diskseq_wait(int sysfs, int timeout_ms)
{
	struct pollfd pfd = { .fd = sysfs, .events = POLLPRI };
	int ret;

	do
		ret = poll(&pfd, 1, timeout_ms);
	while (ret < 0 && errno == EINTR);
	if (ret < 0)
		die("poll: %s", strerror(errno));
	return ret == 1;
}

/*
 * Wait for each number until the disk goes. False if one wait had no end: who finds
 * the disk still there must not have missed that it goes.
 */
bool diskseq_wait_gone(int sysfs)
{
	int64_t end = now_ms() + limit_ms();

	while (!diskseq_gone(sysfs))
		if (!diskseq_wait(sysfs, limit_ms()) || now_ms() >= end)
			return false;
	return true;
}

/* fork() for a helper that does not outlive the test and does not clean up. */
pid_t spawn(void)
{
	pid_t pid, parent = getpid();

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid) {
		signal(SIGABRT, SIG_DFL);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return pid;
}

/* A gate between processes: each gate_pass() lets one gate_wait() go on. */
void gate_create(struct gate *gate)
{
	if (pipe2(gate->fd, O_CLOEXEC))
		die("pipe: %s", strerror(errno));
}

void gate_pass(const struct gate *gate)
{
	if (write(gate->fd[1], "", 1) != 1)
		die("pipe: %s", strerror(errno));
}

void gate_wait(const struct gate *gate)
{
	char c;

	if (read(gate->fd[0], &c, 1) != 1)
		die("nobody is left who could open the gate");
}

/* What the child said by _exit(), or -1 if it died another way. */
int child_status(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid: %s", strerror(errno));
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Say where in the kernel a process is that does not come back from it. */
void tell_where(pid_t pid)
{
	static const char * const names[] = { "wchan", "stack", "syscall", NULL };
	char path[64], line[256];
	FILE *file;
	size_t i;

	for (i = 0; names[i]; i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", pid, names[i]);
		file = fopen(path, "re");
		if (!file)
			continue;
		while (fgets(line, sizeof(line), file)) {
			line[strcspn(line, "\n")] = '\0';
			fprintf(stderr, "# process %d, %s: %s\n", pid, names[i],
				line);
		}
		fclose(file);
	}
}

/* Has it been seen in this system call, time and again? It may have ended. */
bool waits_in(pid_t pid, long syscall)
{
	int64_t end = now_ms() + limit_ms();
	char path[64], line[256];
	siginfo_t info;
	int seen = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	while (seen < 20 && now_ms() < end) {
		info.si_pid = 0;
		if (!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) &&
		    info.si_pid)
			return false;
		file = fopen(path, "re");
		if (!file)
			die("%s: %s", path, strerror(errno));
		if (fgets(line, sizeof(line), file) && line[0] != 'r' &&
		    atol(line) == syscall)
			seen++;
		else
			seen = 0;
		fclose(file);
		poll(NULL, 0, 1);
	}
	return seen == 20;
}

/*
 * A process that reads a block of @from, by direct I/O, into a mapping of the first
 * one of @to, which stays pinned until @from answers. It ends with the errno of the
 * fsync() of @to that follows.
 */
pid_t start_reading_into(int to, int from)
{
	pid_t pid = spawn();
	char *page;

	if (pid) {
		if (!waits_in(pid, SYS_pread64))
			die("a read does not wait for its server");
		return pid;
	}
	page = mmap(NULL, PINNED, PROT_READ | PROT_WRITE, MAP_SHARED, to, 0);
	if (page == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	if (pread(from, page, PINNED, 0) != PINNED)
		die("read: %s", strerror(errno));
	_exit(fsync(to) ? errno : 0);
}

/* For who may be in the kernel for ever. Returns false if it does not end. */
bool ends(pid_t pid)
{
	int64_t end = now_ms() + limit_ms();

	while (!waitpid(pid, NULL, WNOHANG)) {
		if (now_ms() > end) {
			tell_where(pid);
			return false;
		}
		poll(NULL, 0, 1);
	}
	return true;
}

/* Run @fn without privileges. It returns what fits into an exit status. */
int as_nobody(int (*fn)(void *), void *arg)
{
	pid_t pid = spawn();

	if (!pid) {
		if (setresgid(NOBODY, NOBODY, NOBODY) ||
		    setresuid(NOBODY, NOBODY, NOBODY))
			die("setresuid: %s", strerror(errno));
		_exit(fn(arg));
	}
	return child_status(pid);
}

void *shared_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	return p;
}
