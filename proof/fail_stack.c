// SPDX-License-Identifier: GPL-2.0
/*
 * Operations on disks that are made of other disks: md and device mapper, each on a
 * loop device.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/major.h>
#include <linux/raid/md_u.h>

#include "dm_dev.h"
#include "inject.h"
#include "md_dev.h"

#define MD_MINOR	310
#define MD_NODE		"/dev/.inject-md310"
#define MD_DIR		"/sys/devices/virtual/block/md310"
#define DM_NAME		"diskseq-inject"

static struct loop lo = { .fd = -1 };
static int fd = -1, attr = -1, control = -1;

static void attach_below(void)
{
	loop_create(&lo);
	loop_attach(&lo, image_create('s', 2), 0);
	let_requests_fail(lo.name);
}

static void remove_below(void)
{
	loop_destroy(&lo);
}

/* md */

static void md_set_up(void)
{
	attach_below();
	unlink(MD_NODE);
	if (mknod(MD_NODE, S_IFBLK | 0600, makedev(MD_MAJOR, MD_MINOR)))
		die(MD_NODE ": %s", strerror(errno));
	watch("md310");
}

static void md_close(void)
{
	if (fd >= 0)
		close(fd);
	fd = -1;
	if (attr >= 0)
		close(attr);
	attr = -1;
}

/* A kworker removes it. The directory goes last. */
static void md_wait_gone(void)
{
	int64_t end = now_ms() + limit_ms();

	while (!access(MD_DIR, F_OK)) {
		if (now_ms() > end)
			die("md310 does not go");
		poll(NULL, 0, 1);
	}
}

static int md_open(void)
{
	fd = open(MD_NODE, O_RDWR | O_CLOEXEC);
	return fd < 0 ? errno : 0;
}

static void md_made(void)
{
	must(md_open(), "md310");
}

static void md_set(void)
{
	md_made();
	must(md_set_info(fd, 1, 1), "SET_ARRAY_INFO");
}

static void md_assembled(void)
{
	md_set();
	must(md_add_disk(fd, lo.fd, 0), "ADD_NEW_DISK");
	let_requests_fail("md310");
}

static void md_runs(void)
{
	md_assembled();
	must(md_run(fd), "RUN_ARRAY");
	must(called(blkpg_add(fd, 1, 64, 64)), "BLKPG");
}

static int act_md_add(void)
{
	return md_add_disk(fd, lo.fd, 0);
}

static int act_md_run(void)
{
	return md_run(fd);
}

static int act_md_stop(void)
{
	int err = called(ioctl(fd, STOP_ARRAY, NULL));

	if (!err)
		md_close();
	return err;
}

/* Stopped, closed and gone. */
static void md_restore(void)
{
	if (disk_exists("md310")) {
		if (fd < 0)
			md_made();
		ioctl(fd, STOP_ARRAY, NULL);
	}
	md_close();
	md_wait_gone();
}

static void md_settle_stop(void)
{
	if (fd < 0)
		md_wait_gone();
}

static void md_open_state(void)
{
	attr = open("/sys/block/md310/md/array_state", O_WRONLY | O_CLOEXEC);
	if (attr < 0)
		die("array_state: %s", strerror(errno));
}

/* By sysfs, while nobody has it open. */
static void md_assembled_closed(void)
{
	md_assembled();
	md_close();
	md_open_state();
}

static void md_runs_closed(void)
{
	md_runs();
	md_close();
	md_open_state();
}

static int md_put_state(const char *state)
{
	return called(pwrite(attr, state, strlen(state), 0));
}

static int md_state_active(void)
{
	return md_put_state("active");
}

static int md_state_readonly(void)
{
	return md_put_state("readonly");
}

static int md_state_inactive(void)
{
	return md_put_state("inactive");
}

static int md_state_clear(void)
{
	int err = md_put_state("clear");

	if (!err) {
		close(attr);
		attr = -1;
	}
	return err;
}

static void md_settle_clear(void)
{
	if (attr < 0)
		md_wait_gone();
}

/* Device mapper */

static int dm(unsigned long command, unsigned int flags, const char *table)
{
	return dm_call(control, DM_NAME, command, flags, table ? "linear" : NULL,
		       IMAGE_SECTORS, table, NULL);
}

static int dm_load(int sector)
{
	char table[48];

	snprintf(table, sizeof(table), "%s %d", lo.path, sector);
	return dm(DM_TABLE_LOAD, 0, table);
}

static void dm_set_up(void)
{
	attach_below();
	control = open(DM_CONTROL, O_RDWR | O_CLOEXEC);
	if (control < 0)
		skip("no " DM_CONTROL);
	watch("dm-0");
}

static int dm_create(void)
{
	return dm(DM_DEV_CREATE, 0, NULL);
}

static int dm_load_first(void)
{
	return dm_load(0);
}

static int dm_load_second(void)
{
	return dm_load(IMAGE_SECTORS);
}

static int dm_resume(void)
{
	return dm(DM_DEV_SUSPEND, 0, NULL);
}

static int dm_remove(void)
{
	return dm(DM_DEV_REMOVE, 0, NULL);
}

static void dm_created(void)
{
	must(dm_create(), "DM_DEV_CREATE");
}

static void dm_loaded(void)
{
	dm_created();
	must(dm_load_first(), "DM_TABLE_LOAD");
}

static void dm_runs(void)
{
	dm_loaded();
	must(dm_resume(), "DM_DEV_SUSPEND");
	let_requests_fail("dm-0");
}

static void dm_loaded_again(void)
{
	dm_runs();
	must(dm_load_second(), "DM_TABLE_LOAD");
}

static void dm_restore(void)
{
	int err = dm_remove();

	if (err != ENXIO)
		must(err, "DM_DEV_REMOVE");
}

#define MD	.set_up = md_set_up, .restore = md_restore, .tear_down = remove_below
#define DM	.set_up = dm_set_up, .restore = dm_restore, .tear_down = remove_below

const struct operation stack_operations[] = {
	{ "md_create", MD, .act = md_open, .flags = MAKES_DISK, .taken = 1 },
	{ "md_add_new_disk", MD, .prepare = md_set, .act = act_md_add },
	{ "md_run_array", MD, .prepare = md_assembled, .act = act_md_run, .taken = 1 },
	{ "md_stop_array", MD, .prepare = md_runs, .act = act_md_stop,
	  .settle = md_settle_stop, .taken = 1 },
	{ "md_state_active", MD, .prepare = md_assembled_closed, .act = md_state_active,
	  .taken = 1 },
	{ "md_state_readonly", MD, .prepare = md_assembled_closed, .act = md_state_readonly,
	  .taken = 1,
	  .known_in = "do_md_run",
	  .known = "array_state_store() makes the disk read-only first, and leaves it so" },
	{ "md_state_inactive", MD, .prepare = md_runs_closed, .act = md_state_inactive,
	  .taken = 1 },
	{ "md_state_clear", MD, .prepare = md_runs_closed, .act = md_state_clear,
	  .settle = md_settle_clear, .taken = 1 },
	{ "dm_create", DM, .act = dm_create, .flags = MAKES_DISK, .taken = 1 },
	{ "dm_load_first", DM, .prepare = dm_created, .act = dm_load_first,
	  .flags = MAKES_DISK },
	{ "dm_resume_first", DM, .prepare = dm_loaded, .act = dm_resume },
	{ "dm_load_again", DM, .prepare = dm_runs, .act = dm_load_second },
	{ "dm_resume_again", DM, .prepare = dm_loaded_again, .act = dm_resume },
	{ "dm_remove", DM, .prepare = dm_runs, .act = dm_remove },
	{ }
};
