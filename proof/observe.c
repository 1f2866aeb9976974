// SPDX-License-Identifier: GPL-2.0
/*
 * The observer: what each event says is held against all events before it, and
 * against what the processes say that they owe (rules 1, 4 to 7, 9, 10, 12).
 *
 * It goes by the order of events on one socket, and by counters that a process raises
 * before an operation and lowers when that was refused: so whatever has arrived must be
 * covered by them, whatever is on its way.
 */
#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"

#define KEPT		64	/* last events of a disk */
#define AT_ONCE		256	/* events, before it looks at anything else */

struct part {
	bool live;
	uint64_t number;	/* that it was added with */
	unsigned int added;	/* how often with that number */
};

struct seen {
	bool there;
	uint64_t last;		/* number that was announced */
	uint64_t early;		/* that an event carried before its announcement */
	uint64_t seqnum;
	unsigned int announced;
	unsigned int plain;
	unsigned int rounds;	/* in which partitions were added once more */
	unsigned int rounds_now;
	uint64_t stayed;	/* number that was announced while partitions stayed */
	unsigned int strays;	/* before that */
	struct part part[MAX_PARTS];
	struct uevent kept[KEPT];
	unsigned int at;
};

static struct monitor mon;
static struct seen seen[MAX_DISKS];
static uint64_t first_number, events_seen, media_seen;
static uint8_t *announced;
static size_t room;

void observer_open(void)
{
	monitor_open(&mon, NULL);
}

int observer_fd(void)
{
	return mon.fd;
}

uint64_t observer_events(void)
{
	return events_seen;
}

uint64_t observer_media(void)
{
	return media_seen;
}

static struct seen *seen_of(const struct disk *d)
{
	return &seen[d - fuzz->disk];
}

/* Number of the partition by its name, that of the disk and perhaps a "p" before it. */
static int part_of(const char *disk, const char *name)
{
	size_t len = strlen(disk);

	if (strncmp(name, disk, len))
		return 0;
	name += len;
	return atoi(*name == 'p' ? name + 1 : name);
}

/* A disk that was there before: what there is of it. */
static void observer_know(struct disk *d)
{
	struct seen *s = seen_of(d);
	struct dirent *entry;
	char path[64];
	DIR *dir;
	int p;

	snprintf(path, sizeof(path), "/sys/block/%s", d->name);
	dir = opendir(path);
	if (!dir)
		return;
	s->there = true;
	s->last = diskseq_sysfs(d->name);
	publish(d, s->last);
	while ((entry = readdir(dir))) {
		p = part_of(d->name, entry->d_name);
		if (p <= 0 || p >= MAX_PARTS)
			continue;
		s->part[p].live = true;
		s->part[p].added = 1;
		s->part[p].number = diskseq_uevent_file(entry->d_name);
	}
	closedir(dir);
}

/* Now: what the disks have been through before is of no interest. */
void observer_begin(void)
{
	int i;

	first_number = next_number();
	monitor_drop(&mon);
	for (i = 0; i < fuzz->disks; i++)
		observer_know(&fuzz->disk[i]);
}

/* Rule 1, and that of rule 7 which is about all disks. */
static void number_announced(struct disk *d, uint64_t number)
{
	size_t n = number - first_number, more;

	if (number <= first_number)
		return;
	if (n >= room) {
		more = n * 2 + 4096;
		announced = realloc(announced, more);
		if (!announced)
			die("no memory");
		memset(announced + room, 0, more - room);
		room = more;
	}
	if (announced[n]++)
		broken(1, d, "%llu is announced a second time",
		       (unsigned long long)number);
}

static int live_parts(const struct seen *s)
{
	int p, count = 0;

	for (p = 1; p < MAX_PARTS; p++)
		count += s->part[p].live;
	return count;
}

static void see_part(struct disk *d, struct seen *s, const struct uevent *ev)
{
	struct part *part;

	if (ev->partno >= MAX_PARTS) {
		broken(6, d, "partition %d, which nobody made", ev->partno);
		return;
	}
	part = &s->part[ev->partno];
	if (!strcmp(ev->action, "add")) {
		if (part->live)
			broken(10, d, "partition %d is added although it is there",
			       ev->partno);
		if (ev->diskseq > s->last ||
		    ((d->flags & BY_DRIVER) && ev->diskseq != s->last))
			broken(9, d, "partition %d is added with %llu, but %llu was announced last",
			       ev->partno, (unsigned long long)ev->diskseq,
			       (unsigned long long)s->last);
		if (part->number != ev->diskseq)
			part->added = 0;
		part->live = true;
		part->number = ev->diskseq;
		part->added++;
		if (part->added - 1 > s->rounds_now) {
			s->rounds_now++;
			s->rounds++;
			if (s->rounds > atomic_get(&d->rescans))
				broken(10, d, "partition %d is added for %llu once more, which nobody asked for",
				       ev->partno, (unsigned long long)ev->diskseq);
		}
		return;
	}
	if (!part->live)
		broken(9, d, "partition %d: %s, but it is not there", ev->partno,
		       ev->action);
	else if (ev->diskseq != part->number)
		broken(6, d, "partition %d: %s with %llu, it was added with %llu",
		       ev->partno, ev->action, (unsigned long long)ev->diskseq,
		       (unsigned long long)part->number);
	if (!strcmp(ev->action, "remove"))
		part->live = false;
}

static void check_published(struct disk *d, uint64_t number)
{
	uint64_t read = number_in_sysfs(d);

	if (read && read < number)
		broken(8, d, "%llu is announced, but sysfs says %llu",
		       (unsigned long long)number, (unsigned long long)read);
}

static void see_medium(struct disk *d, struct seen *s, const struct uevent *ev)
{
	int live = live_parts(s);

	media_seen++;
	s->announced++;
	number_announced(d, ev->diskseq);
	if (ev->diskseq <= s->last)
		broken(7, d, "%llu is announced after %llu",
		       (unsigned long long)ev->diskseq, (unsigned long long)s->last);
	if (ev->diskseq == s->early)
		s->early = 0;
	if (ev->diskseq > s->last)
		s->last = ev->diskseq;
	if ((d->flags & PARTS_ALONE) && (d->flags & BY_DRIVER) && live)
		s->stayed = ev->diskseq;
	if ((d->flags & COUNTED) && s->announced > atomic_get(&d->owed_max))
		broken(12, d, "announcement %u, but there were at most %u media",
		       s->announced, atomic_get(&d->owed_max));
	/* they are in use: an open will scan when they are not, and say so */
	if (live)
		may_raise(d, 1, 0);
	s->rounds_now = 0;
	check_published(d, ev->diskseq);
}

static void see_disk(struct disk *d, struct seen *s, const struct uevent *ev)
{
	int p;

	if (!strcmp(ev->action, "add")) {
		number_announced(d, ev->diskseq);
		if (s->there)
			broken(7, d, "is added although it is there");
		if (ev->diskseq <= s->last)
			broken(4, d, "is added with %llu, it had %llu already",
			       (unsigned long long)ev->diskseq,
			       (unsigned long long)s->last);
		s->there = true;
		s->last = ev->diskseq;
		s->early = 0;
		s->rounds_now = 0;
		return;
	}
	/* and also for one that never had a table, and was not added */
	if (!s->there && (d->flags & REMOVED_TWICE) && !strcmp(ev->action, "remove"))
		return;
	if (!s->there)
		broken(7, d, "%s, but it is not there", ev->action);
	if (!strcmp(ev->action, "remove")) {
		if (ev->diskseq != s->last)
			broken(7, d, "is removed with %llu, but %llu was announced last",
			       (unsigned long long)ev->diskseq,
			       (unsigned long long)s->last);
		for (p = 1; p < MAX_PARTS; p++) {
			if (s->part[p].live)
				broken(9, d, "is removed before its partition %d", p);
			s->part[p].live = false;
		}
		s->there = false;
		return;
	}
	if (ev->media_change) {
		see_medium(d, s, ev);
		return;
	}
	/* it may have been on its way when the medium changed, then it is late */
	if (ev->diskseq > s->last)
		s->early = ev->diskseq;
	if (ev->eject || !(d->flags & QUIET))
		return;
	if (++s->plain > atomic_get(&d->plain))
		broken(7, d, "an event with %llu more than anybody had reason for (%u, at most %u)",
		       (unsigned long long)ev->diskseq, s->plain,
		       atomic_get(&d->plain));
}

static void see(const struct uevent *ev)
{
	struct disk *d = disk_slot(ev->disk, 0);
	struct seen *s = seen_of(d);

	events_seen++;
	s->kept[s->at++ % KEPT] = *ev;
	if (ev->seqnum <= s->seqnum)
		broken(9, d, "SEQNUM %llu after %llu", (unsigned long long)ev->seqnum,
		       (unsigned long long)s->seqnum);
	s->seqnum = ev->seqnum;
	if (!ev->has_diskseq) {
		broken(5, d, "%s of %s has no number", ev->action, ev->device);
		return;
	}
	publish(d, ev->diskseq);
	/* what it is about may be over, and its number may be early or late */
	if (ev->synthetic) {
		if (!ev->partno && ev->diskseq > s->last)
			s->early = ev->diskseq;
		return;
	}
	if (ev->partno)
		see_part(d, s, ev);
	else
		see_disk(d, s, ev);
}

/* What is there. If it never ends, others have their turn, too. */
void observer_receive(void)
{
	struct uevent ev;
	int got, i;

	for (i = 0; i < AT_ONCE && (got = monitor_next_lossy(&mon, &ev)); i++) {
		if (got < 0)
			broken(NO_EVENT_LOST, NULL, "events were lost (ENOBUFS)");
		else
			see(&ev);
	}
}

/* All that has been raised up to now. */
void observer_drain(void)
{
	const char *mark = mark_now();
	struct uevent ev;

	while (monitor_next_before(&mon, &ev, mark))
		see(&ev);
}

/* Last events of the disk, the oldest first. */
void observer_show(const struct disk *d, int count)
{
	struct seen *s = seen_of(d);
	const struct uevent *ev;
	unsigned int i = s->at > (unsigned int)count ? s->at - count : 0;

	for (; i < s->at; i++) {
		ev = &s->kept[i % KEPT];
		fprintf(stderr, "#     %llu %s %s %llu%s%s%s%s%s\n",
			(unsigned long long)ev->seqnum, ev->action, ev->device,
			(unsigned long long)ev->diskseq,
			ev->media_change ? " media" : "", ev->resize ? " resize" : "",
			ev->ro ? " ro" : "", ev->eject ? " eject" : "",
			ev->synthetic ? " synthetic" : "");
	}
}

/* Is sysfs what the events say? Returns false if not, with the reason in @why. */
static bool same_as_sysfs(struct disk *d, struct seen *s, int *rule, char *why,
			  size_t size)
{
	char path[64], name[40];
	uint64_t number = number_in_sysfs(d);
	bool there = number;
	int p;

	*rule = 7;
	if (there != s->there) {
		snprintf(why, size, "is %s, but its events say that it is %s",
			 there ? "there" : "gone", s->there ? "there" : "gone");
		return false;
	}
	if (!there)
		return true;
	if (number != s->last) {
		snprintf(why, size, "sysfs says %llu, but %llu was announced last",
			 (unsigned long long)number, (unsigned long long)s->last);
		return false;
	}
	if (s->early > s->last) {
		snprintf(why, size, "%llu was in an event, but is not announced",
			 (unsigned long long)s->early);
		return false;
	}
	*rule = 6;
	for (p = 1; p < 20; p++) {
		part_name(d, p, name, sizeof(name));
		snprintf(path, sizeof(path), "/sys/block/%s/%s", d->name, name);
		there = !access(path, F_OK);
		if (there != s->part[p].live) {
			snprintf(why, size, "partition %d is %s, but its events say that it is %s",
				 p, there ? "there" : "gone",
				 s->part[p].live ? "there" : "gone");
			return false;
		}
		number = there ? diskseq_uevent_file(name) : 0;
		if (there && number != s->part[p].number) {
			snprintf(why, size, "partition %d has %llu, it was added with %llu",
				 p, (unsigned long long)number,
				 (unsigned long long)s->part[p].number);
			return false;
		}
	}
	return true;
}

/* Whoever has opened one by mistake has said so by now. */
static void check_stayed(struct disk *d, struct seen *s)
{
	unsigned int strays = atomic_get(&d->strays);

	if (s->stayed && strays == s->strays)
		broken(9, d, "%llu was announced while there were partitions of another medium, which nobody used",
		       (unsigned long long)s->stayed);
	s->stayed = 0;
	s->strays = strays;
}

/*
 * While no process does anything. The kernel may still do what they left to it, so
 * that only what stays is wrong.
 */
void observer_compare(void)
{
	int i, try, rule;
	char why[160];

	observer_drain();
	for (i = 0; i < fuzz->disks; i++) {
		check_stayed(&fuzz->disk[i], &seen[i]);
		for (try = 0; try < 50; try++) {
			if (same_as_sysfs(&fuzz->disk[i], &seen[i], &rule, why,
					  sizeof(why)))
				break;
			poll(NULL, 0, 100);
			observer_drain();
		}
		if (try == 50)
			broken(rule, &fuzz->disk[i], "%s", why);
	}
}

/* When all is over and every disk at rest. */
void observer_finish(void)
{
	uint64_t end, n, missing = 0;
	int i;

	observer_compare();
	end = next_number();
	observer_drain();
	for (i = 0; i < fuzz->disks; i++) {
		struct disk *d = &fuzz->disk[i];

		if ((d->flags & COUNTED) && seen[i].announced < d->owed_min)
			broken(7, d, "%u announcements, but at least %u media",
			       seen[i].announced, d->owed_min);
	}
	for (n = 1; n < end - first_number; n++)
		missing += n >= room || !announced[n];
	if (missing > fuzz->silent)
		broken(7, NULL, "%llu numbers were not announced, of disks that were never registered there are at most %u",
		       (unsigned long long)missing, fuzz->silent);
}
