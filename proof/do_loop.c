// SPDX-License-Identifier: GPL-2.0
/*
 * loop: a process that has a device for itself and knows what is in each sector, and
 * several that compete for a device.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

/* An image has two halves, and a table in each; between these are the sectors to write. */
#define HALVES		2
#define WRITE_FIRST	200
#define WRITE_COUNT	200
#define IMAGES		3
#define PARTS		3

struct image {
	int fd;
	char id;
	enum table table;
	uint64_t stamp[HALVES * IMAGE_SECTORS];	/* what each sector says that it is */
};

static struct image image[IMAGES];
static struct disk *d;
static struct loop lo;
static int bound;		/* the image, or -1 */
static bool read_only, partscan;
static uint64_t offset;		/* in sectors */
static uint64_t serial;

static void image_make(struct image *im, char id, enum table table)
{
	int i;

	im->id = id;
	im->table = table;
	im->fd = image_create(id, HALVES);
	if (table != TABLE_NONE) {
		image_table(im->fd, 0, table, PARTS, "f");
		image_table(im->fd, IMAGE_SECTORS, table, PARTS - 1, "f");
	}
	for (i = 0; i < HALVES * IMAGE_SECTORS; i++)
		im->stamp[i] = i;
}

/* A device that a killed process may have left in any state. */
static void take_over(void)
{
	op_begin(d, "take over");
	lo.fd = -1;
	loop_reopen(&lo);
	ioctl(lo.fd, LOOP_CLR_FD);
	loop_close(&lo);
	while (disk_has_size(d->name))
		poll(NULL, 0, 1);
	loop_reopen(&lo);
	op_end(0);
}

void loop_alone_begin(struct worker *w)
{
	int i;

	d = &fuzz->disk[w->arg];
	snprintf(lo.name, sizeof(lo.name), "%s", d->name);
	snprintf(lo.path, sizeof(lo.path), "/dev/%s", d->name);
	for (i = 0; i < IMAGES; i++)
		image_make(&image[i], (w->arg ? 'A' : 'a') + (w->life * IMAGES + i) % 26,
			   (enum table)((i + 1) % 3));
	bound = -1;
	take_over();
}

static void image_check(const struct image *im, const char *when)
{
	uint64_t s;

	for (s = 0; s < HALVES * IMAGE_SECTORS; s++) {
		if (s % IMAGE_SECTORS < WRITE_FIRST ||
		    s % IMAGE_SECTORS >= WRITE_FIRST + WRITE_COUNT)
			continue;
		if (!sector_is(im->fd, s, im->id, im->stamp[s], NULL))
			broken(14, d, "sector %llu of the file of image %c is not what was written %s",
			       (unsigned long long)s, im->id, when);
	}
}

/* Nobody may rely on its content any more, which is about to be replaced. */
static void forget_medium(void)
{
	medium_is(number_by_name(d), 0);
}

/* LOOP_CLR_FD has been called, or will be by whoever closes it last. */
static void wait_for_end(uint64_t before)
{
	loop_close(&lo);
	if (!number_follows(d, before))
		broken(NO_HANG, d, "the detach does not come");
	image_check(&image[bound], "before the detach");
	bound = -1;
	loop_reopen(&lo);
}

static void attach(void)
{
	unsigned int way = draw(6), which = draw(IMAGES);
	bool scan = draw(2), was = bound >= 0;
	struct image *im = &image[which];
	struct loop_config config = {
		.fd = im->fd,
		.info.lo_flags = (scan ? LO_FLAGS_PARTSCAN : 0) |
				 (way == 1 ? LO_FLAGS_READ_ONLY : 0) |
				 (way == 2 ? LO_FLAGS_AUTOCLEAR : 0) |
				 (way == 3 ? LO_FLAGS_DIRECT_IO : 0),
		.info.lo_offset = way == 4 ? IMAGE_BYTES : 0,
	};
	uint64_t before = number_by_fd(d, lo.fd);
	int err;

	op_begin(d, "attach image %c%s%s", im->id,
		 way == 5 ? " by LOOP_SET_FD" :
		 way == 1 ? " read-only" : way == 2 ? " autoclear" :
		 way == 3 ? " direct" : way == 4 ? " second half" : "",
		 scan && way < 5 ? " partscan" : "");
	owe(d, 2);
	err = called(way == 5 ? ioctl(lo.fd, LOOP_SET_FD, im->fd) :
				ioctl(lo.fd, LOOP_CONFIGURE, &config));
	settle(d, 2, err);
	op_end(err);
	if (err != (was ? EBUSY : 0))
		broken(was ? 12 : 15, d, "attach: %s", strerror(err));
	expect_number(d, lo.fd, before, !err);
	if (err)
		return;
	bound = which;
	read_only = way == 1;
	partscan = scan && way != 5;
	offset = way == 4 ? IMAGE_SECTORS : 0;
	medium_is(number_by_fd(d, lo.fd), im->id);
	if (way != 2)
		return;
	op_begin(d, "close, which detaches");
	wait_for_end(number_by_fd(d, lo.fd));
	op_end(0);
}

static void detach(void)
{
	uint64_t before = number_by_fd(d, lo.fd);
	int err;

	op_begin(d, "LOOP_CLR_FD");
	err = called(ioctl(lo.fd, LOOP_CLR_FD));
	if (err != (bound < 0 ? ENXIO : 0))
		broken(12, d, "LOOP_CLR_FD: %s", strerror(err));
	if (!err)
		wait_for_end(before);
	op_end(err);
	if (err)
		expect_number(d, lo.fd, before, false);
}

static void change(void)
{
	unsigned int which = draw(IMAGES);
	uint64_t before = number_by_fd(d, lo.fd);
	int err;

	op_begin(d, "LOOP_CHANGE_FD to image %c", image[which].id);
	forget_medium();
	owe(d, 1);
	err = called(ioctl(lo.fd, LOOP_CHANGE_FD, image[which].fd));
	settle(d, 1, err);
	op_end(err);
	if (!err != (bound >= 0 && read_only))
		broken(12, d, "LOOP_CHANGE_FD: %s", strerror(err));
	expect_number(d, lo.fd, before, !err);
	if (!err)
		bound = which;
}

/* The other half, or the flags, or the size alone. */
static void set_status(void)
{
	unsigned int way = draw(4);
	bool moves = way < 2 && bound >= 0;
	struct loop_info64 info = { };
	uint64_t before = number_by_fd(d, lo.fd);
	int err;

	ioctl(lo.fd, LOOP_GET_STATUS64, &info);
	op_begin(d, "LOOP_SET_STATUS64 %s", way < 2 ? "the other half" :
		 way == 2 ? "the same" : "partscan");
	if (way < 2) {
		forget_medium();
		info.lo_offset = offset ? 0 : IMAGE_BYTES;
	}
	if (way == 3)
		info.lo_flags |= LO_FLAGS_PARTSCAN;
	owe(d, moves);
	/* what was not to be scanned is, and tells so */
	if (way == 3 && bound >= 0 && !partscan)
		may_raise(d, 1, 1);
	err = called(ioctl(lo.fd, LOOP_SET_STATUS64, &info));
	settle(d, moves, err);
	op_end(err);
	if (!err != (bound >= 0))
		broken(12, d, "LOOP_SET_STATUS64: %s", strerror(err));
	expect_number(d, lo.fd, before, !err && moves);
	if (!err && way == 3)
		partscan = true;
	if (!err && moves)
		offset = offset ? 0 : IMAGE_SECTORS;
}

static void set_other(void)
{
	uint64_t before = number_by_fd(d, lo.fd);
	unsigned int way = draw(4);
	int err;

	op_begin(d, way == 0 ? "LOOP_SET_CAPACITY" : way == 1 ? "LOOP_SET_DIRECT_IO" :
		 way == 2 ? "BLKFLSBUF" : "LOOP_SET_BLOCK_SIZE");
	if (way == 0)
		may_raise(d, 1, 0);
	err = called(way == 0 ? ioctl(lo.fd, LOOP_SET_CAPACITY) :
		     way == 1 ? ioctl(lo.fd, LOOP_SET_DIRECT_IO, (long)draw(2)) :
		     way == 2 ? ioctl(lo.fd, BLKFLSBUF) :
				ioctl(lo.fd, LOOP_SET_BLOCK_SIZE, (long)SECTOR));
	op_end(err);
	expect_number(d, lo.fd, before, false);
}

static int clear_as_nobody(void *arg)
{
	int fd = *(int *)arg;

	return called(ioctl(fd, LOOP_CHANGE_FD, -1));
}

/* What is refused whatever the state. */
static void refused(void)
{
	struct loop_config config = { .fd = image[0].fd };
	uint64_t before = number_by_fd(d, lo.fd);
	struct loop_info64 info = { .lo_encrypt_type = 99 };
	int err = 0, dir, control, way = draw(8);

	op_begin(d, "refused %d", way);
	switch (way) {
	case 0:
		config.fd = -1;
		err = called(ioctl(lo.fd, LOOP_CONFIGURE, &config));
		break;
	case 1:
		config.block_size = 777;
		err = called(ioctl(lo.fd, LOOP_CONFIGURE, &config));
		break;
	case 2:
		dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		err = called(ioctl(lo.fd, LOOP_SET_FD, dir));
		close(dir);
		break;
	case 3:
		config.info.lo_offset = UINT64_MAX;
		err = called(ioctl(lo.fd, LOOP_CONFIGURE, &config));
		break;
	case 4:
		err = called(ioctl(lo.fd, LOOP_SET_STATUS64, &info));
		break;
	case 5:
		err = as_nobody(clear_as_nobody, &lo.fd);
		break;
	case 6:
		/* the device is open here */
		control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
		err = called(ioctl(control, LOOP_CTL_REMOVE, atoi(d->name + 4)));
		close(control);
		break;
	case 7:
		/* on top of itself */
		err = called(ioctl(lo.fd, LOOP_SET_FD, lo.fd));
		break;
	}
	op_end(err);
	if (!err)
		broken(12, d, "refused %d was not refused", way);
	expect_number(d, lo.fd, before, false);
}

/* Some sectors, by one way to write them. */
static void write_some(void)
{
	uint64_t first = WRITE_FIRST + draw(WRITE_COUNT - 16), s;
	unsigned int way = draw(4), count = 1 + draw(16);
	static char buf[16 * SECTOR] __aligned(4096);
	struct image *im = &image[bound < 0 ? 0 : bound];
	ssize_t len = (ssize_t)count * SECTOR, done = -1;
	char *map;
	int fd;

	op_begin(d, "write %u sectors at %llu%s", count, (unsigned long long)first,
		 way == 1 ? ", direct" : way == 2 ? ", mapped" : way == 3 ? ", fsync" : "");
	serial++;
	for (s = 0; s < count; s++)
		image_sector(im->id, serial << 16 | (first + s), NULL, buf + s * SECTOR);
	if (way == 1) {
		fd = open_disk(d, 0, O_RDWR | O_DIRECT);
		if (fd >= 0) {
			done = pwrite(fd, buf, len, first * SECTOR);
			close(fd);
		}
	} else if (way == 2 && bound >= 0 && !read_only) {
		map = mmap(NULL, IMAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, lo.fd, 0);
		if (map != MAP_FAILED) {
			memcpy(map + first * SECTOR, buf, len);
			munmap(map, IMAGE_BYTES);
			done = len;
		}
	} else if (way != 2) {
		done = pwrite(lo.fd, buf, len, first * SECTOR);
	}
	if (way == 3 && done > 0 && fsync(lo.fd))
		broken(14, d, "fsync: %s", strerror(errno));
	op_end(done < 0 ? errno : 0);
	if (done < 0)
		return;
	if (bound < 0 || read_only || done != len) {
		broken(14, d, "%zd of %zd bytes written to a device that %s", done, len,
		       bound < 0 ? "has no medium" : read_only ? "is read-only" : "has room");
		return;
	}
	for (s = 0; s < count; s++)
		im->stamp[offset + first + s] = serial << 16 | (first + s);
	if (way == 3)
		image_check(im, "before fsync");
}

static void read_some(void)
{
	uint64_t s = WRITE_FIRST + draw(WRITE_COUNT);
	unsigned int way = draw(3), part = draw(PARTS);
	static char buf[SECTOR] __aligned(4096);
	struct image *im = &image[bound < 0 ? 0 : bound];
	char want[SECTOR];
	ssize_t len;
	bool ours;
	int fd;

	op_begin(d, "read sector %llu%s", (unsigned long long)s,
		 way == 1 ? ", direct" : way == 2 ? ", of a partition" : "");
	if (bound < 0) {
		len = pread(lo.fd, buf, SECTOR, s * SECTOR);
		op_end(0);
		if (len > 0)
			broken(8, d, "%zd bytes were read from a device without a medium", len);
		return;
	}
	if (way == 2 && !(d->flags & PARTS_ALONE)) {
		/* the content of its first sector is not written to */
		fd = open_disk(d, part + 1, O_RDONLY);
		s = 64 + 2 * part;
	} else {
		fd = open_disk(d, 0, O_RDONLY | (way == 1 ? O_DIRECT : 0));
	}
	if (fd < 0) {
		op_end(errno);
		return;
	}
	/* one that outlives its medium, since it is in use, shows what it will */
	ours = number_by_fd(d, fd) == number_by_fd(d, lo.fd);
	len = pread(fd, buf, SECTOR, way == 2 && !(d->flags & PARTS_ALONE) ? 0 : s * SECTOR);
	op_end(len < 0 ? errno : 0);
	close(fd);
	if (!ours)
		return;
	image_sector(im->id, im->stamp[offset + s], NULL, want);
	if (len != SECTOR && way != 1)
		broken(14, d, "sector %llu cannot be read: %s", (unsigned long long)s,
		       len < 0 ? strerror(errno) : "short");
	else if (len == SECTOR && memcmp(buf, want, SECTOR))
		broken(8, d, "sector %llu of image %c reads as '%.40s'",
		       (unsigned long long)s, im->id, buf);
}

/* Partitions by hand and by a scan. They go with the medium. */
static void partitions(void)
{
	uint64_t before = number_by_fd(d, lo.fd);
	unsigned int way = draw(3);
	int err;

	if (d->flags & PARTS_ALONE)
		return;
	op_begin(d, way == 0 ? "BLKRRPART" : way == 1 ? "BLKPG add 9" : "BLKPG delete 9");
	may_raise(d, way == 0, 1);
	err = called(way == 0 ? ioctl(lo.fd, BLKRRPART) :
		     way == 1 ? blkpg_add(lo.fd, 9, 300, 8) : blkpg_del(lo.fd, 9));
	op_end(err);
	expect_number(d, lo.fd, before, false);
}

void loop_alone_step(struct worker *w)
{
	switch (draw(20)) {
	case 0 ... 3:
		attach();
		break;
	case 4 ... 5:
		detach();
		break;
	case 6:
		change();
		break;
	case 7 ... 8:
		set_status();
		break;
	case 9:
		set_other();
		break;
	case 10 ... 11:
		refused();
		break;
	case 12 ... 14:
		write_some();
		break;
	case 15 ... 17:
		read_some();
		break;
	case 18:
		partitions();
		break;
	case 19:
		poll(NULL, 0, draw(10));
		break;
	}
}

void loop_alone_end(struct worker *w)
{
	if (bound >= 0)
		detach();
	loop_close(&lo);
}

/* Devices that several processes use without regard for each other. */

static int shared_image[IMAGES];

static void shared_images(const struct worker *w)
{
	int i;

	if (shared_image[0])
		return;
	for (i = 0; i < IMAGES; i++) {
		shared_image[i] = image_create_empty();
		image_table(shared_image[i], 0, i == 0 ? TABLE_NONE : i == 1 ? TABLE_GPT : TABLE_MSDOS,
			    1 + (w - fuzz->worker) % 3, "s");
	}
}

void loop_shared_step(struct worker *w)
{
	struct disk *shared = &fuzz->disk[draw(8) ? w->arg : 2 + (int)draw(2)];
	unsigned int way = draw(12), which = draw(IMAGES), sleep = draw(4) ? 0 : draw(8);
	int fd, err = 0, medium = 0;
	static const unsigned int flags[] = {
		0, LO_FLAGS_PARTSCAN, LO_FLAGS_PARTSCAN | LO_FLAGS_AUTOCLEAR,
		LO_FLAGS_PARTSCAN | LO_FLAGS_READ_ONLY,
	};
	struct loop_config config = { .info.lo_flags = flags[draw(4)] };
	struct loop_info64 info = { };
	char buf[SECTOR] = "shared";
	uint64_t before;

	shared_images(w);
	config.fd = shared_image[which];
	op_begin(shared, "open");
	fd = open_disk(shared, 0, O_RDWR);
	op_end(fd < 0 ? errno : 0);
	if (fd < 0)
		return;
	before = number_by_fd(shared, fd);
	switch (way) {
	case 0 ... 4:
		op_begin(shared, "LOOP_CONFIGURE, flags %x", config.info.lo_flags);
		owe(shared, 2);
		err = called(ioctl(fd, LOOP_CONFIGURE, &config));
		settle(shared, 2, err);
		medium = !err;
		break;
	case 5 ... 6:
		op_begin(shared, "LOOP_CLR_FD");
		err = called(ioctl(fd, LOOP_CLR_FD));
		break;
	case 7:
		op_begin(shared, "LOOP_CHANGE_FD");
		owe(shared, 1);
		err = called(ioctl(fd, LOOP_CHANGE_FD, config.fd));
		settle(shared, 1, err);
		medium = !err;
		break;
	case 8:
		op_begin(shared, "LOOP_SET_STATUS64");
		if (ioctl(fd, LOOP_GET_STATUS64, &info)) {
			err = errno;
			break;
		}
		info.lo_offset = draw(2) * 64 * SECTOR;
		if (draw(2))
			info.lo_flags |= LO_FLAGS_PARTSCAN;
		info.lo_sizelimit = draw(2) * 256 * SECTOR;
		/* whether the offset is another one is known to the kernel alone */
		owe(shared, 1);
		may_raise(shared, 2, 1);
		err = called(ioctl(fd, LOOP_SET_STATUS64, &info));
		if (err)
			settle(shared, 1, err);
		break;
	case 9:
		op_begin(shared, "BLKRRPART");
		may_raise(shared, 1, 1);
		err = called(ioctl(fd, BLKRRPART));
		break;
	case 10:
		op_begin(shared, "write");
		err = called(pwrite(fd, buf, SECTOR, (100 + draw(64)) * SECTOR));
		break;
	case 11:
		op_begin(shared, "read");
		err = called(pread(fd, buf, SECTOR, draw(256) * SECTOR));
		break;
	}
	op_end(err);
	/* others may have changed it again, but there is no way back */
	if (medium && number_by_fd(shared, fd) <= before)
		broken(8, shared, "the call that changes the medium has returned, and it has %llu as before",
		       (unsigned long long)before);
	if (number_by_fd(shared, fd) < before)
		broken(4, shared, "the number goes down");
	poll(NULL, 0, sleep);
	close(fd);
}

/* Nobody else is left. */
void loop_rest(struct disk *disk)
{
	int64_t end = now_ms() + limit_ms();
	int fd;

	while (disk_has_size(disk->name) && now_ms() < end) {
		fd = open_disk(disk, 0, O_RDWR);
		if (fd >= 0) {
			ioctl(fd, LOOP_CLR_FD);
			close(fd);
		}
		poll(NULL, 0, 1);
	}
	if (disk_has_size(disk->name))
		broken(NO_HANG, disk, "cannot be detached");
}
