// SPDX-License-Identifier: GPL-2.0
/*
 * A storm: several processes compete for a few loop devices, and attach, change
 * and detach media as fast as they can, each medium with partition names of its
 * own. One collector takes the whole stream of events. Afterwards each event is
 * held against what was attached: it must be about the medium whose number it
 * carries, and none may be missing.
 *
 * DISKSEQ_STORM in the environment is the number of media (default 1000). With
 * programs that look at each disk as udev does it is a tenth, and in a 32-bit
 * build on a 64-bit kernel a tenth of that.
 *
 * The storm is run once for all tests of a variant, by the first of them.
 */
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

#define DISKS			3
#define ATTACHERS		5
#define OPENERS			4
#define PARTS			4
#define SECONDS			7200

/* Events that are wrong, by what is wrong with them. */
enum wrong {
	NO_NUMBER,		/* it carries none */
	UNKNOWN_NUMBER,		/* its number was never given to that disk */
	OTHER_MEDIUM,		/* the partition is not on the medium it names */
	UNEXPECTED,		/* an event that nobody had reason to raise */
	ANNOUNCED_TWICE,
	NOT_ANNOUNCED,
	NOT_INCREASING,
	OUT_OF_ORDER,		/* partitions not around their announcement */
	ADDED_TWICE,
	NOT_ADDED,
	NOT_REMOVED,
	NUMBER_LOST,		/* taken, but by no disk */
	READINGS_DIFFER,	/* of the attacher, while it has the disk */
	WRONGS
};

static const char * const wrong_names[WRONGS] = {
	[NO_NUMBER]		= "without a number",
	[UNKNOWN_NUMBER]	= "with a number the disk never had",
	[OTHER_MEDIUM]		= "with the number of another medium",
	[UNEXPECTED]		= "unexpected",
	[ANNOUNCED_TWICE]	= "announced twice",
	[NOT_ANNOUNCED]		= "not announced",
	[NOT_INCREASING]	= "not greater than the number before",
	[OUT_OF_ORDER]		= "out of order",
	[ADDED_TWICE]		= "added twice",
	[NOT_ADDED]		= "not added",
	[NOT_REMOVED]		= "not removed",
	[NUMBER_LOST]		= "number lost",
	[READINGS_DIFFER]	= "readings differ",
};

struct result {
	bool done;
	unsigned int wrong[WRONGS];
	unsigned int events;
	unsigned int media;
};

/* What an attacher says of a medium. */
struct medium {
	uint64_t number;
	bool replaced;		/* by LOOP_CHANGE_FD, without a detach */
	uint8_t disk;
	uint8_t parts;
	uint8_t added;		/* a bit for each partition */
	uint8_t removed;
};

struct storm {
	unsigned int count;	/* media to attach */
	unsigned int openers;
	unsigned int ways;
	struct loop lo[DISKS];
	struct monitor mon;
	uint64_t before;
	struct shared {
		unsigned int next;
		unsigned int readings_differ;
	} *shared;
	struct medium *media;	/* shared */
	struct uevent *event;
	size_t events;
	struct medium **by_number;
	uint8_t *announced;
	uint64_t numbers;	/* how many were taken */
	struct result *result;
	unsigned int reported;
};

/* Of all variants, by the number of openers. */
static struct result *results;

static void __attribute__((constructor)) results_alloc(void)
{
	results = shared_memory(2 * sizeof(*results));
}

/* Attaching. */

static int medium_image(struct storm *s, unsigned int m)
{
	int image = image_create_empty();
	char prefix[16];

	s->media[m].parts = m % (PARTS + 1);
	snprintf(prefix, sizeof(prefix), "m%u-", m);
	image_table(image, 0, TABLE_GPT, s->media[m].parts, prefix);
	return image;
}

/* The disk is attached and open here, so nobody else changes it. */
static void medium_attached(struct storm *s, unsigned int m, struct loop *lo,
			    int disk)
{
	s->media[m].disk = disk;
	s->media[m].number = diskseq(lo->fd);
	if (diskseq_sysfs(lo->name) != s->media[m].number)
		__atomic_fetch_add(&s->shared->readings_differ, 1, __ATOMIC_RELAXED);
}

static bool next_medium(struct storm *s, unsigned int *m)
{
	*m = __atomic_fetch_add(&s->shared->next, 1, __ATOMIC_RELAXED);
	return *m < s->count;
}

static int try_attach(struct loop *lo, int image, int way)
{
	struct loop_info64 info = { .lo_flags = LO_FLAGS_PARTSCAN };

	switch (way) {
	case 0:
		return loop_configure(lo, image, LO_FLAGS_PARTSCAN);
	case 1:
		return loop_configure(lo, image,
				      LO_FLAGS_PARTSCAN | LO_FLAGS_AUTOCLEAR);
	case 2:
		return ioctl(lo->fd, LOOP_SET_FD, image) ?:
		       ioctl(lo->fd, LOOP_SET_STATUS64, &info);
	default:
		return loop_configure(lo, image,
				      LO_FLAGS_PARTSCAN | LO_FLAGS_READ_ONLY);
	}
}

static void attach_one(struct storm *s, unsigned int m, unsigned int *seed)
{
	int image = medium_image(s, m), way = m % s->ways, disk, sysfs;
	unsigned int next;
	struct loop lo;

	for (;;) {
		disk = rand_r(seed) % DISKS;
		lo = s->lo[disk];
		sysfs = diskseq_open_sysfs(lo.name);
		diskseq_read(sysfs);
		lo.fd = loop_open(&lo, O_RDWR);
		if (!try_attach(&lo, image, way))
			break;
		if (errno != EBUSY)
			die("%s: attach: %s", lo.name, strerror(errno));
		close(lo.fd);
		/* some wait until it has changed, others are in a hurry */
		if (rand_r(seed) % 2)
			diskseq_wait(sysfs, 20);
		else
			sched_yield();
		close(sysfs);
	}
	close(sysfs);
	medium_attached(s, m, &lo, disk);
	close(image);

	if (way == 3 && next_medium(s, &next)) {
		image = medium_image(s, next);
		if (ioctl(lo.fd, LOOP_CHANGE_FD, image))
			die("%s: LOOP_CHANGE_FD: %s", lo.name, strerror(errno));
		s->media[m].replaced = true;
		medium_attached(s, next, &lo, disk);
		close(image);
	}
	if (way != 1 && ioctl(lo.fd, LOOP_CLR_FD))
		die("%s: LOOP_CLR_FD: %s", lo.name, strerror(errno));
	close(lo.fd);
}

static pid_t start_attacher(struct storm *s, unsigned int seed)
{
	pid_t pid = spawn();
	unsigned int m;

	if (pid)
		return pid;
	while (next_medium(s, &m))
		attach_one(s, m, &seed);
	_exit(0);
}

/*
 * As udev does: look at what there is an event for. Every other one looks for
 * partitions without having heard of any, and so is often just too late.
 */
static pid_t start_opener(struct storm *s, unsigned int opener,
			  struct gate *ready)
{
	unsigned int seed = opener;
	pid_t pid = spawn();
	struct monitor mon;
	struct uevent ev;

	if (pid)
		return pid;
	monitor_open(&mon, NULL);
	gate_pass(ready);
	while (opener % 2)
		look_at(s->lo[rand_r(&seed) % DISKS].name, 1);
	while (monitor_next(&mon, &ev, limit_ms()))
		look_at(ev.disk, ev.partno);
	_exit(1);
}

static pid_t start_attachers(struct storm *s, const char *mark)
{
	pid_t pid = spawn(), attacher[ATTACHERS], opener[OPENERS];
	struct gate ready;
	unsigned int i;
	int failed = 0;

	if (pid)
		return pid;
	gate_create(&ready);
	for (i = 0; i < s->openers; i++) {
		opener[i] = start_opener(s, i, &ready);
		gate_wait(&ready);
	}
	for (i = 0; i < ATTACHERS; i++)
		attacher[i] = start_attacher(s, i);
	for (i = 0; i < ATTACHERS; i++)
		failed |= child_status(attacher[i]);
	for (i = 0; i < s->openers; i++) {
		/* one that has ended by itself has failed */
		failed |= waitpid(opener[i], NULL, WNOHANG);
		kill(opener[i], SIGKILL);
		waitpid(opener[i], NULL, 0);
	}
	mark_raise(mark);
	_exit(!!failed);
}

/* Checking. */

static void wrong(struct storm *s, enum wrong kind, const struct uevent *ev)
{
	struct script text = { .len = 0 };

	s->result->wrong[kind]++;
	if (s->reported++ >= 20)
		return;
	if (ev)
		script_event(&text, ev, s->before);
	fprintf(stderr, "# %s%s: %s%s%s\n", ev ? ev->disk : "",
		ev ? "" : "a number", wrong_names[kind], ev ? ": " : "",
		text.text);
}

static int disk_index(struct storm *s, const char *name)
{
	int i;

	for (i = 0; i < DISKS; i++)
		if (!strcmp(s->lo[i].name, name))
			return i;
	return -1;
}

static void index_media(struct storm *s)
{
	unsigned int m;

	s->numbers = next_number() - s->before - 1;
	s->by_number = calloc(s->numbers + 2, sizeof(*s->by_number));
	s->announced = calloc(s->numbers + 2, sizeof(*s->announced));
	if (!s->by_number || !s->announced)
		die("no memory");
	for (m = 0; m < s->count; m++) {
		uint64_t n = s->media[m].number - s->before;

		if (n < 1 || n > s->numbers || s->by_number[n])
			wrong(s, UNKNOWN_NUMBER, NULL);
		else
			s->by_number[n] = &s->media[m];
	}
}

/* Which medium does a partition's event name, and is the partition on it? */
static struct medium *medium_of(struct storm *s, const struct uevent *ev, int disk)
{
	uint64_t n = ev->diskseq - s->before;
	struct medium *medium;
	char name[40];

	if (n < 1 || n > s->numbers) {
		wrong(s, UNKNOWN_NUMBER, ev);
		return NULL;
	}
	medium = s->by_number[n];
	if (medium)
		snprintf(name, sizeof(name), "m%u-%d",
			 (unsigned int)(medium - s->media), ev->partno);
	if (!medium || medium->disk != disk || strcmp(name, ev->partname)) {
		wrong(s, OTHER_MEDIUM, ev);
		return NULL;
	}
	return medium;
}

static void check_disk_event(struct storm *s, const struct uevent *ev,
			     uint64_t *current, int live)
{
	uint64_t n = ev->diskseq - s->before;

	if (strcmp(ev->action, "change") || ev->synthetic) {
		wrong(s, UNEXPECTED, ev);
		return;
	}
	if (n < 1 || n > s->numbers) {
		wrong(s, UNKNOWN_NUMBER, ev);
		return;
	}
	if (!ev->media_change) {
		/* a scan that was enabled later on tells that it was done */
		if (ev->diskseq != *current)
			wrong(s, UNEXPECTED, ev);
		if (ev->diskseq > *current)
			*current = ev->diskseq;
		return;
	}
	if (s->announced[n]++)
		wrong(s, ANNOUNCED_TWICE, ev);
	if (ev->diskseq <= *current)
		wrong(s, NOT_INCREASING, ev);
	if (live)
		wrong(s, OUT_OF_ORDER, ev);
	*current = ev->diskseq;
}

static void check_part_event(struct storm *s, const struct uevent *ev, int disk,
			     uint64_t current, int *live)
{
	struct medium *medium = medium_of(s, ev, disk);
	int bit = 1 << ev->partno;

	if (!strcmp(ev->action, "add")) {
		if (ev->diskseq != current)
			wrong(s, OUT_OF_ORDER, ev);
		if (medium && (medium->added & bit))
			wrong(s, ADDED_TWICE, ev);
		if (medium)
			medium->added |= bit;
		*live |= bit;
	} else if (!strcmp(ev->action, "remove")) {
		if (!(*live & bit) || (medium && !(medium->added & bit)))
			wrong(s, OUT_OF_ORDER, ev);
		if (medium)
			medium->removed |= bit;
		*live &= ~bit;
	} else {
		wrong(s, UNEXPECTED, ev);
	}
}

static void check_events(struct storm *s)
{
	uint64_t current[DISKS];
	int live[DISKS] = { 0 }, disk;
	size_t i;

	for (disk = 0; disk < DISKS; disk++)
		current[disk] = s->before;
	for (i = 0; i < s->events; i++) {
		const struct uevent *ev = &s->event[i];

		disk = disk_index(s, ev->disk);
		if (disk < 0)
			continue;
		s->result->events++;
		if (!ev->has_diskseq)
			wrong(s, NO_NUMBER, ev);
		else if (!ev->partno)
			check_disk_event(s, ev, &current[disk], live[disk]);
		else if (ev->partno <= PARTS)
			check_part_event(s, ev, disk, current[disk], &live[disk]);
		else
			wrong(s, UNEXPECTED, ev);
	}
}

static void check_media(struct storm *s)
{
	uint64_t n, expected = 0;
	unsigned int m;
	int all;

	for (m = 0; m < s->count; m++) {
		/* each has a number, and so has the empty disk after a detach */
		expected += s->media[m].replaced ? 1 : 2;
		all = ((1 << s->media[m].parts) - 1) << 1;
		if (s->media[m].added != all)
			wrong(s, NOT_ADDED, NULL);
		if (s->media[m].removed != all)
			wrong(s, NOT_REMOVED, NULL);
	}
	for (n = 1; n <= s->numbers; n++)
		if (!s->announced[n])
			wrong(s, NOT_ANNOUNCED, NULL);
	if (s->numbers != expected)
		wrong(s, NUMBER_LOST, NULL);
}

static void collect(struct storm *s, const char *mark)
{
	int64_t report = now_ms() + 10000;
	size_t room = 0;

	do {
		if (s->events == room) {
			room = room ? 2 * room : 1024;
			s->event = realloc(s->event, room * sizeof(*s->event));
			if (!s->event)
				die("no memory");
		}
		if (now_ms() > report) {
			fprintf(stderr, "# %u of %u media attached\n",
				s->shared->next, s->count);
			report = now_ms() + 10000;
		}
	} while (monitor_next_before(&s->mon, &s->event[s->events], mark) &&
		 ++s->events);
}

/* A 32-bit program on a 64-bit kernel? */
static bool is_compat(void)
{
	struct utsname name;

	return sizeof(long) == 4 && !uname(&name) && strstr(name.machine, "64");
}

static void storm_run(struct storm *s)
{
	const char *count = getenv("DISKSEQ_STORM");
	const char *mark = mark_new();
	pid_t pid;
	int i;

	s->count = count ? atoi(count) : 1000;
	if (!s->count)
		die("DISKSEQ_STORM=%s: not a number of media", count);
	/* with openers, partitions are in use; that is for other tests */
	s->ways = s->openers ? 3 : 4;
	if (s->openers)
		s->count = (s->count + 9) / 10;
	/* the storm itself is that of the kernel's word size */
	if (is_compat())
		s->count = (s->count + 9) / 10;
	for (i = 0; i < DISKS; i++) {
		loop_create(&s->lo[i]);
		loop_close(&s->lo[i]);
	}
	s->shared = shared_memory(sizeof(*s->shared));
	s->media = shared_memory(s->count * sizeof(*s->media));
	s->before = next_number();
	monitor_open(&s->mon, NULL);

	pid = start_attachers(s, mark);
	collect(s, mark);
	if (child_status(pid))
		die("an attacher failed");

	index_media(s);
	check_events(s);
	check_media(s);
	s->result->wrong[READINGS_DIFFER] = s->shared->readings_differ;
	s->result->media = s->count;
	s->result->done = true;
	fprintf(stderr, "# %u media, %u events\n", s->result->media,
		s->result->events);

	monitor_close(&s->mon);
	for (i = 0; i < DISKS; i++)
		loop_destroy(&s->lo[i]);
}

FIXTURE(storm) {
	struct result *result;
};

FIXTURE_VARIANT(storm) {
	unsigned int openers;
};

FIXTURE_VARIANT_ADD(storm, attachers) {
	.openers = 0,
};

FIXTURE_VARIANT_ADD(storm, attachers_and_openers) {
	.openers = OPENERS,
};

FIXTURE_SETUP(storm)
{
	const char *missing = diskseq_missing();
	static struct storm s;

	if (missing)
		SKIP_SETUP("%s", missing);
	self->result = &results[!!variant->openers];
	s.openers = variant->openers;
	s.result = self->result;
	if (!s.result->done)
		storm_run(&s);
}

FIXTURE_TEARDOWN(storm)
{
}

#define EXPECT_NONE(kind) \
	EXPECT_EQ(0U, self->result->wrong[kind])

TEST_F_TIMEOUT(storm, r1_no_number_is_lost, SECONDS)
{
	EXPECT_NONE(NUMBER_LOST);
	EXPECT_NONE(UNKNOWN_NUMBER);
}

TEST_F_TIMEOUT(storm, r5_every_event_carries_a_number, SECONDS)
{
	EXPECT_NONE(NO_NUMBER);
}

TEST_F_TIMEOUT(storm, r6_every_partition_event_names_its_medium, SECONDS)
{
	EXPECT_NONE(OTHER_MEDIUM);
	EXPECT_NONE(UNKNOWN_NUMBER);
}

TEST_F_TIMEOUT(storm, r7_every_number_is_announced_once, SECONDS)
{
	EXPECT_NONE(ANNOUNCED_TWICE);
	EXPECT_NONE(NOT_ANNOUNCED);
	EXPECT_NONE(UNEXPECTED);
}

TEST_F_TIMEOUT(storm, r7_numbers_of_a_disk_are_announced_in_order, SECONDS)
{
	EXPECT_NONE(NOT_INCREASING);
}

TEST_F_TIMEOUT(storm, r8_attacher_reads_the_same_everywhere, SECONDS)
{
	EXPECT_NONE(READINGS_DIFFER);
}

TEST_F_TIMEOUT(storm, r9_partitions_come_after_and_leave_before, SECONDS)
{
	EXPECT_NONE(OUT_OF_ORDER);
}

TEST_F_TIMEOUT(storm, r10_every_partition_comes_and_goes_once, SECONDS)
{
	EXPECT_NONE(ADDED_TWICE);
	EXPECT_NONE(NOT_ADDED);
	EXPECT_NONE(NOT_REMOVED);
}

TEST_HARNESS_MAIN
