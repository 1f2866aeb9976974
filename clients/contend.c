// SPDX-License-Identifier: GPL-2.0
/*
 * Several processes attach images to loop devices that they share, and each waits
 * for the partition of its own image, in one of three ways:
 *
 *   name	the first event of udev's with the partition's name
 *   settle	"udevadm settle", then the partition with that name
 *   number	the event of udev's with that name and the number of its own use
 *
 * Each image's partition has a name in its table that no other has (PARTNAME in
 * the events), by which this program, and not the way, tells whose it is.
 *
 * Prints a line for each wait: what it took for its own partition (own: that it was,
 * another: that of another process, none), and for how many ms it waited. The last line
 * has the totals.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diskseq.h"

#define PATIENCE_MS	10000
#define SAMPLES		4096	/* of a process */

enum way { NAME, SETTLE, NUMBER };

enum taken { OWN, ANOTHER, NONE, TAKEN };

static struct tally {
	int waits;
	int ignored;		/* events of other uses, with that name */
	struct {
		enum taken taken;
		int ms;
	} wait[SAMPLES];
} *tally;			/* shared, one a process */

/* Whose partition has that name now? */
static enum taken look(const char *device, const char *partname)
{
	char path[64], line[256];
	enum taken taken = NONE;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/class/block/%s/uevent", device);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		if (taken == NONE)
			taken = ANOTHER;
		if (!strncmp(line, "PARTNAME=", 9) && !strcmp(line + 9, partname))
			taken = OWN;
	}
	if (f)
		fclose(f);
	return taken;
}

static enum taken wait_for_event(struct tally *t, struct monitor *mon, const char *device,
				 const char *partname, uint64_t number)
{
	int64_t end = now_ms() + PATIENCE_MS;
	struct uevent ev;

	while (monitor_next(mon, &ev, end - now_ms())) {
		if (strcmp(ev.device, device) || strcmp(ev.action, "add"))
			continue;
		if (number && ev.diskseq < number) {
			t->ignored++;
			continue;
		}
		if (number && ev.diskseq > number)
			break;
		return strcmp(ev.partname, partname) ? ANOTHER : OWN;
	}
	return NONE;
}

static enum taken settle(const char *device, const char *partname)
{
	char command[64];

	snprintf(command, sizeof(command), "exec udevadm settle --timeout=%d", PATIENCE_MS / 1000);
	return system(command) ? NONE : look(device, partname);
}

static void use(struct tally *t, enum way way, const char *disk, int process)
{
	char path[64], device[32], prefix[16], partname[40];
	struct loop_config config = { .info.lo_flags = LO_FLAGS_PARTSCAN };
	struct monitor mon = { .fd = -1 };
	enum taken taken;
	int64_t start;
	int fd;

	/* not by an open for writing, since udev answers its close by an event */
	snprintf(path, sizeof(path), "/sys/block/%s/loop", disk);
	if (t->waits == SAMPLES || !access(path, F_OK)) {
		poll(NULL, 0, 20 + rand() % 80);
		return;
	}
	snprintf(path, sizeof(path), "/dev/%s", disk);
	snprintf(device, sizeof(device), "%sp1", disk);
	snprintf(prefix, sizeof(prefix), "%d-%d-", process, t->waits);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	config.fd = image_create('a', 1);
	image_table(config.fd, 0, TABLE_GPT, 1, prefix);
	snprintf(partname, sizeof(partname), "%s1", prefix);
	/* before it attaches, since it would miss the event otherwise */
	if (way != SETTLE)
		monitor_open_udev(&mon, disk);
	if (ioctl(fd, LOOP_CONFIGURE, &config)) {
		if (errno != EBUSY)
			die("%s: LOOP_CONFIGURE: %s", path, strerror(errno));
	} else {
		start = now_ms();
		if (way == SETTLE)
			taken = settle(device, partname);
		else
			taken = wait_for_event(t, &mon, device, partname,
					       way == NUMBER ? diskseq(fd) : 0);
		t->wait[t->waits].taken = taken;
		t->wait[t->waits++].ms = now_ms() - start;
		if (ioctl(fd, LOOP_CLR_FD))
			die("%s: LOOP_CLR_FD: %s", path, strerror(errno));
	}
	monitor_close(&mon);
	close(config.fd);
	close(fd);
}

static int by_time(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

int main(int argc, char **argv)
{
	static const char * const ways[] = { "name", "settle", "number" };
	static const char * const what[] = { "own", "another", "none" };
	int processes, i, j, waits = 0, ignored = 0, failed = 0;
	int count[TAKEN] = { };
	pid_t pids[64];
	int64_t end;
	enum way way = NAME;
	int *times;

	if (argc < 5) {
		fprintf(stderr, "usage: contend name|settle|number SECONDS PROCESSES DISK...\n");
		return 2;
	}
	while (strcmp(argv[1], ways[way]))
		if (++way > NUMBER)
			die("no way: %s", argv[1]);
	end = now_ms() + 1000LL * atoi(argv[2]);
	processes = atoi(argv[3]);
	if (processes > 64)
		die("at most 64 processes");
	tally = shared_memory(sizeof(*tally) * processes);
	for (i = 0; i < processes; i++) {
		pids[i] = spawn();
		if (!pids[i]) {
			srand(i);
			while (now_ms() < end)
				use(&tally[i], way, argv[4 + rand() % (argc - 4)], i);
			_exit(0);
		}
	}
	times = calloc(processes, sizeof(*times) * SAMPLES);
	if (!times)
		die("no memory");
	for (i = 0; i < processes; i++) {
		failed |= child_status(pids[i]);
		ignored += tally[i].ignored;
		for (j = 0; j < tally[i].waits; j++) {
			printf("%s %s %d\n", argv[1], what[tally[i].wait[j].taken], tally[i].wait[j].ms);
			count[tally[i].wait[j].taken]++;
			times[waits++] = tally[i].wait[j].ms;
		}
	}
	qsort(times, waits, sizeof(*times), by_time);
	printf("attached %d wrong %d none %d ignored %d median_ms %d longest_ms %d\n",
	       waits, count[ANOTHER], count[NONE], ignored,
	       waits ? times[waits / 2] : 0, waits ? times[waits - 1] : 0);
	return !!failed;
}
