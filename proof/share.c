// SPDX-License-Identifier: GPL-2.0
/*
 * What the fuzzer and the million share of the disks besides the observer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"

struct fuzz *fuzz;

struct disk *disk_find(const char *name)
{
	int i;

	for (i = 0; i < atomic_get(&fuzz->disks); i++)
		if (!strcmp(fuzz->disk[i].name, name))
			return &fuzz->disk[i];
	return NULL;
}

/* Only for the observer, who alone adds any. */
struct disk *disk_slot(const char *name, unsigned int flags)
{
	struct disk *d = disk_find(name);

	if (d)
		return d;
	if (fuzz->disks == MAX_DISKS)
		die("more disks than expected: %s", name);
	d = &fuzz->disk[fuzz->disks];
	snprintf(d->name, sizeof(d->name), "%s", name);
	d->flags = flags;
	atomic_inc(&fuzz->disks, 1);
	return d;
}

/* Of one of its partitions, or of the disk if @partno is 0. */
void part_name(const struct disk *d, int partno, char *name, size_t size)
{
	bool digit = strchr("0123456789", d->name[strlen(d->name) - 1]);

	if (partno)
		snprintf(name, size, digit ? "%sp%d" : "%s%d", d->name, partno);
	else
		snprintf(name, size, "%s", d->name);
}

/* What sysfs says; 0 if the disk is gone. */
uint64_t number_in_sysfs(const struct disk *d)
{
	char path[64], line[32];
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/sys/block/%s/diskseq", d->name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	len = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (len <= 0)
		return 0;
	line[len] = '\0';
	return strtoull(line, NULL, 10);
}

/* From now on nobody may read less. */
void publish(struct disk *d, uint64_t number)
{
	uint64_t old = atomic_get(&d->published);

	while (old < number &&
	       !__atomic_compare_exchange_n(&d->published, &old, number, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

/* Before what may raise that many events besides announcements, and scan again. */
void may_raise(struct disk *d, unsigned int plain, unsigned int rescans)
{
	atomic_inc(&d->plain, plain);
	atomic_inc(&d->rescans, rescans);
}
