// SPDX-License-Identifier: GPL-2.0
/*
 * Starts the processes of the fuzzer, kills them now and then, watches that each
 * operation comes to its end, and tells what was found: the rule, the disk, what each
 * process did last with that disk, and its events.
 *
 * In the environment: DISKSEQ_SEED, DISKSEQ_SECONDS, and DISKSEQ_ONLY, names of
 * processes, for a run in which only those do anything. DISKSEQ_DELAYS is the number
 * of points at which the kernel can be delayed (scripts/tree/add-mutants): each of
 * them is, one after the other, for the same time.
 */
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dm_dev.h"
#include "fuzz.h"
#include "nbd_dev.h"
#include "zram_dev.h"

#define KILL_MS		1500	/* at most so often */
#define CHECK_MS	15000
#define TELL_MS		10000
#define WAIT_MS		5000	/* for a process; after that, say which */
#define DELAY		"/sys/module/mutant/parameters/delay"
#define OPS_SHOWN	10
#define EVENTS_SHOWN	30

static struct worker *self;
static uint64_t random_state;

static const struct {
	int id;
	const char *name;
} findings[] = {
	{ 1, "r1_one_counter" },
	{ 3, "r3_new_medium_new_number" },
	{ 4, "r4_number_never_goes_down" },
	{ 5, "r5_three_readings_one_value" },
	{ 6, "r6_partition_keeps_its_number" },
	{ 7, "r7_announced_once" },
	{ 8, "r8_published_before_announced" },
	{ 9, "r9_order" },
	{ 10, "r10_partition_added_once" },
	{ 11, "r11_poll_returns" },
	{ 12, "r12_refused_changes_nothing" },
	{ 14, "r14_no_data_is_lost" },
	{ 15, "r15_what_worked_goes_on_working" },
	{ NO_EVENT_LOST, "no_event_is_lost" },
	{ NO_HANG, "each_operation_returns" },
	{ NO_DEATH, "each_process_goes_on" },
};

#define NR_FINDINGS	((int)(sizeof(findings) / sizeof(*findings)))

/* The observer reports it, with what was done and what has arrived by then. */
void broken(int rule, const struct disk *d, const char *fmt, ...)
{
	struct broken *b;
	unsigned int i;
	va_list args;

	if (atomic_inc(&fuzz->of_rule[rule], 1) > MAX_OF_RULE)
		return;
	i = atomic_inc(&fuzz->brokens, 1) - 1;
	if (i >= MAX_BROKEN)
		die("more kinds of findings than expected");
	b = &fuzz->broken[i];
	b->rule = rule;
	b->disk = d ? d - fuzz->disk : -1;
	b->worker = self ? self - fuzz->worker : -1;
	va_start(args, fmt);
	vsnprintf(b->text, sizeof(b->text), fmt, args);
	va_end(args);
	atomic_put(&b->ready, true);
}

/* What a process does */

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

unsigned int draw(unsigned int below)
{
	random_state = mix(random_state);
	return (random_state >> 32) % below;
}

/* What the operation draws is its own, whatever those before it have drawn. */
static void draw_for(const struct worker *w)
{
	random_state = mix(mix(mix(fuzz->seed) + (w - fuzz->worker)) +
			   ((uint64_t)w->life << 32) + w->steps);
}

void op_begin(const struct disk *d, const char *fmt, ...)
{
	struct op *op = &self->op[self->at++ % TRACE];
	va_list args;

	op->ms = now_ms();
	op->step = self->steps;
	op->disk = d ? d - fuzz->disk : -1;
	op->err = -1;
	va_start(args, fmt);
	vsnprintf(op->what, sizeof(op->what), fmt, args);
	va_end(args);
	atomic_put(&self->begun, op->ms);
}

int op_end(int err)
{
	self->op[(self->at - 1) % TRACE].err = err;
	atomic_put(&self->begun, now_ms());
	atomic_inc(&self->ops, 1);
	return err;
}

/* Before what may raise so many announcements. */
void owe(struct disk *d, int announcements)
{
	atomic_inc(&d->owed_max, announcements);
}

/*
 * After an operation that was refused or has done all of it. If others change the same
 * disk, one announcement may be for two changes.
 */
void settle(struct disk *d, int announcements, int err)
{
	if (err)
		atomic_inc(&d->owed_max, -announcements);
	else if (!(d->flags & SHARED))
		atomic_inc(&d->owed_min, announcements);
}

/* From sysfs; 0 if the disk is gone. What others have read before is a lower limit. */
uint64_t number_by_name(struct disk *d)
{
	uint64_t least = atomic_get(&d->published), number = number_in_sysfs(d);

	if (!number)
		return 0;
	if (number < least)
		broken(4, d, "sysfs gives %llu, but %llu was read or announced before",
		       (unsigned long long)number, (unsigned long long)least);
	publish(d, number);
	return number;
}

/* By the ioctl on @fd, which is of the disk and was opened a moment ago. */
uint64_t number_by_fd(struct disk *d, int fd)
{
	uint64_t number = 0;

	if (ioctl(fd, BLKGETDISKSEQ, &number))
		broken(5, d, "BLKGETDISKSEQ: %s", strerror(errno));
	publish(d, number);
	return number;
}

/* The disk is one that nobody else changes: both readings say the same. */
void expect_number(struct disk *d, int fd, uint64_t before, bool changed)
{
	uint64_t by_fd = number_by_fd(d, fd), by_name = number_by_name(d);

	if (by_fd != by_name)
		broken(5, d, "the ioctl gives %llu, sysfs %llu",
		       (unsigned long long)by_fd, (unsigned long long)by_name);
	if (changed && by_fd <= before)
		broken(3, d, "a new medium has %llu, the one before had %llu",
		       (unsigned long long)by_fd, (unsigned long long)before);
	if (!changed && by_fd != before)
		broken(12, d, "has %llu, but nothing changed its medium, which had %llu",
		       (unsigned long long)by_fd, (unsigned long long)before);
}

bool number_follows(struct disk *d, uint64_t above)
{
	int64_t end = now_ms() + limit_ms() / 2;

	while (number_by_name(d) <= above) {
		if (now_ms() > end)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}

/* The medium with that number has only sectors of @id, as long as this says so. */
void medium_is(uint64_t number, char id)
{
	struct medium *m = &fuzz->media[number % MEDIA];

	atomic_put(&m->id, 0);
	atomic_put(&m->number, number);
	atomic_put(&m->id, id);
}

/* @sector was read between two readings that gave @number. */
void medium_check(struct disk *d, uint64_t number, const char *sector, uint64_t nr)
{
	struct medium *m = &fuzz->media[number % MEDIA];
	char id = atomic_get(&m->id), found;

	if (!id || atomic_get(&m->number) != number || atomic_get(&m->id) != id)
		return;
	if (sscanf(sector, "image %c sector ", &found) != 1)
		broken(8, d, "sector %llu of medium %llu, which is image %c, has no text of any image",
		       (unsigned long long)nr, (unsigned long long)number, id);
	else if (found != id)
		broken(8, d, "sector %llu of medium %llu, which is image %c, is of image %c",
		       (unsigned long long)nr, (unsigned long long)number, id, found);
}

/*
 * Is it this partition? If not, those who watch the disk that it is one of have to know
 * that it is open. What is open keeps its device number.
 */
static bool is_partition(int fd, const char *name)
{
	char path[64], link[256], *part, *disk;
	struct disk *d;
	struct stat st;
	ssize_t len;

	if (fstat(fd, &st))
		return false;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(st.st_rdev),
		 minor(st.st_rdev));
	len = readlink(path, link, sizeof(link) - 1);
	if (len < 0)
		return false;
	link[len] = '\0';
	part = strrchr(link, '/');
	if (!part)
		return false;
	if (!strcmp(part + 1, name))
		return true;
	*part = '\0';
	disk = strrchr(link, '/');
	d = disk ? disk_find(disk + 1) : NULL;
	if (d)
		atomic_inc(&d->strays, 1);
	return false;
}

/*
 * -1 and errno if it cannot be opened. Between the look for a partition's name and the
 * open that partition may go, and its device number come to one of another disk.
 */
int open_disk(const struct disk *d, int partno, int flags)
{
	char path[48] = "/dev/";
	int fd;

	part_name(d, partno, path + 5, sizeof(path) - 5);
	fd = open(path, flags | O_CLOEXEC);
	if (fd < 0 || !partno || is_partition(fd, path + 5))
		return fd;
	close(fd);
	errno = ESTALE;
	return -1;
}

/* The rest of an operation: the disk is scanned, and has its number from before. */
void scan_and_close(struct disk *d, int fd, uint64_t before)
{
	int err;

	may_raise(d, 1, 1);
	err = called(ioctl(fd, BLKRRPART));
	close(fd);
	op_end(err);
	if (number_by_name(d) != before)
		broken(3, d, "a scan took a number");
}

bool bytes_are(int fd, uint64_t sector, const char *want)
{
	static char have[SECTOR] __aligned(4096);

	return pread(fd, have, SECTOR, sector * SECTOR) == SECTOR &&
	       !memcmp(want, have, SECTOR);
}

/* Processes */

static void work(struct worker *w)
{
	self = w;
	close(observer_fd());
	draw_for(w);
	if (w->begin)
		w->begin(w);
	atomic_put(&w->begun, 0);
	while (w->helper || !atomic_get(&fuzz->stop)) {
		if (atomic_get(&fuzz->pause) && !w->helper) {
			atomic_put(&w->idle, true);
			poll(NULL, 0, 5);
			continue;
		}
		atomic_put(&w->idle, false);
		/* the pause may have begun between the two */
		if (atomic_get(&fuzz->pause) && !w->helper)
			continue;
		draw_for(w);
		w->step(w);
		atomic_put(&w->begun, 0);
		w->steps++;
	}
	if (w->end)
		w->end(w);
	atomic_put(&w->begun, 0);
	atomic_put(&w->idle, true);
	_exit(0);
}

static void start(struct worker *w)
{
	pid_t pid;

	atomic_put(&w->idle, false);
	atomic_put(&w->begun, now_ms());
	pid = spawn();
	if (!pid)
		work(w);
	w->pid = pid;
}

static void add(const char *name, void (*begin)(struct worker *w),
		void (*step)(struct worker *w), void (*end)(struct worker *w), int arg)
{
	const char *only = getenv("DISKSEQ_ONLY");
	struct worker *w = &fuzz->worker[fuzz->workers];

	if (only && !strstr(only, name))
		return;
	if (fuzz->workers++ == MAX_WORKERS)
		die("more processes than expected");
	w->name = name;
	w->begin = begin;
	w->step = step;
	w->end = end;
	w->arg = arg;
	w->helper = step == nbd_free_step;
}

/* Delays */

static int delay;	/* 0: none */

static void set_delay(int point)
{
	FILE *file;

	if (point == delay)
		return;
	file = fopen(DELAY, "we");
	if (!file || fprintf(file, "%d\n", point) < 0 || fclose(file))
		die("%s: %s", DELAY, strerror(errno));
	delay = point;
}

/* Reports */

static bool hung;

static const char *finding_name(int id)
{
	int i;

	for (i = 0; i < NR_FINDINGS; i++)
		if (findings[i].id == id)
			return findings[i].name;
	return "unknown";
}

static void show_ops(const struct worker *w, int disk)
{
	unsigned int i = w->at > TRACE ? w->at - TRACE : 0, shown = 0, at;
	const struct op *op;

	/* the last ones, of that disk */
	for (at = w->at; at > i && shown < OPS_SHOWN; at--)
		shown += disk < 0 || w->op[(at - 1) % TRACE].disk == disk;
	if (!shown)
		return;
	fprintf(stderr, "#   process %d (%s), life %u:\n", (int)(w - fuzz->worker),
		w->name, w->life);
	for (; at < w->at; at++) {
		op = &w->op[at % TRACE];
		if (disk >= 0 && op->disk != disk)
			continue;
		fprintf(stderr, "#     %.3f #%d %s: %s\n",
			(op->ms - fuzz->start) / 1000.0, op->step, op->what,
			op->err < 0 ? "..." : op->err ? strerror(op->err) : "ok");
	}
}

static void report(const struct broken *b)
{
	const struct disk *d = b->disk < 0 ? NULL : &fuzz->disk[b->disk];
	static bool shown[FINDINGS][MAX_DISKS + 1];
	int i;

	fprintf(stderr, "# BROKEN %s: %s%s%s (%s, %.3f s", finding_name(b->rule),
		d ? d->name : "", d ? ": " : "", b->text,
		b->worker < 0 ? "observer" : fuzz->worker[b->worker].name,
		(now_ms() - fuzz->start) / 1000.0);
	fprintf(stderr, delay ? ", delay %d)\n" : ")\n", delay);
	/* the rest once for each rule and disk */
	if (shown[b->rule][b->disk + 1])
		return;
	shown[b->rule][b->disk + 1] = true;
	for (i = 0; i < fuzz->workers; i++)
		if (d || b->worker == i)
			show_ops(&fuzz->worker[i], d ? b->disk : -1);
	if (d) {
		fprintf(stderr, "#   events of %s:\n", d->name);
		observer_show(d, EVENTS_SHOWN);
	}
}

static void report_new(void)
{
	static unsigned int reported;
	struct broken *b;

	while (reported < atomic_get(&fuzz->brokens)) {
		b = &fuzz->broken[reported++];
		while (!atomic_get(&b->ready))
			poll(NULL, 0, 1);
		/* what has arrived since then may explain it */
		observer_receive();
		report(b);
	}
}

/* Watching */

/* Its last operation. */
static const char *doing(const struct worker *w)
{
	return w->at ? w->op[(w->at - 1) % TRACE].what : "its begin";
}

static void watch(struct worker *w)
{
	int64_t begun = atomic_get(&w->begun);
	int status;
	pid_t pid;

	if (!w->pid)
		return;
	pid = waitpid(w->pid, &status, WNOHANG);
	if (pid == w->pid) {
		w->pid = 0;
		if (!atomic_get(&fuzz->stop) || status) {
			fprintf(stderr, "# process %d (%s) ended with status %x\n",
				(int)(w - fuzz->worker), w->name, status);
			broken(NO_DEATH, NULL, "process %d (%s) ended by itself",
			       (int)(w - fuzz->worker), w->name);
			w->life++;
			w->steps = 0;
			if (!atomic_get(&fuzz->stop))
				start(w);
		}
		return;
	}
	if (!hung && begun && now_ms() - begun > limit_ms()) {
		hung = true;
		broken(NO_HANG, w->at ? &fuzz->disk[(int)w->op[(w->at - 1) % TRACE].disk < 0 ?
				0 : w->op[(w->at - 1) % TRACE].disk] : NULL,
		       "process %d (%s) does not come back from: %s",
		       (int)(w - fuzz->worker), w->name, doing(w));
		tell_where(w->pid);
	}
}

static void watch_all(void)
{
	int i;

	for (i = 0; i < fuzz->workers; i++)
		watch(&fuzz->worker[i]);
	report_new();
}

static unsigned int kills;
static int64_t seconds;

static uint64_t all_ops(void)
{
	uint64_t sum = 0;
	int i;

	for (i = 0; i < fuzz->workers; i++)
		sum += atomic_get(&fuzz->worker[i].ops);
	return sum;
}

static unsigned int all_findings(void)
{
	unsigned int sum = 0;
	int i;

	for (i = 0; i < FINDINGS; i++)
		sum += atomic_get(&fuzz->of_rule[i]);
	return sum;
}

static void tell(void)
{
	fprintf(stderr, "# %lld of %lld s: %llu operations, %llu media, %llu events, %u kills, ",
		(long long)(now_ms() - fuzz->start) / 1000, (long long)seconds,
		(unsigned long long)all_ops(), (unsigned long long)observer_media(),
		(unsigned long long)observer_events(), kills);
	if (!modules_missing())
		fprintf(stderr, "%u unloads, ", atomic_get(&fuzz->unloads));
	fprintf(stderr, "%u findings\n", all_findings());
}

/* Whatever it does: what it holds is the kernel's to give back. */
static void end_one(struct worker *w)
{
	int64_t end = now_ms() + limit_ms();

	kill(w->pid, SIGKILL);
	while (!waitpid(w->pid, NULL, WNOHANG)) {
		observer_receive();
		if (now_ms() > end) {
			hung = true;
			tell_where(w->pid);
			broken(NO_HANG, NULL, "process %d (%s) does not die",
			       (int)(w - fuzz->worker), w->name);
			break;
		}
		poll(NULL, 0, 1);
	}
	atomic_put(&w->pid, 0);
	w->life++;
	w->steps = 0;
}

/* The processes of a driver that is unloaded, and of one that is there again. */
static void hold_and_release(void)
{
	struct worker *w;

	for (w = fuzz->worker; w < fuzz->worker + fuzz->workers && !hung; w++) {
		if (w->pid && module_goes(w)) {
			end_one(w);
			w->held = true;
		} else if (w->held && !module_goes(w) && !atomic_get(&fuzz->stop)) {
			w->held = false;
			start(w);
		}
	}
}

static void look(int ms)
{
	struct pollfd pfd = { .fd = observer_fd(), .events = POLLIN };
	static int64_t told;

	poll(&pfd, 1, ms);
	observer_receive();
	watch_all();
	hold_and_release();
	if (now_ms() - (told ?: fuzz->start) < TELL_MS)
		return;
	told = now_ms();
	tell();
}

static void kill_one(struct worker *w)
{
	if (!w->pid)
		return;
	end_one(w);
	if (hung)
		return;
	kills++;
	start(w);
}

/* A process that does something, or NULL. */
static const struct worker *busy_one(void)
{
	const struct worker *w;

	for (w = fuzz->worker; w < fuzz->worker + fuzz->workers; w++)
		if (w->pid && !w->helper && !atomic_get(&w->idle))
			return w;
	return NULL;
}

static void checkpoint(void)
{
	int64_t tell_at = now_ms() + WAIT_MS;
	const struct worker *w;

	atomic_put(&fuzz->pause, true);
	while ((w = busy_one()) && !hung) {
		look(5);
		if (now_ms() < tell_at)
			continue;
		fprintf(stderr, "# everybody waits for process %d (%s): %s\n",
			(int)(w - fuzz->worker), w->name, doing(w));
		tell_at += WAIT_MS;
	}
	if (!hung)
		observer_compare();
	report_new();
	atomic_put(&fuzz->pause, false);
}

static void run(int delays)
{
	int64_t end, check, killed, now, due = 0;
	int i;

	fuzz->start = now_ms();
	end = fuzz->start + seconds * 1000;
	check = killed = fuzz->start;
	for (i = 0; i < fuzz->workers; i++)
		start(&fuzz->worker[i]);
	while ((now = now_ms()) < end && !hung) {
		/* none is left out, even if that takes longer */
		if (delays && now >= due) {
			set_delay(delay + 1);
			due = now + seconds * 1000 / delays;
			end = due + (delays - delay) * seconds * 1000 / delays;
		}
		look(20);
		if (now - check >= CHECK_MS) {
			checkpoint();
			check = now_ms();
			/* nothing was done that a delay could be in */
			due += check - now;
			end += delays ? check - now : 0;
		}
		if (now - killed >= KILL_MS) {
			random_state = mix(fuzz->seed + kills);
			kill_one(&fuzz->worker[draw(fuzz->workers)]);
			killed = now_ms();
		}
	}
	set_delay(0);
}

static void rest(void)
{
	int64_t end = now_ms() + limit_ms() + 1000;
	bool left = true;
	int i;

	atomic_put(&fuzz->stop, true);
	while (left && !hung && now_ms() < end) {
		look(20);
		for (left = false, i = 0; i < fuzz->workers; i++)
			left |= fuzz->worker[i].pid && !fuzz->worker[i].helper;
	}
	if (now_ms() >= end && !hung)
		broken(NO_HANG, NULL, "the processes do not end");
	for (i = 0; i < fuzz->workers; i++)
		if (fuzz->worker[i].pid)
			kill(fuzz->worker[i].pid, SIGKILL);
	if (left || hung)
		return;
	for (i = 0; i < fuzz->workers; i++)
		if (fuzz->worker[i].pid)
			waitpid(fuzz->worker[i].pid, NULL, 0);
	for (i = 0; i < fuzz->disks; i++) {
		if (!strncmp(fuzz->disk[i].name, "loop", 4) && (fuzz->disk[i].flags & COUNTED))
			loop_rest(&fuzz->disk[i]);
		if (!strncmp(fuzz->disk[i].name, "nbd", 3))
			nbd_rest(&fuzz->disk[i]);
		if (!strncmp(fuzz->disk[i].name, "zram", 4))
			zram_rest(&fuzz->disk[i]);
	}
	observer_finish();
}

static void add_loops(int count, unsigned int flags)
{
	static struct loop lo[16];
	static int made;

	while (count--) {
		loop_create(&lo[made]);
		loop_close(&lo[made]);
		disk_slot(lo[made++].name, flags);
	}
}

static int add_nbd(int below, unsigned int flags)
{
	char name[16];
	int index = free_below(below);

	snprintf(name, sizeof(name), "nbd%d", index);
	disk_slot(name, flags);
	return index;
}

static void add_zram(unsigned int flags)
{
	struct zram z;

	zram_create(&z);
	disk_slot(z.name, flags);
}

/* Disks of each kind: one or two of a process of their own, and some for all. */
static void add_all(void)
{
	int first, second;

	/* disks 0 and 1: a process each; 2 and 3 shared; 4 to 7 below md; 8 below dm */
	add_loops(1, COUNTED | QUIET | BY_DRIVER);
	add_loops(1, COUNTED | QUIET | BY_DRIVER | PARTS_ALONE);
	add_loops(2, COUNTED | QUIET | BY_DRIVER | SHARED);
	add_loops(5, BY_DRIVER);
	first = add_nbd(MAX_INDEX, COUNTED | QUIET | BY_DRIVER);	/* 9 */
	second = add_nbd(first, COUNTED | QUIET | BY_DRIVER | SHARED);		/* 10 */
	add_zram(COUNTED | QUIET | BY_DRIVER);				/* 11 */
	add_zram(COUNTED | QUIET | BY_DRIVER | SHARED);			/* 12 */
	disk_slot("md300", COUNTED | BY_DRIVER);			/* 13 */
	disk_slot("md301", COUNTED | BY_DRIVER | SHARED);			/* 14 */
	disk_slot("dm-0", COUNTED | BY_DRIVER | REMOVED_TWICE);

	add("loop", loop_alone_begin, loop_alone_step, loop_alone_end, 0);
	add("loop", loop_alone_begin, loop_alone_step, loop_alone_end, 1);
	add("loop-shared", NULL, loop_shared_step, NULL, 2);
	add("loop-shared", NULL, loop_shared_step, NULL, 2);
	add("loop-shared", NULL, loop_shared_step, NULL, 3);
	add("nbd", nbd_alone_begin, nbd_alone_step, nbd_alone_end, first);
	add("nbd-shared", NULL, nbd_shared_step, NULL, second);
	add("nbd-shared", NULL, nbd_shared_step, NULL, second);
	add("nbd-shared", NULL, nbd_free_step, NULL, second);
	add("zram", zram_alone_begin, zram_alone_step, NULL, 11);
	add("zram-shared", NULL, zram_shared_step, NULL, 12);
	add("zram-shared", NULL, zram_shared_step, NULL, 12);
	add("md", md_begin, md_alone_step, md_alone_end, 300);
	add("md-shared", md_begin, md_shared_step, md_alone_end, 301);
	add("md-shared", md_begin, md_shared_step, md_alone_end, 301);
	add("dm", dm_begin, dm_step, dm_end, 8);
	if (!drive_missing()) {
		disk_slot("sr0", COUNTED);
		disk_slot("sda", COUNTED);
		add("drive", drive_begin, drive_step, drive_end, 0);
	}
	add("look", NULL, look_step, NULL, 0);
	add("look", NULL, look_step, NULL, 0);
	add("react", react_begin, react_step, NULL, 0);
	add("react", react_begin, react_step, NULL, 1);
	add("poll", NULL, poll_step, NULL, 0);
	if (!modules_missing())
		add("module", module_begin, module_step, NULL, 0);
}

/* Those that go and come with their drivers, too. */
static void add_rest(void)
{
	DIR *dir = opendir("/sys/block");
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			disk_slot(entry->d_name, 0);
	closedir(dir);
}

static const char *missing(void)
{
	return nbd_missing() ?: zram_missing() ?:
	       access("/proc/mdstat", F_OK) ? "kernel without md" :
	       access(DM_CONTROL, F_OK) ? "kernel without device mapper" : NULL;
}

int main(void)
{
	const char *seed = getenv("DISKSEQ_SEED"), *time_given = getenv("DISKSEQ_SECONDS");
	const char *delays = getenv("DISKSEQ_DELAYS");
	const char *reason = missing();
	unsigned int count;
	int i, failed = 0;

	printf("1..%d\n", NR_FINDINGS);
	if (reason) {
		for (i = 0; i < NR_FINDINGS; i++)
			printf("ok %d %s # SKIP %s\n", i + 1, findings[i].name, reason);
		return 4;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	fuzz = shared_memory(sizeof(*fuzz));
	fuzz->seed = seed ? strtoull(seed, NULL, 0) :
			    (uint64_t)time(NULL) * 1000 + getpid() % 1000;
	fprintf(stderr, "# SEED=%llu\n", (unsigned long long)fuzz->seed);
	observer_open();
	add_all();
	if (!modules_missing())
		add_rest();
	observer_begin();
	if (drive_missing())
		fprintf(stderr, "# no drives: %s\n", drive_missing());
	seconds = time_given ? atoi(time_given) : 120;
	run(delays ? atoi(delays) : 0);
	rest();
	report_new();
	seconds = (now_ms() - fuzz->start) / 1000;
	tell();
	for (i = 0; i < fuzz->workers; i++)
		fprintf(stderr, "# process %d (%s): %llu operations, life %u\n", i,
			fuzz->worker[i].name, (unsigned long long)fuzz->worker[i].ops,
			fuzz->worker[i].life);
	for (i = 0; i < NR_FINDINGS; i++) {
		count = fuzz->of_rule[findings[i].id];
		failed |= !!count;
		if (count)
			fprintf(stderr, "# %u times, SEED=%llu\n", count,
				(unsigned long long)fuzz->seed);
		printf("%sok %d %s\n", count ? "not " : "", i + 1, findings[i].name);
	}
	return failed;
}
