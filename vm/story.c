// SPDX-License-Identifier: GPL-2.0
/*
 * What the disk sequence number is good for, played on /dev/loop0: our program
 * attaches an image and waits for its partition, while other processes take,
 * release and retake the same device. Prints the uevents as our program reads
 * them, whose use of the device each of them is about, and what was done to the
 * device at that time.
 *
 * One scene on a kernel without the number, three on one that has it. Ends with
 * status 1 if the number told our program anything wrong.
 */
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diskseq.h"

#define NAME		"loop0"
#define DISK		"/dev/" NAME
#define SYSFS		"/sys/block/" NAME
#define BUSY		25	/* how often others come and go when events get lost */
#define EVENTS		4096
#define DEEDS		16
#define MEDIA		64	/* no scene whose media are counted has so many */
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/*
 * The recorder reads all events at once and loses none. It is not part of our
 * program: it only tells when an event was raised and how many were lost.
 */
static struct monitor recorder;
static struct {
	uint64_t seqnum;
	int64_t ms;
} record[EVENTS];
static size_t recorded;
static int64_t start;

/* What is done to the device, by whom and when: shared by all processes, of which one runs at a time. */
static struct {
	size_t done, told;
	struct {
		int64_t ms;
		const char *who, *what;
	} deed[DEEDS];
} *deeds;
static const char *who = "our program";	/* NULL: do not tell */

static bool all_right = true;

static void note_deed(const char *what)
{
	size_t i;

	if (!who)
		return;
	/* the recorder has read by then what the deed before has raised */
	poll(NULL, 0, 20);
	i = deeds->done++;
	if (i == DEEDS)
		die("more than %d deeds", DEEDS);
	deeds->deed[i].ms = now_ms() - start;
	deeds->deed[i].who = who;
	deeds->deed[i].what = what;
}

/* Tell what was done up to that time. */
static void tell_deeds(int64_t ms)
{
	for (; deeds->told < deeds->done && deeds->deed[deeds->told].ms <= ms; deeds->told++)
		printf("  %3lld.%03lld  > %s %s\n", (long long)deeds->deed[deeds->told].ms / 1000,
		       (long long)deeds->deed[deeds->told].ms % 1000,
		       deeds->deed[deeds->told].who, deeds->deed[deeds->told].what);
}

static void note_events(void)
{
	struct uevent ev;

	while (recorded < EVENTS && monitor_next(&recorder, &ev, 0)) {
		record[recorded].seqnum = ev.seqnum;
		record[recorded++].ms = now_ms() - start;
	}
}

/* Let another process do @act, and note what is raised meanwhile. */
static void elsewhere(void (*act)(void))
{
	struct pollfd pfd[2] = { { .fd = recorder.fd, .events = POLLIN } };
	int end[2], status;
	pid_t pid;

	if (pipe(end))
		die("pipe: %s", strerror(errno));
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid) {
		close(end[0]);
		who = "another program";
		act();
		_exit(0);
	}
	close(end[1]);
	pfd[1].fd = end[0];
	do {
		poll(pfd, 2, -1);
		note_events();
	} while (!pfd[1].revents);
	close(end[0]);
	if (waitpid(pid, &status, 0) != pid || status)
		die("another process could not do its part");
}

static struct loop open_disk(void)
{
	struct loop lo = { .fd = open(DISK, O_RDWR | O_CLOEXEC), .path = DISK };

	if (lo.fd < 0)
		die("%s: %s", DISK, strerror(errno));
	return lo;
}

static void attach_partitions(const struct loop *lo, int count)
{
	int image = image_create('i', 1);

	image_table(image, 0, TABLE_GPT, count, "part");
	note_deed("attaches");
	loop_attach(lo, image, LO_FLAGS_PARTSCAN);
	close(image);
}

static void take(void)
{
	struct loop lo = open_disk();

	attach_partitions(&lo, 2);
	close(lo.fd);
}

static void release(void)
{
	struct loop lo = open_disk();

	note_deed("detaches");
	if (ioctl(lo.fd, LOOP_CLR_FD))
		die("detach %s: %s", DISK, strerror(errno));
	close(lo.fd);
}

static void take_and_release(void)
{
	take();
	release();
}

static void take_and_release_often(void)
{
	int i;

	who = NULL;
	for (i = 0; i < BUSY; i++)
		take_and_release();
}

/* The device is free again for the next scene, which does not tell that. */
static void clear_up(void)
{
	elsewhere(release);
	deeds->told = deeds->done;
}

static void retake(void)
{
	release();
	take();
}

static void retake_often(void)
{
	int i;

	who = NULL;
	for (i = 0; i < BUSY; i++)
		retake();
}

static void head(const char *text, uint64_t ours)
{
	printf("%s", text);
	if (ours)
		printf("  The number of our use: %llu\n", (unsigned long long)ours);
	printf("\n     time  event   device    medium  number  whose use\n");
}

static void line(const struct uevent *ev, const char *whose, const char *note)
{
	char number[24] = "-";
	int64_t ms = -1;
	size_t i;

	for (i = 0; i < recorded; i++)
		if (record[i].seqnum == ev->seqnum)
			ms = record[i].ms;
	if (ev->diskseq)
		snprintf(number, sizeof(number), "%llu", (unsigned long long)ev->diskseq);
	tell_deeds(ms);
	printf("  %3lld.%03lld  %-6s  %-8s  %-6s  %6s  %s%s%s\n", (long long)ms / 1000,
	       (long long)ms % 1000, ev->action, ev->device,
	       ev->media_change ? "new" : "", number, whose,
	       *note ? "  <- " : "", note);
}

static void remark(const char *fmt, ...)
	__attribute__((format(printf, 1, 2)));

static void remark(const char *fmt, ...)
{
	va_list ap;

	printf("    -----  ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

static const char *whose_use(const struct uevent *ev, uint64_t ours)
{
	if (ev->diskseq < ours)
		return "earlier";
	return ev->diskseq > ours ? "later" : "ours";
}

static bool is_partition(const struct uevent *ev, const char *action)
{
	return !strcmp(ev->action, action) && !strcmp(ev->device, "loop0p1");
}

/* The kernel as it is: by the names, any of the events could be ours. */
static void without_number(void)
{
	struct monitor program;
	size_t before;
	struct uevent ev;
	struct loop lo;
	const char *note;
	int taken = 0;

	monitor_open(&program, NAME);
	elsewhere(take_and_release);
	before = recorded;
	lo = open_disk();
	attach_partitions(&lo, 1);
	close(lo.fd);
	note_events();
	elsewhere(retake);

	head("  Another program attaches its image to loop0 and detaches it. Our program attaches\n"
	     "  an image with one partition and waits for loop0p1. Then others take the device.\n"
	     "  This is what our program reads from the uevent socket:\n", 0);
	while (monitor_next(&program, &ev, 0)) {
		note = "";
		if (is_partition(&ev, "add") && !taken++ &&
		    (!before || ev.seqnum <= record[before - 1].seqnum))
			note = "the name we wait for: but it is another program's, and gone";
		line(&ev, "unknown", note);
	}
	tell_deeds(INT64_MAX);
	printf("\n  By the names, loop0p1 was added %d times. Nothing says which of them is ours.\n",
	       taken);
	clear_up();
	monitor_close(&program);
}

/*
 * What is wrong with the number of an event, by what was read before: that of a
 * new medium is greater, and a partition keeps the one that it was added with.
 */
static const char *wrong_number(const struct uevent *ev)
{
	static uint64_t disk, added[8];
	static char text[64];
	uint64_t before = disk;

	if (ev->partno <= 0) {
		disk = ev->diskseq;
		return ev->media_change && ev->diskseq <= before ?
			"wrong: it says new, with the number of the old one" : NULL;
	}
	if (ev->partno >= (int)ARRAY_SIZE(added))
		return NULL;
	if (!strcmp(ev->action, "add"))
		added[ev->partno] = ev->diskseq;
	if (ev->diskseq == added[ev->partno])
		return NULL;
	snprintf(text, sizeof(text), "wrong: it was added with %llu",
		 (unsigned long long)added[ev->partno]);
	return text;
}

/* Say which of the numbers that loop0 had since the first one no event has announced. */
static void tell_silent(const bool *announced, uint64_t first)
{
	uint64_t i, now = diskseq_sysfs(NAME);
	const char *separator = "  No event announced the media";

	for (i = 0; first + i <= now && i < MEDIA; i++) {
		if (announced[i])
			continue;
		printf("%s %llu", separator, (unsigned long long)(first + i));
		separator = ",";
		all_right = false;
	}
	if (*separator == ',')
		printf(".\n");
}

/* The same with the number. */
static void with_number(void)
{
	bool announced[MEDIA] = {};
	struct monitor program;
	size_t first, last, i;
	bool found = false, over = false;
	const char *whose, *truth, *note, *wrong;
	struct uevent ev;
	struct loop lo;
	uint64_t ours, others = 0;
	int ignored = 0;

	monitor_open(&program, NAME);
	elsewhere(take_and_release);
	first = recorded;
	lo = open_disk();
	attach_partitions(&lo, 1);
	ours = diskseq(lo.fd);
	close(lo.fd);
	note_events();
	last = recorded;
	elsewhere(retake);

	head("  Another program attaches its image to loop0 and detaches it. Our program attaches\n"
	     "  an image with one partition and reads the number of its use from the same file\n"
	     "  descriptor. It waits for loop0p1. Then others take the device.\n", ours);
	for (i = 0; monitor_next(&program, &ev, 0); i++) {
		if (!i)
			others = ev.diskseq;
		whose = whose_use(&ev, ours);
		note = "";
		if (!strcmp(whose, "earlier") && !ignored++)
			note = "less than ours: ignore it";
		if (is_partition(&ev, "add") && !strcmp(whose, "ours")) {
			found = true;
			note = "our partition is here";
		}
		if (!strcmp(whose, "later") && !over) {
			over = true;
			note = "more than ours: our use is over, stop waiting";
		}

		/* what others raised after ours was attached is ours until it is replaced */
		truth = i < first ? "earlier" : i < last ? "ours" : whose;
		wrong = wrong_number(&ev);
		if (!wrong && (strcmp(whose, truth) || (i >= last && !strcmp(whose, "earlier"))))
			wrong = "wrong: it is about another use";
		line(&ev, whose, wrong ?: note);
		if (wrong)
			all_right = false;
		else if (ev.media_change && ev.diskseq - others < MEDIA)
			announced[ev.diskseq - others] = true;
	}
	tell_deeds(INT64_MAX);
	if (!found || !over)
		all_right = false;
	printf("\n  Our program ignored %d events of an earlier use, found its partition, and knew\n"
	       "  when its use was over.\n", ignored);
	tell_silent(announced, others);
	clear_up();
	monitor_close(&program);
}

/* Nobody takes the device afterwards, and no partition leaves: one event is all there is to go by. */
static void with_number_and_an_end(void)
{
	struct monitor program;
	const char *wrong;
	bool over = false;
	struct uevent ev;
	struct loop lo;
	uint64_t ours;

	monitor_open(&program, NAME);
	lo = open_disk();
	attach_partitions(&lo, 0);
	ours = diskseq(lo.fd);
	close(lo.fd);
	note_events();
	elsewhere(release);

	head("  Our program attaches an image without partitions and waits for the end of its use.\n"
	     "  Another program detaches it, and nobody takes the device.\n", ours);
	while (monitor_next(&program, &ev, over ? 0 : limit_ms())) {
		over = ev.diskseq > ours;
		wrong = wrong_number(&ev);
		line(&ev, whose_use(&ev, ours),
		     wrong ?: over ? "our use is over, stop waiting" : "");
		if (wrong)
			all_right = false;
	}
	tell_deeds(INT64_MAX);
	if (!over) {
		remark("nothing more within %d s; sysfs says %llu: our use is over. An event that",
		       limit_ms() / 1000, (unsigned long long)diskseq_sysfs(NAME));
		remark("says so never comes: who waits for it hangs, and udev keeps its links");
		all_right = false;
	}
	monitor_close(&program);
}

/* The number that the first partition has, 0 if there is no such partition. */
static uint64_t partition_diskseq(void)
{
	char line[128];
	uint64_t number = 0;
	FILE *f = fopen(SYSFS "/loop0p1/uevent", "re");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "DISKSEQ=", 8))
			number = strtoull(line + 8, NULL, 10);
	if (f)
		fclose(f);
	return number;
}

/* Read what has got through to a socket that is too small, and count what has not. */
static int read_lossy(struct monitor *program, uint64_t ours, size_t raised,
		      bool *lost)
{
	int status, count = 0;
	struct uevent ev;

	*lost = false;
	while ((status = monitor_next_lossy(program, &ev))) {
		if (status < 0) {
			*lost = true;
			continue;
		}
		line(&ev, whose_use(&ev, ours), "");
		count++;
	}
	tell_deeds(INT64_MAX);
	remark("%zu of %zu events lost%s", raised - count, raised,
	       *lost ? ", the socket says so (ENOBUFS)" : "");
	return count;
}

/* And once more with a socket that is far too small. */
static void with_number_and_losses(void)
{
	int smallest = 1;
	int sysfs = open(SYSFS "/diskseq", O_RDONLY | O_CLOEXEC);
	struct pollfd pfd = { .fd = sysfs, .events = POLLPRI };
	struct monitor program;
	uint64_t ours, now;
	size_t before;
	struct loop lo;
	bool lost, woken;

	monitor_open(&program, NAME);
	if (setsockopt(program.fd, SOL_SOCKET, SO_RCVBUF, &smallest, sizeof(smallest)))
		die("uevent socket: %s", strerror(errno));
	before = recorded;
	elsewhere(take_and_release_often);
	lo = open_disk();
	attach_partitions(&lo, 1);
	ours = diskseq(lo.fd);
	close(lo.fd);
	note_events();

	head("  Once more, with a tiny socket buffer and others that are busy: most events get lost.\n",
	     ours);
	read_lossy(&program, ours, recorded - before, &lost);
	now = diskseq_read(sysfs);
	remark("sysfs says %llu: still ours. loop0p1 has %llu: our partition is here",
	       (unsigned long long)now, (unsigned long long)partition_diskseq());
	if (!lost || now != ours || partition_diskseq() != ours)
		all_right = false;

	before = recorded;
	elsewhere(retake_often);
	woken = poll(&pfd, 1, limit_ms()) == 1 && (pfd.revents & POLLPRI);
	now = diskseq_read(sysfs);
	remark("poll() on the sysfs file %s: it says %llu now",
	       woken ? "returns" : "never returns, which is wrong", (unsigned long long)now);
	if (!woken)
		all_right = false;
	remark("more than ours: our use is over, stop waiting");
	read_lossy(&program, ours, recorded - before, &lost);
	if (now <= ours)
		all_right = false;

	printf("\n  Whether an event was lost did not matter.\n");
	clear_up();
	close(sysfs);
	monitor_close(&program);
}

int main(void)
{
	struct utsname name;

	setvbuf(stdout, NULL, _IOLBF, 0);
	uname(&name);
	start = now_ms();
	deeds = mmap(NULL, sizeof(*deeds), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (deeds == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	monitor_open(&recorder, NAME);

	printf("\nLinux %s, %s the number\n\n", name.release,
	       diskseq_missing() ? "without" : "with");
	if (diskseq_missing()) {
		without_number();
		return 0;
	}
	with_number();
	printf("\n");
	with_number_and_an_end();
	printf("\n");
	with_number_and_losses();
	if (!all_right)
		printf("\n  The number told our program something wrong: this kernel breaks its promise.\n");
	return !all_right;
}
