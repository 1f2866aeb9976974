// SPDX-License-Identifier: GPL-2.0
/*
 * zram devices of the test's own.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "diskseq.h"
#include "zram_dev.h"

#define CONTROL			"/sys/class/zram-control/"
#define SIZE			"1M"

static int owned[4];
static int nr_owned;

int zram_write(const struct zram *z, const char *file, const char *value)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/%s", z->name, file);
	return file_write(path, value);
}

int zram_set_size(const struct zram *z)
{
	return zram_write(z, "disksize", SIZE);
}

int zram_reset(const struct zram *z)
{
	return zram_write(z, "reset", "1");
}

/* The first line of one of its files. */
void zram_read(const struct zram *z, const char *name, char *line, int size)
{
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/block/%s/%s", z->name, name);
	file = fopen(path, "re");
	if (!file || !fgets(line, size, file))
		die("%s: %s", path, strerror(errno));
	fclose(file);
}

bool zram_has_size(const struct zram *z)
{
	char state[4];

	zram_read(z, "initstate", state, sizeof(state));
	return state[0] == '1';
}

const char *zram_missing(void)
{
	const char *missing = diskseq_missing();

	if (!missing && access(CONTROL "hot_add", R_OK))
		missing = "no " CONTROL "hot_add: kernel without zram";
	return missing;
}

static int hot_remove(int index)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", index);
	return file_write(CONTROL "hot_remove", number);
}

static void disown(int index)
{
	int i;

	for (i = 0; i < nr_owned; i++)
		if (owned[i] == index)
			owned[i--] = owned[--nr_owned];
}

int zram_hot_remove(const struct zram *z)
{
	int err = hot_remove(z->index);

	if (!err)
		disown(z->index);
	return err;
}

/* Others may have it open for a moment. */
static int hot_remove_when_closed(int index)
{
	int64_t end = now_ms() + limit_ms();
	int err;

	do
		err = hot_remove(index);
	while (err == EBUSY && now_ms() < end);
	return err;
}

static void clean_up(void)
{
	while (nr_owned--)
		hot_remove_when_closed(owned[nr_owned]);
}

static void zram_names(struct zram *z, int index)
{
	z->index = index;
	z->fd = -1;
	snprintf(z->name, sizeof(z->name), "zram%d", index);
}

void zram_create(struct zram *z)
{
	FILE *file = fopen(CONTROL "hot_add", "re");
	int index;

	if (!file || fscanf(file, "%d", &index) != 1)
		die(CONTROL "hot_add: %s", strerror(errno));
	fclose(file);
	zram_names(z, index);
	owned[nr_owned++] = index;
	clean_up_by(clean_up);
}

void zram_open(struct zram *z)
{
	z->fd = disk_open(z->name, 0, O_RDWR);
}

void zram_close(struct zram *z)
{
	if (z->fd >= 0)
		close(z->fd);
	z->fd = -1;
}

void zram_destroy(struct zram *z)
{
	int err;

	if (!z->name[0])
		return;
	zram_close(z);
	err = hot_remove_when_closed(z->index);
	if (err)
		die("%s: hot_remove: %s", z->name, strerror(err));
	disown(z->index);
	z->name[0] = '\0';
}
