// SPDX-License-Identifier: GPL-2.0
/*
 * Drivers that are modules: one is unloaded with all its disks, and loaded again. Its
 * processes are dead meanwhile (fuzz.c sees to that); all others go on, and some of
 * them look at its disks, so that it is in use for a moment now and then.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/loop.h>

#include "fuzz.h"

#define MODULES		"/modules"	/* that PID 1 has loaded (vm/init.c) */
#define MAX_NAMES	4

static const struct driver {
	const char *file[MAX_NAMES];	/* those first that need the others */
	const char *process[MAX_NAMES];		/* their names begin so */
	const char *disk[MAX_NAMES];		/* and those of what they may have left */
	void (*rest[MAX_NAMES])(struct disk *d);
} drivers[] = {
	{ .file = { "zram" }, .process = { "zram" } },
	{ .file = { "nbd" }, .process = { "nbd" }, .disk = { "nbd" }, .rest = { nbd_rest } },
	{ .file = { "loop" }, .process = { "loop", "md", "dm" },
	  .disk = { "md", "dm", "loop" }, .rest = { md_rest, dm_rest, loop_rest } },
	{ .file = { "raid1", "raid0", "linear", "md-mod" }, .process = { "md" },
	  .disk = { "md" }, .rest = { md_rest } },
	{ .file = { "dm-mod" }, .process = { "dm" }, .disk = { "dm" }, .rest = { dm_rest } },
	{ .file = { "sr_mod", "cdrom" }, .process = { "drive" } },
	{ .file = { "sd_mod" }, .process = { "drive" } },
};

#define NR_DRIVERS	((int)(sizeof(drivers) / sizeof(*drivers)))

static bool begins(const char *name, const char *with)
{
	return with && !strncmp(name, with, strlen(with));
}

const char *modules_missing(void)
{
	return access(MODULES "/loop.ko", R_OK) ? "no " MODULES "/loop.ko: drivers are built in" : NULL;
}

/* Has this process to be dead for now? */
bool module_goes(const struct worker *w)
{
	int i, driver = atomic_get(&fuzz->unloading) - 1;

	for (i = 0; driver >= 0 && i < MAX_NAMES; i++)
		if (begins(w->name, drivers[driver].process[i]))
			return true;
	return false;
}

static bool any_left(void)
{
	int i;

	for (i = 0; i < fuzz->workers; i++)
		if (module_goes(&fuzz->worker[i]) && atomic_get(&fuzz->worker[i].pid))
			return true;
	return false;
}

static void for_disks(const char *with, void (*do_it)(struct disk *d))
{
	int i;

	for (i = 0; with && do_it && i < atomic_get(&fuzz->disks); i++) {
		if (!begins(fuzz->disk[i].name, with) || !disk_exists(fuzz->disk[i].name))
			continue;
		op_begin(&fuzz->disk[i], "let it rest");
		do_it(&fuzz->disk[i]);
		op_end(0);
	}
}

static void give_back(const struct driver *driver)
{
	int i;

	for (i = 0; i < MAX_NAMES; i++)
		for_disks(driver->disk[i], driver->rest[i]);
}

/* A zram device goes with what is in it; the end of its medium may be announced. */
static void owe_the_end(struct disk *d)
{
	owe(d, disk_has_size(d->name));
}

/* A dash in the name of the file is none in that of the module. */
static int delete_module(const char *file)
{
	char name[16], *dash;

	snprintf(name, sizeof(name), "%s", file);
	dash = strchr(name, '-');
	if (dash)
		*dash = '_';
	return called(syscall(SYS_delete_module, name, O_NONBLOCK));
}

static void unload(const struct driver *driver)
{
	const char *file;
	int i, err;

	if (!strcmp(driver->file[0], "zram"))
		for_disks("zram", owe_the_end);
	for (i = 0; i < MAX_NAMES && (file = driver->file[i]); i++) {
		do {
			give_back(driver);
			op_begin(NULL, "unload %s", file);
			err = op_end(delete_module(file));
		} while (err == EAGAIN && !poll(NULL, 0, 1));
		if (err)
			broken(15, NULL, "%s is not unloaded: %s", file, strerror(err));
		else
			atomic_inc(&fuzz->unloads, 1);
	}
}

/* All of them, so that whoever was killed in between is no reason to ask which. */
static void load_all(void)
{
	char path[64], number[32];
	const char *file;
	int i, j, fd, err, last = 0;

	for (i = 0; i < atomic_get(&fuzz->disks); i++)
		if (begins(fuzz->disk[i].name, "zram") && atoi(fuzz->disk[i].name + 4) > last)
			last = atoi(fuzz->disk[i].name + 4);
	snprintf(number, sizeof(number), "num_devices=%d", last + 1);
	for (i = 0; i < NR_DRIVERS; i++)
		for (j = MAX_NAMES - 1; j >= 0; j--) {
			file = drivers[i].file[j];
			if (!file)
				continue;
			snprintf(path, sizeof(path), MODULES "/%s.ko", file);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				die("%s: %s", path, strerror(errno));
			op_begin(NULL, "load %s", file);
			err = called(syscall(SYS_finit_module, fd,
					     strcmp(file, "zram") ? "" : number, 0));
			op_end(err);
			close(fd);
			if (err && err != EEXIST)
				broken(15, NULL, "%s is not loaded: %s", path, strerror(err));
		}
}

/* What is not there by itself once its driver is. */
static void make_disks(void)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), i;
	const char *name;

	for (i = 0; i < atomic_get(&fuzz->disks); i++) {
		name = fuzz->disk[i].name;
		if (begins(name, "loop") && !disk_exists(name) &&
		    ioctl(control, LOOP_CTL_ADD, atoi(name + 4)) < 0)
			broken(15, &fuzz->disk[i], "cannot be added: %s", strerror(errno));
	}
	close(control);
	op_begin(NULL, "wait for the drives");
	while (disk_find("sr0") && !disk_exists("sr0"))
		poll(NULL, 0, 1);
	op_end(0);
}

void module_begin(struct worker *w)
{
	load_all();
	make_disks();
	atomic_put(&fuzz->unloading, 0);
}

void module_step(struct worker *w)
{
	int driver = draw(NR_DRIVERS * 20);

	if (driver >= NR_DRIVERS) {
		poll(NULL, 0, 100);
		return;
	}
	atomic_put(&fuzz->unloading, driver + 1);
	op_begin(NULL, "wait for the processes of %s", drivers[driver].file[0]);
	while (any_left())
		poll(NULL, 0, 1);
	op_end(0);
	unload(&drivers[driver]);
	module_begin(w);
}
