// SPDX-License-Identifier: GPL-2.0
/*
 * How the cost of a media change grows: an attach and a detach of a loop device that
 * nobody else opens, with more and more of one thing around it. Prints a line for each
 * figure: the axis, how many there were, and the time that passes and that in which the
 * caller has a CPU, in microseconds, for both together.
 *
 * Each figure is what the fastest tenth of the cycles keep below: whatever else the
 * machine does makes cycles longer, never shorter. Where processes may have to wait for
 * each other it is the median. Listeners and pollers are not asleep while the calls run,
 * and what they got is read between them: so the figure is what the kernel does for each
 * of them in the caller's time, and not what they do with it.
 *
 * In the environment: DISKSEQ_AXES, the names of those to measure (all but "beside" and
 * "cpus", which need CPUs that run at the same time), and DISKSEQ_SECONDS, how long each
 * figure takes.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/netlink.h>

#include "diskseq.h"

#define MIN_SAMPLES	20
#define MAX_SAMPLES	1000
#define MAX_CPUS	8
/* of processes that have to wait for each other: what one saves, another pays */
#define CYCLES		20
#define BATCH		1024
#define FILES		32768
/* enough for the events of one attach or detach, so that none is lost */
#define BUFFER		(1 << 20)

struct sample {
	double wall, cpu;	/* us */
};

struct figure {
	unsigned int count;
	struct sample sample[MAX_SAMPLES];
};

static struct loop disk;	/* the one under test */
static int image;
static unsigned int loop_flags;
static int control;

/* What there are many of, and what is done with them after each call. */
static void (*between)(void);
static int many;
static int *fds;
static int set = -1;		/* of epoll */

static double us(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1e6 + ts.tv_nsec / 1e3;
}

static struct sample now(void)
{
	return (struct sample){ us(CLOCK_MONOTONIC), us(CLOCK_PROCESS_CPUTIME_ID) };
}

static void add_since(struct sample *sum, struct sample begun)
{
	struct sample end = now();

	sum->wall += end.wall - begun.wall;
	sum->cpu += end.cpu - begun.cpu;
}

/* The next free index: the last of all disks. */
static void add_disk(struct loop *lo)
{
	lo->index = ioctl(control, LOOP_CTL_ADD, -1);
	if (lo->index < 0)
		die("LOOP_CTL_ADD: %s", strerror(errno));
	snprintf(lo->name, sizeof(lo->name), "loop%d", lo->index);
	snprintf(lo->path, sizeof(lo->path), "/dev/loop%d", lo->index);
	lo->fd = -1;
}

static void attach(void)
{
	disk.fd = loop_open(&disk, O_RDWR);
	loop_attach(&disk, image, loop_flags);
}

/* With the close, since later kernels detach then. */
static void detach(void)
{
	if (ioctl(disk.fd, LOOP_CLR_FD))
		die("LOOP_CLR_FD: %s", strerror(errno));
	loop_close(&disk);
}

static void cycle(struct sample *cost)
{
	struct sample begun = now();

	attach();
	add_since(cost, begun);
	if (between)
		between();
	begun = now();
	detach();
	add_since(cost, begun);
	if (between)
		between();
}

/* That many of the cycle are one sample, which is that of one. */
static void measure(struct figure *f, void (*one)(struct sample *cost), int cycles)
{
	const char *seconds = getenv("DISKSEQ_SECONDS");
	int64_t end = now_ms() + 1000 * (seconds ? atoi(seconds) : 3);
	struct sample cost;
	int i;

	f->count = 0;
	while (f->count < MAX_SAMPLES && (f->count < MIN_SAMPLES || now_ms() < end)) {
		cost = (struct sample){ 0, 0 };
		for (i = 0; i < cycles; i++)
			one(&cost);
		cost.wall /= cycles;
		cost.cpu /= cycles;
		f->sample[f->count++] = cost;
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The two of a sample are sorted by themselves: @offset says which. */
static double below(const struct figure *f, int figures, size_t offset, int tenths)
{
	static double value[MAX_CPUS * MAX_SAMPLES];
	size_t count = 0;
	unsigned int i;

	for (; figures--; f++)
		for (i = 0; i < f->count; i++)
			value[count++] = *(double *)((char *)&f->sample[i] + offset);
	qsort(value, count, sizeof(*value), by_value);
	return value[count * tenths / 10];
}

/* What so many tenths of the samples keep below. */
static void tell(const char *axis, int n, const struct figure *f, int figures, int tenths)
{
	printf("%s\t%d\t%.1f\t%.1f\n", axis, n,
	       below(f, figures, offsetof(struct sample, wall), tenths),
	       below(f, figures, offsetof(struct sample, cpu), tenths));
}

static void tell_cycle(const char *axis, int n)
{
	static struct figure f;

	measure(&f, cycle, 1);
	tell(axis, n, &f, 1, 1);
}

/* Sees that a cycle is what it is said to be. */
static void check_cycle(int partitions)
{
	attach();
	if (!disk_has_size(disk.name) || loop_count_parts(&disk) != partitions)
		die("%s: %d partitions", disk.name, loop_count_parts(&disk));
	detach();
	if (disk_has_size(disk.name) || loop_count_parts(&disk))
		die("%s is not detached", disk.name);
}

/* Disks that were added, the one under test last. */
static void disks(const char *axis)
{
	int n, added = 0;

	for (n = 1; n <= 10000; n *= 10) {
		for (; added < n; added++)
			add_disk(&disk);
		check_cycle(0);
		tell_cycle(axis, n);
	}
}

/* Partitions in the image. Without any it has a table, too, which is read. */
static void partitions(const char *axis)
{
	static const int counts[] = { 0, 1, 8, 32, 128 };
	size_t i;

	loop_flags = LO_FLAGS_PARTSCAN;
	for (i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
		image = image_create_empty();
		image_table(image, 0, TABLE_GPT, counts[i], "scale");
		check_cycle(counts[i]);
		tell_cycle(axis, counts[i]);
		close(image);
	}
	loop_flags = 0;
	image = image_create_empty();
}

static void take_events(void)
{
	char buf[4096];
	int i, events, first = 0;

	for (i = 0; i < many; i++) {
		events = 0;
		while (recv(fds[i], buf, sizeof(buf), MSG_DONTWAIT) > 0)
			events++;
		if (errno != EAGAIN)
			die("uevent socket: %s", strerror(errno));
		if (!i)
			first = events;
		if (!events || events != first)
			die("listener %d got %d events, the first %d", i, events, first);
	}
}

static void add_listener(int i)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int size = BUFFER;

	fds[i] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	if (fds[i] < 0 ||
	    setsockopt(fds[i], SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) ||
	    bind(fds[i], (struct sockaddr *)&addr, sizeof(addr)))
		die("uevent socket: %s", strerror(errno));
}

/* Reads each file that has something new. Returns how many. */
static int read_woken(void)
{
	struct epoll_event woken[BATCH];
	int i, count, sum = 0;
	char buf[64];

	while ((count = epoll_wait(set, woken, BATCH, 0)) > 0) {
		for (i = 0; i < count; i++)
			if (pread(woken[i].data.fd, buf, sizeof(buf), 0) <= 0)
				die("poller: %s", strerror(errno));
		sum += count;
	}
	return sum;
}

static void add_poller_of(int i, int fd)
{
	struct epoll_event ev = { .events = EPOLLPRI, .data.fd = fd };
	char buf[64];

	fds[i] = fd;
	if (fd < 0 || pread(fd, buf, sizeof(buf), 0) <= 0 ||
	    epoll_ctl(set, EPOLL_CTL_ADD, fd, &ev))
		die("poller: %s", strerror(errno));
}

/* Where there is no number, any other file that nobody is woken for is such a load, too. */
static void add_poller(int i)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/block/%s/diskseq", disk.name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		snprintf(path, sizeof(path), "/sys/block/%s/size", disk.name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	add_poller_of(i, fd);
}

/* A kernel that wakes those who poll the number wakes all of them. */
static void read_numbers(void)
{
	int woken = read_woken();

	if (woken && woken != many)
		die("%d of %d pollers were woken", woken, many);
}

/* The same of what no disk is involved in: what it costs to be polled. */
static void add_poller_of_hostname(int i)
{
	add_poller_of(i, open("/proc/sys/kernel/hostname", O_RDONLY | O_CLOEXEC));
}

static void set_hostname(struct sample *cost)
{
	static char name[] = "a";
	struct sample begun;
	int woken;

	name[0] ^= 'a' ^ 'b';
	begun = now();
	if (sethostname(name, 1))
		die("sethostname: %s", strerror(errno));
	add_since(cost, begun);
	woken = read_woken();
	if (woken != many)
		die("%d of %d pollers of the host name were woken", woken, many);
}

static void tell_hostname(const char *axis, int n)
{
	static struct figure f;

	measure(&f, set_hostname, 1);
	tell(axis, n, &f, 1, 1);
}

/* 0, 1, 10 ... of what @add adds. */
static void grow(const char *axis, int most, void (*add)(int i),
		 void (*after)(void), void (*figure)(const char *axis, int n))
{
	int n, i;

	set = epoll_create1(EPOLL_CLOEXEC);
	fds = calloc(most, sizeof(*fds));
	many = 0;
	for (n = 0; n <= most; n = n ? n * 10 : 1) {
		for (; many < n; many++)
			add(many);
		between = n ? after : NULL;
		figure(axis, n);
	}
	between = NULL;
	for (i = 0; i < many; i++)
		close(fds[i]);
	free(fds);
	close(set);
}

static void listeners(const char *axis)
{
	grow(axis, 1000, add_listener, take_events, tell_cycle);
}

static void pollers(const char *axis)
{
	grow(axis, 10000, add_poller, read_numbers, tell_cycle);
}

static void hostname(const char *axis)
{
	grow(axis, 10000, add_poller_of_hostname, NULL, tell_hostname);
}

/*
 * With the pollers of a disk whose medium another process changes all the time, faster
 * than they read.
 */
static void tell_beside(const char *axis, int n)
{
	bool *stop = shared_memory(sizeof(*stop));
	struct sample cost = { 0, 0 };
	static struct figure f;
	struct loop busy = disk;
	pid_t pid = spawn();

	if (!pid) {
		image = image_create_empty();
		while (!__atomic_load_n(stop, __ATOMIC_RELAXED))
			cycle(&cost);
		_exit(0);
	}
	add_disk(&disk);
	check_cycle(0);
	measure(&f, cycle, CYCLES);
	__atomic_store_n(stop, true, __ATOMIC_RELAXED);
	if (child_status(pid))
		die("a process failed");
	tell(axis, n, &f, 1, 5);
	disk = busy;
}

static void beside(const char *axis)
{
	grow(axis, 10000, add_poller, NULL, tell_beside);
}

/* As many processes as CPUs, each with a disk of its own, all at the same time. */
static void cpus(const char *axis)
{
	int n = sysconf(_SC_NPROCESSORS_ONLN), i, failed = 0;
	struct figure *f = shared_memory(n * sizeof(*f));
	pid_t pid[MAX_CPUS];

	if (n > MAX_CPUS)
		die("%d CPUs", n);
	for (i = 0; i < n; i++) {
		add_disk(&disk);
		check_cycle(0);
		pid[i] = spawn();
		if (!pid[i]) {
			image = image_create_empty();
			measure(&f[i], cycle, CYCLES);
			_exit(0);
		}
	}
	for (i = 0; i < n; i++)
		failed |= child_status(pid[i]);
	if (failed)
		die("a process failed");
	tell(axis, n, f, n, 5);
}

/* The disks come last, since they stay. */
static const struct axis {
	const char *name;
	void (*measure)(const char *name);
} axes[] = {
	{ "partitions", partitions },
	{ "listeners", listeners },
	{ "pollers", pollers },
	{ "hostname", hostname },
	{ "beside", beside },
	{ "disks", disks },
	{ "cpus", cpus },
};

#define NR_AXES		((int)(sizeof(axes) / sizeof(*axes)))

int main(void)
{
	const struct rlimit files = { FILES, FILES };
	const char *only = getenv("DISKSEQ_AXES");
	int i, results = 0;

	if (!only)
		only = "partitions listeners pollers hostname disks";
	setvbuf(stdout, NULL, _IOLBF, 0);
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0 || setrlimit(RLIMIT_NOFILE, &files))
		die("loop-control or the limit of open files: %s", strerror(errno));
	image = image_create_empty();
	add_disk(&disk);
	check_cycle(0);
	for (i = 0; i < NR_AXES; i++) {
		if (!strstr(only, axes[i].name))
			continue;
		axes[i].measure(axes[i].name);
		printf("ok %d %s\n", ++results, axes[i].name);
	}
	printf("1..%d\n", results);
	return !results;
}
