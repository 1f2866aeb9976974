// SPDX-License-Identifier: GPL-2.0
/*
 * Operations on zram devices.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "inject.h"
#include "zram_dev.h"

static struct zram z = { .fd = -1 };
static int file = -1;

static void set_up(void)
{
	const char *missing = zram_missing();

	if (missing)
		skip(missing);
	zram_create(&z);
	let_requests_fail(z.name);
	watch(z.name);
}

/* The file that the operation writes to is opened before. */
static void open_file(const char *path)
{
	file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0)
		die("%s: %s", path, strerror(errno));
}

static void open_attr(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/%s", z.name, name);
	open_file(path);
}

static void close_file(void)
{
	if (file >= 0)
		close(file);
	file = -1;
}

static void with_disksize(void)
{
	close_file();
	open_attr("disksize");
}

static void with_reset(void)
{
	close_file();
	open_attr("reset");
}

static int put(const char *value)
{
	return called(pwrite(file, value, strlen(value), 0));
}

static int set_size(void)
{
	return put("1M");
}

static int reset(void)
{
	return put("1");
}

static void sized(void)
{
	must(zram_set_size(&z), "disksize");
}

static void unsize(void)
{
	must(zram_reset(&z), "reset");
}

static void tear_down(void)
{
	close_file();
	zram_destroy(&z);
}

static void watch_next(void)
{
	struct zram next;

	set_up();
	/* it makes the next one of the same name */
	next = z;
	zram_destroy(&next);
	watch(z.name);
}

static int hot_add(void)
{
	char line[16] = "";
	int fd = open("/sys/class/zram-control/hot_add", O_RDONLY | O_CLOEXEC), err = 0;

	if (fd < 0 || read(fd, line, sizeof(line) - 1) < 0)
		err = errno;
	else if (atoi(line) != z.index)
		die("zram%d was made, not zram%d", atoi(line), z.index);
	if (fd >= 0)
		close(fd);
	return err;
}

static void must_add(void)
{
	must(hot_add(), "hot_add");
}

static void must_remove(void)
{
	must(zram_hot_remove(&z), "hot_remove");
}

static void with_remove(void)
{
	close_file();
	open_file("/sys/class/zram-control/hot_remove");
}

static int hot_remove(void)
{
	char number[16];

	snprintf(number, sizeof(number), "%d", z.index);
	return put(number);
}

const struct operation zram_operations[] = {
	{ "zram_hot_add", .set_up = watch_next, .act = hot_add, .restore = must_remove,
	  .flags = MAKES_DISK, .taken = 1 },
	{ "zram_disksize", .set_up = set_up, .ready = with_disksize, .act = set_size,
	  .restore = unsize, .tear_down = tear_down, .taken = 1 },
	{ "zram_reset", .set_up = set_up, .prepare = sized, .ready = with_reset, .act = reset,
	  .tear_down = tear_down, .taken = 1 },
	{ "zram_hot_remove", .set_up = watch_next, .prepare = must_add, .ready = with_remove,
	  .act = hot_remove },
	{ }
};
