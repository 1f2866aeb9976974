// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to give a disk a medium and to take it away again, on disks that
 * nobody else opens. Prints a line for each way to do so: the time that passes and
 * that in which this process has a CPU, in microseconds, and the way.
 *
 * Each figure is what the fastest tenth of the cycles keep below: whatever else the
 * machine does makes cycles longer, never shorter. The ways take turns, so that it
 * disturbs them alike, and alike in guests that measure at the same time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "diskseq.h"
#include "nbd_dev.h"

/* that one way has before the next one */
#define TURN		10

struct setup {
	struct loop loop;
	struct loop_config config;
	int partitions;
};

static struct setup plain, scanned = { .partitions = 3 };
static int family, nbd_index;
static int disksize, reset;

static void write_to(int fd, const char *value)
{
	if (pwrite(fd, value, strlen(value), 0) != (ssize_t)strlen(value))
		die("zram: %s: %s", value, strerror(errno));
}

static int zram_file(const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/block/zram0/%s", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

static void attach(struct setup *s)
{
	if (ioctl(s->loop.fd, LOOP_CONFIGURE, &s->config))
		die("LOOP_CONFIGURE: %s", strerror(errno));
}

static void detach(struct setup *s)
{
	if (ioctl(s->loop.fd, LOOP_CLR_FD))
		die("LOOP_CLR_FD: %s", strerror(errno));
}

/* Sees that a cycle is what it is said to be, too. */
static void loop_setup(struct setup *s)
{
	loop_create(&s->loop);
	s->config.fd = image_create('a', 1);
	if (s->partitions) {
		image_table(s->config.fd, 0, TABLE_GPT, s->partitions, "cost");
		s->config.info.lo_flags = LO_FLAGS_PARTSCAN;
	}
	attach(s);
	if (loop_count_parts(&s->loop) != s->partitions)
		die("%s: %d partitions", s->loop.name, loop_count_parts(&s->loop));
	detach(s);
	if (loop_is_bound(&s->loop) || loop_count_parts(&s->loop))
		die("%s is not detached", s->loop.name);
}

static void loop_cycle(void)
{
	attach(&plain);
	detach(&plain);
}

static void loop_scan_cycle(void)
{
	attach(&scanned);
	detach(&scanned);
}

/* Nobody reads, so that nobody has to answer. */
static void nbd_cycle(void)
{
	struct request r;
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		die("socketpair: %s", strerror(errno));
	request_init(&r, family, NBD_CMD_CONNECT, NBD_GENL_VERSION);
	put_u32(&r, NBD_ATTR_INDEX, nbd_index);
	put_u64(&r, NBD_ATTR_SIZE_BYTES, IMAGE_BYTES);
	put_u64(&r, NBD_ATTR_BLOCK_SIZE_BYTES, SECTOR);
	put_u64(&r, NBD_ATTR_SERVER_FLAGS, NBD_FLAG_HAS_FLAGS);
	put_sockets(&r, ends, 1);
	must(send_request(&r, NULL, 0), "NBD_CMD_CONNECT");
	request_init(&r, family, NBD_CMD_DISCONNECT, NBD_GENL_VERSION);
	put_u32(&r, NBD_ATTR_INDEX, nbd_index);
	must(send_request(&r, NULL, 0), "NBD_CMD_DISCONNECT");
	close(ends[0]);
	close(ends[1]);
}

static void zram_cycle(void)
{
	write_to(disksize, "8M");
	write_to(reset, "1");
}

static struct way {
	const char *name;
	void (*cycle)(void);
	int64_t *passed, *used;		/* by each cycle, in nanoseconds */
} ways[] = {
	{ .name = "attach and detach, 0 partitions", .cycle = loop_cycle },
	{ .name = "attach and detach, 3 partitions", .cycle = loop_scan_cycle },
	{ .name = "nbd connect and disconnect by netlink", .cycle = nbd_cycle },
	{ .name = "zram disksize and reset", .cycle = zram_cycle },
};

#define WAYS		((int)(sizeof(ways) / sizeof(*ways)))

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void measure(const struct way *way, int64_t *passed, int64_t *used)
{
	int64_t wall = now_ns(CLOCK_MONOTONIC), cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);

	way->cycle();
	*used = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	*passed = now_ns(CLOCK_MONOTONIC) - wall;
}

static int compare(const void *a, const void *b)
{
	const int64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static long long tenth_us(int64_t *ns, int count)
{
	qsort(ns, count, sizeof(*ns), compare);
	return ns[count / 10] / 1000;
}

int main(int argc, char **argv)
{
	int cycles = argc == 2 ? atoi(argv[1]) / TURN * TURN : 0;
	int64_t ignored;
	int i, j, w;

	if (cycles < TURN) {
		fprintf(stderr, "usage: cost CYCLES\n");
		return 2;
	}
	loop_setup(&plain);
	loop_setup(&scanned);
	disksize = zram_file("disksize");
	reset = zram_file("reset");
	family = nbd_family();
	nbd_index = free_below(MAX_INDEX);
	if (!family || nbd_index < 0)
		die("no nbd device that is free");
	for (w = 0; w < WAYS; w++) {
		ways[w].passed = calloc(cycles, sizeof(int64_t));
		ways[w].used = calloc(cycles, sizeof(int64_t));
		if (!ways[w].passed || !ways[w].used)
			die("no memory for %d cycles", cycles);
		/* which fills caches */
		measure(&ways[w], &ignored, &ignored);
	}
	for (i = 0; i < cycles; i += TURN)
		for (w = 0; w < WAYS; w++)
			for (j = i; j < i + TURN; j++)
				measure(&ways[w], &ways[w].passed[j], &ways[w].used[j]);
	for (w = 0; w < WAYS; w++)
		printf("%lld %lld %s\n", tenth_us(ways[w].passed, cycles),
		       tenth_us(ways[w].used, cycles), ways[w].name);
	loop_destroy(&plain.loop);
	loop_destroy(&scanned.loop);
	return 0;
}
