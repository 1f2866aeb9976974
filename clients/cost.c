// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to give a disk a medium and to take it away again, to ask for its
 * number, and to read from it, on disks that nobody else opens. Prints a line for
 * each operation: the time that passes and that in which this process has a CPU, in
 * microseconds, and the operation.
 *
 * Each figure is what the fastest tenth of the cycles keep below: whatever else the
 * machine does makes cycles longer, never shorter. The operations take turns, so that
 * it disturbs them alike, and alike in guests that measure at the same time.
 */
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "diskseq.h"
#include "nbd_dev.h"

/* cycles that one operation has before the next one */
#define TURN		10
/* that one cycle has, of what takes a few microseconds each */
#define TIMES		100
/* what a read takes */
#define BLOCK		4096

struct setup {
	struct loop loop;
	struct loop_config config;
	int partitions;
};

static struct setup plain, scanned = { .partitions = 3 }, kept;
static int family, nbd_index;
static int disksize, reset;
static int null_blk;

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

/* With open and close, since later kernels detach at the last close. */
static void attach(struct setup *s)
{
	loop_reopen(&s->loop);
	if (ioctl(s->loop.fd, LOOP_CONFIGURE, &s->config))
		die("LOOP_CONFIGURE: %s", strerror(errno));
}

static void detach(struct setup *s)
{
	if (ioctl(s->loop.fd, LOOP_CLR_FD))
		die("LOOP_CLR_FD: %s", strerror(errno));
	loop_close(&s->loop);
}

/* Sees that a cycle is what it is said to be, too. */
static void loop_setup(struct setup *s)
{
	loop_create(&s->loop);
	loop_close(&s->loop);
	s->config.fd = image_create('a', 1);
	if (s->partitions) {
		image_table(s->config.fd, 0, TABLE_GPT, s->partitions, "cost");
		s->config.info.lo_flags = LO_FLAGS_PARTSCAN;
	}
	attach(s);
	if (loop_count_parts(&s->loop) != s->partitions)
		die("%s: %d partitions", s->loop.name, loop_count_parts(&s->loop));
	detach(s);
	if (disk_has_size(s->loop.name) || loop_count_parts(&s->loop))
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

static void ask(unsigned long request)
{
	uint64_t answer;
	int i;

	for (i = 0; i < TIMES; i++)
		if (ioctl(kept.loop.fd, request, &answer))
			die("ioctl 0x%lx: %s", request, strerror(errno));
}

static void size_cycle(void)
{
	ask(BLKGETSIZE64);
}

static void number_cycle(void)
{
	ask(BLKGETDISKSEQ);
}

/* Past the page cache, so that each is a request of its own. */
static void read_blocks(int fd)
{
	static char block[BLOCK] __attribute__((aligned(BLOCK)));
	static unsigned int random = 1;
	int i;

	for (i = 0; i < TIMES; i++) {
		random = random * 1103515245 + 12345;
		if (pread(fd, block, BLOCK, (random >> 16) % (IMAGE_BYTES / BLOCK) * BLOCK) != BLOCK)
			die("read: %s", strerror(errno));
	}
}

static void null_blk_cycle(void)
{
	read_blocks(null_blk);
}

static void loop_read_cycle(void)
{
	read_blocks(kept.loop.fd);
}

static bool has_number(void)
{
	uint64_t number;

	return !ioctl(kept.loop.fd, BLKGETDISKSEQ, &number);
}

static struct operation {
	const char *name;
	void (*cycle)(void);
	bool (*has)(void);		/* whether the kernel has it, if not all have */
	int64_t *passed, *used;		/* by each cycle, in nanoseconds */
} operations[] = {
	{ .name = "attach and detach, 0 partitions", .cycle = loop_cycle },
	{ .name = "attach and detach, 3 partitions", .cycle = loop_scan_cycle },
	{ .name = "nbd connect and disconnect by netlink", .cycle = nbd_cycle },
	{ .name = "zram disksize and reset", .cycle = zram_cycle },
	{ .name = "100 times BLKGETSIZE64", .cycle = size_cycle },
	{ .name = "100 times BLKGETDISKSEQ", .cycle = number_cycle, .has = has_number },
	{ .name = "100 random reads from null_blk", .cycle = null_blk_cycle },
	{ .name = "100 random reads from a loop device", .cycle = loop_read_cycle },
};

#define OPERATIONS	((int)(sizeof(operations) / sizeof(*operations)))

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void measure(const struct operation *op, int64_t *passed, int64_t *used)
{
	int64_t wall = now_ns(CLOCK_MONOTONIC), cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);

	op->cycle();
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

/* Those that this kernel has, from the first on; how many that are. */
static int select_operations(void)
{
	int i, n = 0;

	for (i = 0; i < OPERATIONS; i++)
		if (!operations[i].has || operations[i].has())
			operations[n++] = operations[i];
	return n;
}

int main(int argc, char **argv)
{
	int cycles = argc == 2 ? atoi(argv[1]) / TURN * TURN : 0;
	int64_t ignored;
	int i, j, o, n;

	if (cycles < TURN) {
		fprintf(stderr, "usage: cost CYCLES\n");
		return 2;
	}
	loop_setup(&plain);
	loop_setup(&scanned);
	loop_setup(&kept);
	attach(&kept);
	disksize = zram_file("disksize");
	reset = zram_file("reset");
	family = nbd_family();
	nbd_index = free_below(MAX_INDEX);
	if (!family || nbd_index < 0)
		die("no nbd device that is free");
	null_blk = open("/dev/nullb0", O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (null_blk < 0 || fcntl(kept.loop.fd, F_SETFL, O_DIRECT))
		die("no device to read from: %s", strerror(errno));
	n = select_operations();
	for (o = 0; o < n; o++) {
		operations[o].passed = calloc(cycles, sizeof(int64_t));
		operations[o].used = calloc(cycles, sizeof(int64_t));
		if (!operations[o].passed || !operations[o].used)
			die("no memory for %d cycles", cycles);
		/* which fills caches */
		measure(&operations[o], &ignored, &ignored);
	}
	for (i = 0; i < cycles; i += TURN)
		for (o = 0; o < n; o++)
			for (j = i; j < i + TURN; j++)
				measure(&operations[o], &operations[o].passed[j], &operations[o].used[j]);
	for (o = 0; o < n; o++)
		printf("%lld %lld %s\n", tenth_us(operations[o].passed, cycles),
		       tenth_us(operations[o].used, cycles), operations[o].name);
	loop_destroy(&plain.loop);
	loop_destroy(&scanned.loop);
	loop_destroy(&kept.loop);
	return 0;
}
