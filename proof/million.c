// SPDX-License-Identifier: GPL-2.0
/*
 * A million media: several processes attach and detach loop devices as fast as they
 * can, then others connect nbd devices, reset zram devices and start md arrays. The
 * observer of the fuzzer holds every event against the rules meanwhile: each number is
 * announced, once, in order. Afterwards the memory, the slab caches and the open files
 * are what they were after a short run of the same.
 *
 * In the environment: DISKSEQ_MILLION, how many attaches (1,000,000), of the others a
 * tenth each; DISKSEQ_PHASES, names of phases, for a run of those alone.
 */
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/major.h>
#include <linux/raid/md_u.h>

#include "fuzz.h"
#include "md_dev.h"
#include "nbd_dev.h"
#include "zram_dev.h"

#define PROCESSES	4
#define TELL_MS		10000

/* How much more may be in use afterwards, in kB: caches of each CPU, and what the kernel keeps. */
#define MEMORY_KB	8192
#define SLAB_KB		4096
#define FILES		100	/* each CPU counts up to 32 for itself */

static uint64_t *done;		/* how many of this phase, shared */
static uint64_t wanted;
static int nbd_index[PROCESSES];	/* of the disk, for each process */
static int zram_index[PROCESSES];

void broken(int rule, const struct disk *d, const char *fmt, ...)
{
	unsigned int i = atomic_inc(&fuzz->brokens, 1) - 1;
	va_list args;

	if (i >= MAX_BROKEN)
		return;
	fprintf(stderr, "# BROKEN rule %d: %s: ", rule, d ? d->name : "");
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fprintf(stderr, "\n");
	if (d)
		observer_show(d, 20);
}

/* Each operation of a phase, by process @p: one medium that begins and ends. */

static void attach_and_detach(int p)
{
	static struct loop lo;
	static int image = -1;

	if (image < 0) {
		image = image_create_empty();
		if (p % 2)
			image_table(image, 0, TABLE_MSDOS, 1, "");
		snprintf(lo.name, sizeof(lo.name), "%s", fuzz->disk[p].name);
		snprintf(lo.path, sizeof(lo.path), "/dev/%s", fuzz->disk[p].name);
		lo.fd = -1;
	}
	lo.fd = loop_open(&lo, O_RDWR);
	loop_attach(&lo, image, p % 2 ? LO_FLAGS_PARTSCAN : 0);
	if (ioctl(lo.fd, LOOP_CLR_FD))
		die("%s: LOOP_CLR_FD: %s", lo.name, strerror(errno));
	close(lo.fd);
}

static void connect_and_disconnect(int p)
{
	static struct nbd n = { .fd = -1, .part = -1, .held = -1 };
	static int image;

	if (!n.orders) {
		n.index = nbd_index[p];
		snprintf(n.name, sizeof(n.name), "nbd%d", n.index);
		n.orders = shared_memory(sizeof(*n.orders));
		image = image_create_empty();
	}
	must(connect_by_netlink(&n, image, NBD_FLAG_HAS_FLAGS, 0, 1), "connect");
	must(disconnect_index(n.index), "disconnect");
	end_server(&n, 0);
}

static void size_and_reset(int p)
{
	struct zram z = { .index = zram_index[p] };

	snprintf(z.name, sizeof(z.name), "zram%d", z.index);
	must(zram_set_size(&z), "disksize");
	must(zram_reset(&z), "reset");
}

static int md_open(int minor_nr)
{
	char node[32];
	int fd;

	snprintf(node, sizeof(node), "/dev/.million-%d", minor_nr);
	unlink(node);
	if (mknod(node, S_IFBLK | 0600, makedev(MD_MAJOR, minor_nr)))
		die("%s: %s", node, strerror(errno));
	/* the one before may still be on its way out */
	while ((fd = open(node, O_RDWR | O_CLOEXEC)) < 0)
		poll(NULL, 0, 1);
	return fd;
}

/* The directory goes last: a disk that is made meanwhile would have the same. */
static void md_wait(int minor_nr)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/virtual/block/md%d", minor_nr);
	while (!access(path, F_OK))
		poll(NULL, 0, 1);
}

static void start_and_stop(int p)
{
	static int below = -1;
	struct loop lo;
	int fd;

	if (below < 0) {
		lo.fd = below = disk_open(fuzz->disk[p].name, 0, O_RDWR);
		/* it stays, also for the next process */
		if (loop_configure(&lo, image_create_empty(), 0) && errno != EBUSY)
			die("%s: LOOP_CONFIGURE: %s", fuzz->disk[p].name, strerror(errno));
	}
	fd = md_open(300 + p);
	must(md_set_info(fd, 1, 1), "SET_ARRAY_INFO");
	must(md_add_disk(fd, below, 0), "ADD_NEW_DISK");
	must(md_run(fd), "RUN_ARRAY");
	must(called(ioctl(fd, STOP_ARRAY, NULL)), "STOP_ARRAY");
	close(fd);
	md_wait(300 + p);
}

static const struct phase {
	const char *name;
	void (*one)(int p);
	const char *what;
	int share;		/* of DISKSEQ_MILLION */
	int announcements;	/* of each */
} phases[] = {
	{ "loop", attach_and_detach, "attaches and detaches of loop", 1, 2 },
	{ "nbd", connect_and_disconnect, "connects and disconnects of nbd", 10, 2 },
	{ "zram", size_and_reset, "sizes and resets of zram", 10, 2 },
	{ "md", start_and_stop, "starts and stops of md", 10, 2 },
};

#define NR_PHASES	((int)(sizeof(phases) / sizeof(*phases)))

/* What the kernel uses. */

struct used {
	long memory, slab, files;
};

static long number_after(const char *path, const char *key)
{
	char line[256];
	long value = -1;
	FILE *file = fopen(path, "re");

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)))
			value = atol(line + strlen(key));
	if (file)
		fclose(file);
	return value;
}

static struct used measure(void)
{
	struct used u;
	int i;

	/* what is freed late has been freed then */
	for (i = 0; i < 5; i++) {
		sync();
		file_write("/proc/sys/vm/drop_caches", "3");
		poll(NULL, 0, 500);
	}
	u.memory = number_after("/proc/meminfo", "MemTotal:") -
		   number_after("/proc/meminfo", "MemAvailable:");
	u.slab = number_after("/proc/meminfo", "Slab:");
	u.files = number_after("/proc/sys/fs/file-nr", "");
	return u;
}

/* The slab caches, as far as this kernel lists them, and how many objects each has. */

#define MAX_CACHES	512
#define CACHE_KB	256

struct caches {
	int nr;
	struct cache {
		char name[64];
		long objects, size;
	} cache[MAX_CACHES];
};

static void count_objects(struct caches *all)
{
	struct cache *c = all->cache;
	char line[256];
	FILE *file = fopen("/proc/slabinfo", "re");

	all->nr = 0;
	while (file && all->nr < MAX_CACHES && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%63s %ld %*d %ld", c->name, &c->objects, &c->size) == 3) {
			all->nr++;
			c++;
		}
	}
	if (file)
		fclose(file);
}

static const struct cache *cache_named(const struct caches *all, const char *name)
{
	int i;

	for (i = 0; i < all->nr; i++)
		if (!strcmp(all->cache[i].name, name))
			return &all->cache[i];
	return NULL;
}

/* Which caches have grown, so that who reads it knows what is not freed. */
static void tell_grown(const struct caches *before, const struct caches *after)
{
	const struct cache *now, *then;
	long more;
	int i;

	for (i = 0; i < after->nr; i++) {
		now = &after->cache[i];
		then = cache_named(before, now->name);
		more = now->objects - (then ? then->objects : 0);
		if (more * now->size >= CACHE_KB * 1024)
			fprintf(stderr, "# %s: %ld more objects of %ld bytes\n", now->name, more,
				now->size);
	}
}

static void work(const struct phase *phase, int p)
{
	close(observer_fd());
	while (atomic_inc(done, 1) <= wanted)
		phase->one(p);
	_exit(0);
}

/* Returns whether all of it was done, and every process came to its end. */
static bool run(const struct phase *phase, uint64_t count, bool tell)
{
	struct pollfd pfd = { .fd = observer_fd(), .events = POLLIN };
	int64_t begun = now_ms(), told = begun, now;
	pid_t pid[PROCESSES];
	int i, left = PROCESSES, status;
	uint64_t n;
	bool good = true;

	wanted = count;
	*done = 0;
	for (i = 0; i < PROCESSES; i++) {
		pid[i] = spawn();
		if (!pid[i])
			work(phase, i);
	}
	while (left) {
		poll(&pfd, 1, 100);
		observer_receive();
		for (i = 0; i < PROCESSES; i++) {
			if (!pid[i] || waitpid(pid[i], &status, WNOHANG) != pid[i])
				continue;
			pid[i] = 0;
			left--;
			good &= !status;
		}
		now = now_ms();
		if (!tell || now - told < TELL_MS)
			continue;
		told = now;
		n = atomic_get(done);
		fprintf(stderr, "# %llu of %llu %s, %llu a second, %llu s to go, %llu events\n",
			(unsigned long long)n, (unsigned long long)count, phase->what,
			(unsigned long long)(n * 1000 / (now - begun)),
			(unsigned long long)(n < count && n ? (count - n) * (now - begun) / n / 1000 : 0),
			(unsigned long long)observer_events());
	}
	observer_drain();
	if (tell)
		fprintf(stderr, "# %llu %s in %lld s, %llu events, %llu announcements\n",
			(unsigned long long)count, phase->what,
			(long long)(now_ms() - begun) / 1000,
			(unsigned long long)observer_events(),
			(unsigned long long)observer_media());
	return good;
}

static int results;

static int result(bool good, const struct phase *phase, const char *what)
{
	printf("%sok %d %s_%s\n", good ? "" : "not ", ++results, phase->name, what);
	return !good;
}

/* Only a growth is a leak: what was freed late before the phase makes for less after it. */
static bool within(long before, long after, long limit, const char *what)
{
	if (after - before <= limit)
		return true;
	fprintf(stderr, "# %s: %ld before, %ld after, which is more than %ld more\n", what,
		before, after, limit);
	return false;
}

static int run_phase(const struct phase *phase, uint64_t count)
{
	uint64_t media;
	unsigned int found = atomic_get(&fuzz->brokens);
	static struct caches objects[2];
	struct used before, after;
	bool good;
	int failed;

	/* so that what is allocated once has been */
	good = run(phase, count / 100 + PROCESSES, false);
	before = measure();
	count_objects(&objects[0]);
	media = observer_media();
	good &= run(phase, count, true);
	media = observer_media() - media;
	after = measure();
	count_objects(&objects[1]);
	observer_compare();
	fprintf(stderr, "# used memory %ld kB before, %ld after; slab %ld, %ld; open files %ld, %ld\n",
		before.memory, after.memory, before.slab, after.slab, before.files,
		after.files);
	tell_grown(&objects[0], &objects[1]);
	failed = result(good, phase, "all_done");
	if (media != count * phase->announcements)
		fprintf(stderr, "# %llu announcements of %llu\n", (unsigned long long)media,
			(unsigned long long)count * phase->announcements);
	failed |= result(media == count * phase->announcements, phase,
			 "r7_each_number_is_announced");
	failed |= result(found == atomic_get(&fuzz->brokens), phase,
			 "r1_r4_to_r10_every_event_is_right");
	failed |= result(within(before.memory, after.memory, MEMORY_KB, "used memory in kB"),
			 phase, "memory_does_not_grow");
	failed |= result(within(before.slab, after.slab, SLAB_KB, "slab in kB"), phase,
			 "slab_does_not_grow");
	failed |= result(within(before.files, after.files, FILES, "open files"), phase,
			 "open_files_are_the_same");
	return failed;
}

static bool chosen(const struct phase *phase)
{
	const char *only = getenv("DISKSEQ_PHASES");

	return !only || strstr(only, phase->name);
}

static void add_disks(const struct phase *phase)
{
	static struct loop lo[PROCESSES];
	char name[16];
	struct zram z;
	int p, below = MAX_INDEX;

	for (p = 0; p < PROCESSES; p++) {
		if (!strcmp(phase->name, "loop")) {
			loop_create(&lo[p]);
			loop_close(&lo[p]);
			disk_slot(lo[p].name, BY_DRIVER | PARTS_ALONE);
		} else if (!strcmp(phase->name, "nbd")) {
			below = nbd_index[p] = free_below(below);
			snprintf(name, sizeof(name), "nbd%d", below);
			disk_slot(name, BY_DRIVER | PARTS_ALONE);
		} else if (!strcmp(phase->name, "zram")) {
			zram_create(&z);
			zram_index[p] = z.index;
			disk_slot(z.name, BY_DRIVER | PARTS_ALONE);
		} else {
			snprintf(name, sizeof(name), "md%d", 300 + p);
			disk_slot(name, BY_DRIVER | PARTS_ALONE);
		}
	}
}

int main(void)
{
	const char *count = getenv("DISKSEQ_MILLION");
	uint64_t million = count ? strtoull(count, NULL, 10) : 1000000;
	int i, failed = 0, plan = 0;

	for (i = 0; i < NR_PHASES; i++)
		plan += chosen(&phases[i]) ? 6 : 0;
	printf("1..%d\n", plan);
	setvbuf(stdout, NULL, _IOLBF, 0);
	fuzz = shared_memory(sizeof(*fuzz));
	done = shared_memory(sizeof(*done));
	observer_open();
	/* the loop devices are below the arrays, too */
	add_disks(&phases[0]);
	for (i = 1; i < NR_PHASES; i++)
		if (chosen(&phases[i]))
			add_disks(&phases[i]);
	observer_begin();
	for (i = 0; i < NR_PHASES; i++)
		if (chosen(&phases[i]))
			failed |= run_phase(&phases[i], million / phases[i].share);
	return failed;
}
