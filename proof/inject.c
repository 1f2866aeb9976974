// SPDX-License-Identifier: GPL-2.0
/*
 * Fault injection: makes the n-th allocation or request of an operation fail, for
 * n = 1, 2, 3 and so on until it succeeds without a failure, and judges:
 *
 * - The operation has failed: nothing happened (rule 12). It has the number that it
 *   had, no event, the same partitions and size; and the same operation once more does
 *   what it does on a fresh disk.
 * - It has succeeded in spite of it: everything is as without a failure, but for what
 *   cannot be had without memory. One uevent may be missing if it is its memory that
 *   was refused; then the number is right and who polls it was woken (rule 11).
 *   Partitions may be missing if the scan for them was hit, as without the series; the
 *   next scan finds them.
 *
 * The failures are those of failslab, fail_page_alloc and fail_make_request. Which
 * function was hit is taken from the kernel's log. Each operation has a process of its
 * own, so that one that hangs or dies is a finding and the others are still done.
 *
 * In the environment: DISKSEQ_ONLY, a pattern for the names of operations, also "@(this|that)";
 * DISKSEQ_FIRST, the first failure, for a repetition; DISKSEQ_VERBOSE=1: what becomes of
 * each failure is told; DISKSEQ_ONCE=1: no second round.
 */
#include <dirent.h>
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject.h"

#define DEBUGFS		"/sys/kernel/debug"
#define MAX_OPERATIONS	100
#define MAX_EVENTS	40
#define MAX_FAILURES	3000
#define MAX_FOUND	6	/* of one operation, that are told in full */
#define DEPTH		40	/* of a stack that is kept */
#define SHOWN		7	/* of its functions */
#define COMPLAINT	60	/* lines of one that are shown */
#define STEP		32	/* bytes, of failures in a worker */
#define KMEMLEAK_AGE_MS	6000
#define TAINT_WARN	"512"	/* by warnings, as who calls this expects of it */

/* What may differ after a second round, in kB. */
#define SLAB_KB		2048

struct event {
	char text[64];
	int part;
	bool media, add;
};

/* What an operation has done, numbers relative to those before it. */
struct outcome {
	int err;
	bool there;
	long long number;	/* as relative() says */
	long long spent;
	int parts;
	char size[24];
	bool woken;
	unsigned int lost;
	int events;
	struct event event[MAX_EVENTS];
};

/*
 * The failure that was injected last. Of an allocation that does without a warning the log
 * says nothing: it is then taken to be near the one before it.
 */
struct fault {
	bool silent;
	char by[20];
	int functions;
	char function[DEPTH][48];
};

/* Of the process that works, for the one that watches. */
struct progress {
	struct fault fault;
	int64_t beat;
	unsigned int nth;
	const char *phase;
	unsigned int found, known;
	bool skipped;
	char why[80];
	unsigned int points, refused, absorbed;
	bool fired_in_other;
};

const struct operation *op;

static struct progress *progress;
static struct fault *fault;
static int kmsg = -1, nth_fd = -1;
static struct monitor mon;
static char disk[16];

static void phase(const char *what)
{
	progress->phase = what;
	__atomic_store_n(&progress->beat, now_ms(), __ATOMIC_SEQ_CST);
}

void skip(const char *why)
{
	snprintf(progress->why, sizeof(progress->why), "%s", why);
	progress->skipped = true;
	_exit(0);
}

void watch(const char *name)
{
	snprintf(disk, sizeof(disk), "%s", name);
	monitor_open(&mon, name);
}

void let_requests_fail(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/make-it-fail", name);
	must(file_write(path, "1"), path);
}

/* The kernel's log. */

static bool in_stack(const char *function)
{
	size_t len = strlen(function);
	int i;

	for (i = 0; i < fault->functions; i++)
		if (!strncmp(fault->function[i], function, len) &&
		    (!fault->function[i][len] || fault->function[i][len] == '.'))
			return true;
	return false;
}

static const char *where(void)
{
	static char text[512];
	int i, len;

	len = snprintf(text, sizeof(text), "%s%s",
		       fault->silent ? "one without a warning after " : "",
		       fault->by[0] ? fault->by : "none");
	for (i = 0; i < fault->functions && i < SHOWN; i++)
		len += snprintf(text + len, sizeof(text) - len, "%s%s", i ? " < " : ": ",
				fault->function[i]);
	return text;
}

static void __printf(1, 2) found(const char *fmt, ...)
{
	va_list args;

	if (op->known && in_stack(op->known_in)) {
		if (!progress->known++)
			fprintf(stderr, "# known: %s, failure %u: %s\n", op->name, progress->nth,
				op->known);
		return;
	}
	if (++progress->found > MAX_FOUND)
		return;
	fprintf(stderr, "# BROKEN %s, failure %u (%s): ", op->name, progress->nth, where());
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fprintf(stderr, "\n");
}

/* What the kernel complains about without the series, too. */
static const struct {
	const char *line, *why;
} known[] = {
	{ "WARNING: block/holder.c",
	  "md unlinks what bd_link_disk_holder() has refused, which it does not look at" },
	{ "tried to init an initialized object",
	  "dm initialises its kobject again after a table that was refused" },
};

static const char *known_complaint(const char *line)
{
	int i;

	for (i = 0; i < (int)(sizeof(known) / sizeof(*known)); i++)
		if (strstr(line, known[i].line))
			return known[i].why;
	return NULL;
}

static bool complaint(const char *line)
{
	static const char * const signs[] = {
		"BUG: ", "WARNING: ", "INFO: ", "suspicious", "refcount_t:",
		"something is seriously wrong", "list_add corruption", "list_del corruption",
		"UBSAN:", NULL,
	};
	int i;

	for (i = 0; signs[i]; i++)
		if (strstr(line, signs[i]))
			return true;
	return false;
}

/* One line of the kernel's log, or NULL if there is none at the moment. */
static char *kmsg_line(void)
{
	static char buf[8192];
	char *text, *end;
	ssize_t len;

	do
		len = read(kmsg, buf, sizeof(buf) - 1);
	while (len < 0 && errno == EPIPE);
	if (len <= 0)
		return NULL;
	buf[len] = '\0';
	text = strchr(buf, ';');
	if (!text)
		return buf;
	end = strchr(text, '\n');
	if (end)
		*end = '\0';
	return text + 1;
}

/* Returns whether the line belongs to a complaint, of which @told have been told. */
static bool kmsg_complaint(const char *line, bool *passed_over, int *told)
{
	const char *why = *told ? NULL : known_complaint(line);

	if (why) {
		fprintf(stderr, "# known: %s, failure %u: %s\n", op->name, progress->nth, why);
		*passed_over = true;
	}
	if (*passed_over) {
		*passed_over = !strstr(line, "</TASK>");
		return true;
	}
	if (!*told && !complaint(line))
		return false;
	if (!*told)
		found("the kernel complains");
	if ((*told)++ < COMPLAINT && progress->found <= MAX_FOUND)
		fprintf(stderr, "#     %s\n", line);
	return true;
}

/* A function of the stack, the innermost first, without those that decide to fail. */
static void add_function(const char *line)
{
	char name[48];

	if (strpbrk(line, "?:") || sscanf(line, " %47[A-Za-z0-9_.]", name) != 1)
		return;
	if (!strncmp(name, "dump_stack", 10) || !strncmp(name, "should_fail", 11) ||
	    !strcmp(name, "fail_dump"))
		fault->functions = 0;
	else if (fault->functions < DEPTH)
		snprintf(fault->function[fault->functions++], sizeof(name), "%s", name);
}

/* Reads what was said since: where the failure was, if there was one, and complaints. */
static void kmsg_read(bool failed)
{
	enum { NONE, HEAD, STACK } state = NONE;
	bool passed_over = false;
	const char *line, *by;
	int told = 0;

	if (failed)
		fault->silent = true;
	while ((line = kmsg_line())) {
		if (kmsg_complaint(line, &passed_over, &told))
			continue;
		if (strstr(line, "FAULT_INJECTION: forcing a failure")) {
			memset(fault, 0, sizeof(*fault));
			state = HEAD;
			/* in the same record, behind a newline that is escaped */
			by = strstr(line, "name ");
			if (!by || sscanf(by, "name %19[^,]", fault->by) != 1)
				snprintf(fault->by, sizeof(fault->by), "?");
		} else if (state == HEAD && strstr(line, "Call Trace:")) {
			state = STACK;
		} else if (state == STACK && strstr(line, "</TASK>")) {
			state = NONE;
		} else if (state == STACK) {
			add_function(line);
		}
	}
}

/* Failures. */

void arm(unsigned int nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", nth);

	if (nth_fd < 0)
		nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (nth_fd < 0 || pwrite(nth_fd, text, len, 0) != len)
		die("fail-nth: %s", strerror(errno));
}

/* Returns whether it has failed. */
bool disarm(void)
{
	char text[16] = "";

	if (pread(nth_fd, text, sizeof(text) - 1, 0) <= 0 || pwrite(nth_fd, "0", 1, 0) != 1)
		die("fail-nth: %s", strerror(errno));
	return !atoi(text);
}

/* For who arms itself: which one is to fail now, 0 for none. */
static unsigned int now_failing;

unsigned int failure(void)
{
	return now_failing;
}

void failed_in_other(bool fired)
{
	progress->fired_in_other = fired;
}

static void set_attribute(const char *attr, const char *file, const char *value)
{
	char path[96];
	int err;

	snprintf(path, sizeof(path), DEBUGFS "/%s/%s", attr, file);
	err = file_write(path, value);
	if (err)
		die("%s: %s", path, strerror(err));
}

/* Addresses of the first and behind the last of these functions. */
static void range_of(const char * const *names, unsigned long long *start,
		     unsigned long long *end)
{
	unsigned long long addr, last = 0;
	char line[256], name[128];
	FILE *file = fopen("/proc/kallsyms", "re");
	int i;

	*start = ~0ULL;
	*end = ~0ULL;
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%llx %*c %127s", &addr, name) != 2)
			continue;
		for (i = 0; names[i]; i++) {
			if (strcmp(names[i], name))
				continue;
			if (addr < *start)
				*start = addr;
			if (addr > last)
				last = addr;
		}
	}
	if (!file || !last)
		die("/proc/kallsyms has no %s", names[0]);
	rewind(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "%llx", &addr) == 1 && addr > last && addr < *end)
			*end = addr;
	fclose(file);
}

static void set_range(const char *attr, const char *which, const char * const *names)
{
	unsigned long long start, end;
	char file[32], value[32];

	range_of(names, &start, &end);
	snprintf(file, sizeof(file), "%s-start", which);
	snprintf(value, sizeof(value), "0x%llx", start);
	set_attribute(attr, file, value);
	snprintf(file, sizeof(file), "%s-end", which);
	snprintf(value, sizeof(value), "0x%llx", end);
	set_attribute(attr, file, value);
}

/* All that can fail does, except in kmemleak, which has a reserve for that. */
static void set_attributes(void)
{
	static const char * const attrs[] = {
		"failslab", "fail_page_alloc", "fail_make_request", NULL,
	};
	static const char * const kmemleak[] = {
		"__alloc_object", "mem_pool_alloc", "create_object", "__create_object", NULL,
	};
	int i;

	for (i = 0; attrs[i]; i++) {
		set_attribute(attrs[i], "verbose", "2");
		set_attribute(attrs[i], "verbose_ratelimit_interval_ms", "0");
		set_attribute(attrs[i], "stacktrace-depth", "32");
		if (i < 2) {
			set_attribute(attrs[i], "ignore-gfp-wait", "N");
			set_range(attrs[i], "reject", kmemleak);
		}
	}
	set_attribute("fail_page_alloc", "ignore-gfp-highmem", "N");
	set_attribute("fail_page_alloc", "min-order", "0");
}

/* The n-th in a worker is what comes after so many bytes. */
static void arm_worker(unsigned int nth)
{
	const char *names[] = { op->within, NULL };
	char space[16];

	set_range("failslab", "require", names);
	snprintf(space, sizeof(space), "%u", (nth - 1) * STEP);
	set_attribute("failslab", "space", space);
	set_attribute("failslab", "times", "1");
	set_attribute("failslab", "probability", "100");
}

static bool disarm_worker(void)
{
	char times[8] = "";
	int fd = open(DEBUGFS "/failslab/times", O_RDONLY | O_CLOEXEC);

	set_attribute("failslab", "probability", "0");
	if (fd < 0 || read(fd, times, sizeof(times) - 1) <= 0)
		die("failslab: %s", strerror(errno));
	close(fd);
	set_attribute("failslab", "require-start", "0");
	set_attribute("failslab", "require-end", "0xffffffffffffffff");
	return !atoi(times);
}

/* One try. */

/* 0: what the disk had, -1: one that was given before, n: the n-th since. */
static long long relative(uint64_t number, uint64_t own, uint64_t counter)
{
	return number == own ? 0 : number < counter ? -1 : (long long)(number - counter);
}

static void collect(struct outcome *o, uint64_t own, uint64_t counter)
{
	struct uevent ev;
	int got;

	while ((got = monitor_next_lossy(&mon, &ev))) {
		struct event *e = &o->event[o->events];

		if (got < 0) {
			o->lost++;
			continue;
		}
		if (o->events == MAX_EVENTS)
			die("%s: more events than expected", disk);
		o->events++;
		e->part = ev.partno;
		e->media = ev.media_change;
		e->add = !strcmp(ev.action, "add");
		snprintf(e->text, sizeof(e->text), "%s %s %+lld%s%s%s", ev.action,
			 ev.partno ? ev.device + strlen(ev.disk) : "disk",
			 relative(ev.diskseq, own, counter),
			 ev.media_change ? " media" : ev.resize ? " resize" : "",
			 ev.eject ? " eject" : "", ev.ro ? " ro" : "");
	}
}

static void read_size(char *size, size_t len)
{
	char path[64];
	FILE *file;

	size[0] = '\0';
	snprintf(path, sizeof(path), "/sys/block/%s/size", disk);
	file = fopen(path, "re");
	if (file) {
		if (fgets(size, len, file))
			size[strcspn(size, "\n")] = '\0';
		fclose(file);
	}
}

/* Rule 5. The disk may be closed to others, or just be gone. */
static void compare_readings(uint64_t number)
{
	char path[32];
	uint64_t read = 0;
	int fd;

	if (diskseq_uevent_file(disk) != number)
		found("sysfs says %llu, its uevent file %llu", (unsigned long long)number,
		      (unsigned long long)diskseq_uevent_file(disk));
	if (op->flags & NO_LOOK)
		return;
	snprintf(path, sizeof(path), "/dev/%s", disk);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return;
	if (!ioctl(fd, BLKGETDISKSEQ, &read) && read != number)
		found("sysfs says %llu, BLKGETDISKSEQ %llu", (unsigned long long)number,
		      (unsigned long long)read);
	close(fd);
}

/* Let the operation be done, with failure @nth or none. Returns whether it was hit. */
static bool try(unsigned int nth, struct outcome *o, struct outcome *was)
{
	uint64_t own = 0, counter, number = 0;
	struct outcome drop = { };
	bool fired = false;
	int sysfs = -1;

	memset(o, 0, sizeof(*o));
	memset(was, 0, sizeof(*was));
	phase("make ready");
	if (op->ready)
		op->ready();
	was->there = disk_exists(disk);
	if (was->there) {
		was->parts = disk_count_parts(disk);
		read_size(was->size, sizeof(was->size));
		sysfs = diskseq_open_sysfs(disk);
		own = diskseq_read(sysfs);
	}
	counter = next_number();
	collect(&drop, own, counter);
	kmsg_read(false);

	phase("act");
	now_failing = nth;
	progress->fired_in_other = false;
	if (nth && (op->flags & BY_WORKER))
		arm_worker(nth);
	else if (nth && !(op->flags & ARMS_ITSELF))
		arm(nth);
	o->err = op->act();
	if (nth && !(op->flags & (ARMS_ITSELF | BY_WORKER)))
		fired = disarm();
	phase("settle");
	if (op->settle)
		op->settle();
	if (nth && (op->flags & BY_WORKER))
		fired = disarm_worker();
	if (nth && (op->flags & ARMS_ITSELF))
		fired = progress->fired_in_other;
	now_failing = 0;

	phase("look");
	kmsg_read(nth);
	if (sysfs >= 0) {
		o->woken = diskseq_wait(sysfs, 0);
		close(sysfs);
	}
	o->spent = next_number() - counter - 1;
	o->there = disk_exists(disk);
	if (o->there) {
		number = diskseq_sysfs(disk);
		o->parts = disk_count_parts(disk);
		read_size(o->size, sizeof(o->size));
	}
	o->number = o->there ? relative(number, own, counter) : 0;
	collect(o, own, counter);
	if (o->there)
		compare_readings(number);
	return fired;
}

static void show(const char *what, const struct outcome *o)
{
	int i;

	if (progress->found > MAX_FOUND || (op->known && in_stack(op->known_in)))
		return;
	fprintf(stderr,
		"#     %s: %s; %s, number %+lld, %lld taken, %d partitions, size %s, %s", what,
		o->err == NO_ANSWER ? "no answer" : o->err ? strerror(o->err) : "done",
		o->there ? "there" : "not there", o->number, o->spent, o->parts, o->size,
		o->woken ? "woken" : "not woken");
	for (i = 0; i < o->events; i++)
		fprintf(stderr, "%s%s", i ? ", " : "; ", o->event[i].text);
	fprintf(stderr, "%s\n", o->lost ? "; events lost" : "");
}

static bool same(const struct outcome *a, const struct outcome *b)
{
	int i;

	if (a->err != b->err || a->there != b->there || a->number != b->number ||
	    a->spent != b->spent || a->parts != b->parts || strcmp(a->size, b->size) ||
	    a->woken != b->woken || a->events != b->events)
		return false;
	for (i = 0; i < a->events; i++)
		if (strcmp(a->event[i].text, b->event[i].text))
			return false;
	return true;
}

/* Nothing has happened (rule 12). */
static bool judge_refused(const struct outcome *o, const struct outcome *was)
{
	long long spent = op->flags & MAKES_DISK ? 1 : 0;
	/* it was there for a moment: md and dm make what else they need after the disk */
	bool made = (op->flags & MAKES_DISK) && o->events == 2 &&
		    !strncmp(o->event[0].text, "add ", 4) &&
		    !strncmp(o->event[1].text, "remove ", 7) &&
		    !strcmp(o->event[0].text + 4, o->event[1].text + 7);

	if (o->there == was->there && !o->number && o->spent >= 0 && o->spent <= spent &&
	    o->parts == was->parts && !strcmp(o->size, was->size) && !o->woken &&
	    (!o->events || made))
		return true;
	found("it was refused, but not without a trace");
	show("before", was);
	show("after", o);
	return false;
}

/* As without a failure, but for what the top of this file says. */
static bool judge_done(const struct outcome *o, const struct outcome *good)
{
	bool uevent = in_stack("kobject_uevent_env");
	bool scan = in_stack("bdev_disk_changed") || in_stack("bdev_add_partition");
	int i, at = 0, missing = 0, missing_media = 0, allowed = uevent ? 1 : 0;
	const char *why = NULL;

	/* of a partition that could not be added, and of a scan that could not be done */
	if (scan)
		allowed += good->parts - o->parts;
	if (scan && !o->parts)
		allowed++;

	for (i = 0; i < good->events; i++) {
		if (at < o->events && !strcmp(good->event[i].text, o->event[at].text))
			at++;
		else if (good->event[i].media)
			missing_media++;
		else
			missing++;
	}
	missing += missing_media;
	if (o->there != good->there || o->number != good->number || o->spent != good->spent ||
	    strcmp(o->size, good->size))
		why = "it was done, but not the number or the size is as it should be";
	else if (o->woken != good->woken)
		why = "who polls the number was not woken";
	else if (at != o->events)
		why = "it was done, with other events";
	else if (o->parts > good->parts || (o->parts < good->parts && !scan))
		why = "it was done, but has other partitions";
	else if ((missing > allowed || (missing_media && !uevent)) && !o->lost)
		why = "it was done, but events are missing";
	if (!why)
		return true;
	found("%s", why);
	show("without a failure", good);
	show("with it", o);
	return false;
}

/* It failed after it had noticed the new medium, which is announced once. */
static void judge_noticed(const struct outcome *o, const struct outcome *good)
{
	struct outcome next, was;
	int media = 0, i;

	for (i = 0; i < o->events; i++)
		media += o->event[i].media;
	try(0, &next, &was);
	if (o->number == good->number && o->spent == good->spent && o->woken &&
	    (media == 1 || in_stack("kobject_uevent_env")) && next.err == good->err &&
	    !next.number && !next.events && !next.spent && !strcmp(next.size, good->size))
		return;
	found("it was refused, and the medium is not announced once");
	show("without a failure", good);
	show("with it", o);
	show("then", &next);
}

/* What the rest of its table says. */
static void judge_good(const struct outcome *o)
{
	int i, media = 0;

	for (i = 0; i < o->events; i++)
		media += o->event[i].media;
	if (o->err != op->err || o->spent != op->taken ||
	    (!(op->flags & MAKES_DISK) && (media != op->taken || o->woken < !!op->taken))) {
		found("without a failure it is not as expected: %s, %d numbers",
		      op->err ? strerror(op->err) : "done", op->taken);
		show("it is", o);
	}
}

/* What a scan has missed. */
static void must_be_found(const struct outcome *good)
{
	char path[32];
	int fd, err, parts;

	/* who cannot send to a server has lost it */
	if (in_stack("__sock_xmit"))
		return;
	snprintf(path, sizeof(path), "/dev/%s", disk);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	err = called(ioctl(fd, BLKRRPART));
	close(fd);
	parts = disk_count_parts(disk);
	if (err || parts != good->parts)
		found("a scan finds %d of %d partitions: %s", parts, good->parts, strerror(err));
}

static void must_be_good(const struct outcome *good, const char *when)
{
	struct outcome o, was;

	try(0, &o, &was);
	if (same(&o, good))
		return;
	found("%s it is not as on a fresh disk", when);
	show("fresh", good);
	show(when, &o);
}

static void once(unsigned int nth, struct outcome *o, struct outcome *was, bool *fired)
{
	phase("prepare");
	if (op->prepare)
		op->prepare();
	*fired = try(nth, o, was);
}

static void restore(void)
{
	phase("restore");
	if (op->restore)
		op->restore();
}

static void work(void)
{
	const char *first = getenv("DISKSEQ_FIRST");
	struct outcome good, again, o, was;
	unsigned int nth;
	bool fired, refused, silent;

	phase("set up");
	op->set_up();
	/* what is allocated only once has been then */
	once(0, &again, &was, &fired);
	restore();
	once(0, &good, &was, &fired);
	restore();
	judge_good(&good);
	if (!same(&good, &again)) {
		found("it is not twice the same, without a failure");
		show("first", &again);
		show("then", &good);
	}
	for (nth = first ? atoi(first) : 1; ; nth++) {
		progress->nth = nth;
		if (nth > MAX_FAILURES)
			die("%s: no end of failures", op->name);
		once(nth, &o, &was, &fired);
		if (!fired)
			break;
		progress->points++;
		silent = !o.number && !o.events && !o.spent;
		refused = o.err != good.err && !(o.err == NO_ANSWER && !silent);
		if (getenv("DISKSEQ_VERBOSE")) {
			fprintf(stderr, "# %u: %s: %s\n", nth, where(), strerror(o.err));
			show("", &o);
		}
		if (refused && !silent && (op->flags & MEDIUM_CAME)) {
			progress->refused++;
			judge_noticed(&o, &good);
			restore();
			continue;
		}
		if (refused || ((op->flags & BY_WORKER) && silent)) {
			progress->refused++;
			judge_refused(&o, &was);
			must_be_good(&good, "after it was refused");
			restore();
			continue;
		}
		progress->absorbed++;
		judge_done(&o, &good);
		if (o.there && o.parts < good.parts)
			must_be_found(&good);
		restore();
		once(0, &again, &was, &fired);
		if (!same(&again, &good)) {
			found("the next one is not as on a fresh disk");
			show("fresh", &good);
			show("next", &again);
		}
		restore();
	}
	if (!same(&o, &good)) {
		found("without a failure, after the others, it is not as on a fresh disk");
		show("fresh", &good);
		show("last", &o);
	}
	restore();
	phase("tear down");
	if (op->tear_down)
		op->tear_down();
}

/* The process that watches. */

static int results;

static int result(bool good, const char *name)
{
	printf("%sok %d %s\n", good ? "" : "not ", ++results, name);
	return !good;
}

static int run(int done, int count)
{
	int64_t told = now_ms(), begun = told;
	bool hangs = false;
	pid_t pid;
	int status = 0;

	memset(progress, 0, sizeof(*progress));
	phase("begin");
	fprintf(stderr, "# %d of %d operations, %s\n", done, count, op->name);
	pid = spawn();
	if (!pid) {
		setpgid(0, 0);
		nth_fd = -1;
		work();
		_exit(0);
	}
	while (waitpid(pid, &status, WNOHANG) != pid) {
		poll(NULL, 0, 20);
		if (now_ms() - told > 10000) {
			told = now_ms();
			fprintf(stderr, "# %d of %d operations, %s, failure %u\n", done, count,
				op->name, progress->nth);
		}
		if (now_ms() - __atomic_load_n(&progress->beat, __ATOMIC_SEQ_CST) <= limit_ms())
			continue;
		if (hangs)
			break;
		hangs = true;
		kmsg_read(false);
		found("hangs, in: %s", progress->phase);
		tell_where(pid);
		phase(progress->phase);
		kill(-pid, SIGKILL);
	}
	/* what it has left behind, a server or a client */
	kill(-pid, SIGKILL);
	if (progress->skipped) {
		printf("ok %d %s # SKIP %s\n", ++results, op->name, progress->why);
		return 0;
	}
	if (!hangs && status) {
		kmsg_read(false);
		found("did not end, in: %s (status %x)", progress->phase, status);
	}
	if (progress->found > MAX_FOUND)
		fprintf(stderr, "# %u findings more\n", progress->found - MAX_FOUND);
	fprintf(stderr, "# %s: %u failures, %u refused, %u absorbed, %lld s\n", op->name,
		progress->points, progress->refused, progress->absorbed,
		(long long)(now_ms() - begun) / 1000);
	if (op->known && !progress->known) {
		fprintf(stderr, "# BROKEN %s: what is known of it was not found\n", op->name);
		progress->found++;
	}
	return result(!progress->found && progress->points, op->name);
}

static const struct operation * const all[] = {
	loop_operations, nbd_operations, zram_operations, stack_operations, drive_operations,
};

static const struct operation *wanted[MAX_OPERATIONS];

/* Those that the pattern in the environment means. */
static int choose(void)
{
	const char *only = getenv("DISKSEQ_ONLY");
	const struct operation *o;
	int i, count = 0;

	for (i = 0; i < (int)(sizeof(all) / sizeof(*all)); i++) {
		for (o = all[i]; o->name; o++) {
			if (only && fnmatch(only, o->name, FNM_EXTMATCH))
				continue;
			if (count == MAX_OPERATIONS)
				die("more operations than expected");
			wanted[count++] = o;
		}
	}
	return count;
}

/* What is lost. */

static long slab_kb(void)
{
	char line[128];
	long kb = -1;
	FILE *file;
	int i;

	for (i = 0; i < 3; i++) {
		sync();
		file_write("/proc/sys/vm/drop_caches", "3");
		poll(NULL, 0, 500);
	}
	file = fopen("/proc/meminfo", "re");
	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, "Slab:", 5))
			kb = atol(line + 5);
	if (file)
		fclose(file);
	return kb;
}

static int report_leaks(void)
{
	char line[256];
	int leaks = 0, scan;
	FILE *file;

	/* twice: what is moved while it is looked at is seen the second time */
	for (scan = 0; scan < 2; scan++) {
		poll(NULL, 0, KMEMLEAK_AGE_MS);
		must(file_write(DEBUGFS "/kmemleak", "scan"), "kmemleak");
	}
	file = fopen(DEBUGFS "/kmemleak", "re");
	while (file && fgets(line, sizeof(line), file)) {
		leaks += !strncmp(line, "unreferenced", 12);
		if (leaks <= 20)
			fprintf(stderr, "#     %s", line);
	}
	if (!file)
		die("kmemleak: %s", strerror(errno));
	fclose(file);
	if (leaks)
		fprintf(stderr, "# BROKEN: %d objects are lost\n", leaks);
	return result(!leaks, "nothing_leaks");
}

static int report_disks(char *before)
{
	static char now[4096];
	struct dirent *entry;
	DIR *dir = opendir("/sys/block");
	size_t len = 0;

	while ((entry = readdir(dir)))
		len += snprintf(now + len, sizeof(now) - len, "%s ", entry->d_name);
	closedir(dir);
	if (!*before) {
		strcpy(before, now);
		return 0;
	}
	if (strcmp(before, now))
		fprintf(stderr, "# BROKEN: disks before: %s\n#     after: %s\n", before, now);
	return result(!strcmp(before, now), "all_disks_can_be_removed");
}

static int round_of_all(int count)
{
	int done, failed = 0;

	for (done = 0; done < count; done++) {
		op = wanted[done];
		failed |= run(done, count);
	}
	return failed;
}

int main(void)
{
	static char disks[4096];
	int count = choose(), failed = 0;
	bool twice = !getenv("DISKSEQ_ONCE");
	long before, after;

	printf("1..%d\n", (twice ? 2 : 1) * count + (twice ? 3 : 2));
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (mount("debugfs", DEBUGFS, "debugfs", 0, NULL) && errno != EBUSY)
		die(DEBUGFS ": %s", strerror(errno));
	/* complaints are read from the log, with the operation that they are about */
	file_write("/proc/sys/kernel/panic_on_warn", "0");
	file_write("/proc/sys/kernel/hung_task_panic", "0");
	file_write("/proc/sys/kernel/tainted", TAINT_WARN);
	file_write("/proc/sys/kernel/printk", "3 4 1 4");
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg < 0)
		die("/dev/kmsg: %s", strerror(errno));
	set_attributes();
	progress = shared_memory(sizeof(*progress));
	fault = &progress->fault;
	report_disks(disks);
	/* what was lost before */
	must(file_write(DEBUGFS "/kmemleak", "scan"), "kmemleak");
	must(file_write(DEBUGFS "/kmemleak", "clear"), "kmemleak");
	failed |= round_of_all(count);
	if (twice) {
		before = slab_kb();
		failed |= round_of_all(count);
		after = slab_kb();
		fprintf(stderr, "# slab: %ld kB before, %ld after a second round\n", before, after);
		failed |= result(after - before <= SLAB_KB, "slab_does_not_grow");
	}
	failed |= report_leaks();
	failed |= report_disks(disks);
	return failed;
}
