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
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diskseq.h"

#define LONGEST_MS	60000

enum way { NAME, SETTLE, NUMBER };

static struct tally {
	int attached;
	int wrong;		/* another's partition taken for its own */
	int none;		/* its own did not come, or was not there */
	int ignored;		/* events of other uses, with that name */
	int64_t waited;
	int64_t longest;
} *tally;			/* shared, one a process */

/* What is there by the name of the device: ours, another's, or nothing. */
static void look(struct tally *t, const char *device, const char *partname)
{
	char path[64], line[256];
	bool there = false, ours = false;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/class/block/%s/uevent", device);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		there = true;
		ours |= !strncmp(line, "PARTNAME=", 9) && !strcmp(line + 9, partname);
	}
	if (f)
		fclose(f);
	t->none += !there;
	t->wrong += there && !ours;
}

static void wait_for_event(struct tally *t, struct monitor *mon, const char *device,
			   const char *partname, uint64_t number)
{
	int64_t end = now_ms() + LONGEST_MS;
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
		if (strcmp(ev.partname, partname))
			t->wrong++;
		return;
	}
	t->none++;
}

static void settle(struct tally *t, const char *device, const char *partname)
{
	if (system("exec udevadm settle --timeout=60"))
		t->none++;
	else
		look(t, device, partname);
}

static void use(struct tally *t, enum way way, const char *disk, int process)
{
	char path[32], device[32], prefix[16], partname[40];
	struct loop_config config = { .info.lo_flags = LO_FLAGS_PARTSCAN };
	struct monitor mon = { .fd = -1 };
	int64_t start;
	int fd;

	snprintf(path, sizeof(path), "/dev/%s", disk);
	snprintf(device, sizeof(device), "%sp1", disk);
	snprintf(prefix, sizeof(prefix), "%d-%d-", process, t->attached);
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
		/* not at once, since udev answers every close by an event */
		poll(NULL, 0, 50 + rand() % 200);
	} else {
		start = now_ms();
		t->attached++;
		if (way == SETTLE)
			settle(t, device, partname);
		else
			wait_for_event(t, &mon, device, partname,
				       way == NUMBER ? diskseq(fd) : 0);
		start = now_ms() - start;
		t->waited += start;
		if (start > t->longest)
			t->longest = start;
		if (ioctl(fd, LOOP_CLR_FD))
			die("%s: LOOP_CLR_FD: %s", path, strerror(errno));
	}
	monitor_close(&mon);
	close(config.fd);
	close(fd);
}

int main(int argc, char **argv)
{
	static const char * const ways[] = { "name", "settle", "number" };
	struct tally sum = { };
	int processes, i, failed = 0;
	pid_t pids[64];
	int64_t end;
	enum way way = NAME;

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
	for (i = 0; i < processes; i++) {
		failed |= child_status(pids[i]);
		sum.attached += tally[i].attached;
		sum.wrong += tally[i].wrong;
		sum.none += tally[i].none;
		sum.ignored += tally[i].ignored;
		sum.waited += tally[i].waited;
		if (tally[i].longest > sum.longest)
			sum.longest = tally[i].longest;
	}
	printf("attached %d wrong %d none %d ignored %d mean_ms %lld longest_ms %lld\n",
	       sum.attached, sum.wrong, sum.none, sum.ignored,
	       (long long)(sum.attached ? sum.waited / sum.attached : 0),
	       (long long)sum.longest);
	return !!failed;
}
