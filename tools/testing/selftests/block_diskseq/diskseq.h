/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of the disk sequence number share: loop devices of their own
 * and the three readings of the number (disk.c), images with partition tables
 * (image.c), and the stream of uevents (uevent.c).
 *
 * The name of each test begins with the rule of Documentation/block/diskseq.rst
 * that it pins down.
 *
 * The shared functions end the test by die() when something fails that is not
 * what the test is about, so that the tests read as what they check.
 */
#ifndef DISKSEQ_H
#define DISKSEQ_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/types.h>

#include <linux/fs.h>
#include <linux/loop.h>

#ifndef __packed
#define __packed		__attribute__((packed))
#endif
#ifndef __aligned
#define __aligned(size)		__attribute__((aligned(size)))
#endif
#ifndef __noreturn
#define __noreturn		__attribute__((noreturn))
#endif
#ifndef __printf
#define __printf(a, b)		__attribute__((format(printf, a, b)))
#endif

#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ		_IOR(0x12, 128, __u64)
#endif

/*
 * Emulated machines and debugging kernels are slow: each test gets more time
 * than the harness would give it, and more than limit_ms().
 */
#ifdef TEST_TIMEOUT_DEFAULT
#undef TEST_TIMEOUT_DEFAULT
#endif
#define TEST_TIMEOUT_DEFAULT	600

#define SECTOR			512
/* An image has this many sectors, or a multiple of it. */
#define IMAGE_SECTORS		512
#define IMAGE_BYTES		(IMAGE_SECTORS * SECTOR)

/*
 * SKIP() for FIXTURE_SETUP(): older harnesses go on to run the test unless the
 * process ends here, and take status 255 for a skip. Those that know XFAIL_ADD()
 * (6.9) take it for a failure, and do not go on.
 */
#ifdef XFAIL_ADD
#define SKIP_SETUP(...)		SKIP(return, __VA_ARGS__)
#else
#define SKIP_SETUP(...)		SKIP(_exit(255), __VA_ARGS__)
#endif

/* disk.c: loop devices */

struct loop {
	int index;
	int fd;			/* the disk, open for reading and writing */
	char name[16];		/* loop700 */
	char path[32];		/* /dev/loop700 */
};

void die_at(const char *file, int line, const char *fmt, ...)
	__noreturn __printf(3, 4);

/* Ends the test, and says where. */
#define die(...)		die_at(__FILE__, __LINE__, __VA_ARGS__)

/* Ends it unless @err is 0. */
#define must(err, what) do {						\
	int __err = (err);						\
									\
	if (__err)							\
		die("%s: %s", what, strerror(__err));			\
} while (0)

int64_t now_ms(void);
/*
 * Longest time to wait for something that must come, in milliseconds. DISKSEQ_LIMIT
 * in the environment sets it in seconds (default 60), for kernels on which some
 * of it never comes.
 */
int limit_ms(void);

const char *diskseq_missing(void);
void clean_up_by(void (*fn)(void));
void loop_create(struct loop *lo);
void loop_destroy(struct loop *lo);
void loop_leave(struct loop *lo);
void loop_reopen(struct loop *lo);
void loop_close(struct loop *lo);
int loop_open(const struct loop *lo, int flags);
int loop_open_part(const struct loop *lo, int partno, int flags);
bool loop_has_part(const struct loop *lo, int partno);
int loop_count_parts(const struct loop *lo);
int loop_configure(const struct loop *lo, int backing, unsigned int flags);
void loop_attach(const struct loop *lo, int backing, unsigned int flags);
void loop_detach(struct loop *lo);
bool loop_detach_is_deferred(const struct loop *lo);
void loop_get_status(const struct loop *lo, struct loop_info64 *info);
bool loop_is_bound(const struct loop *lo);
bool loop_has_xor(struct loop *lo);
int blkpg_add(int fd, int partno, uint64_t start, uint64_t sectors);
int blkpg_del(int fd, int partno);
bool blkpg_needs_partscan(struct loop *lo);
int blkpg_resize(int fd, int partno, uint64_t start, uint64_t sectors);

/* disk.c: any disk */

int disk_open(const char *disk, int partno, int flags);
uint64_t disk_bytes(int fd);
bool disk_exists(const char *disk);
bool disk_has_size(const char *disk);
int disk_count_parts(const char *disk);
int file_write(const char *path, const char *value);

/* disk.c: the number */

uint64_t diskseq(int fd);
uint64_t diskseq_of(const char *path);
uint64_t diskseq_ioctl(const char *disk, int fd);
int diskseq_open_sysfs(const char *disk);
uint64_t diskseq_read(int sysfs);
uint64_t diskseq_sysfs(const char *disk);
uint64_t diskseq_uevent_file(const char *dev);
uint64_t next_number(void);
bool diskseq_gone(int sysfs);
bool diskseq_wait(int sysfs, int timeout_ms);
bool diskseq_wait_gone(int sysfs);

/* disk.c: processes */

struct gate {
	int fd[2];
};

pid_t spawn(void);
void gate_create(struct gate *gate);
void gate_pass(const struct gate *gate);
void gate_wait(const struct gate *gate);
int child_status(pid_t pid);
void tell_where(pid_t pid);
bool waits_in(pid_t pid, long syscall);
pid_t start_reading_into(int to, int from);
bool ends(pid_t pid);
int as_nobody(int (*fn)(void *), void *arg);
void *shared_memory(size_t size);

/* image.c */

enum table { TABLE_NONE, TABLE_GPT, TABLE_MSDOS };

int image_create(char id, int images);
int image_create_empty(void);
void image_table(int fd, uint64_t first_sector, enum table table, int count,
		 const char *prefix);
void image_part(enum table table, int partno, uint64_t *start, uint64_t *sectors);
void image_sector(char id, uint64_t sector, const char *key, char *buf);
bool sector_is(int fd, uint64_t sector, char id, uint64_t image_sector,
	       const char *key);

/* uevent.c */

struct uevent {
	char action[8];
	char disk[16];
	char device[32];	/* the disk or the partition, by its name */
	int partno;		/* 0 for the disk itself */
	bool has_diskseq;
	bool media_change;
	bool resize;
	bool ro;
	bool eject;
	bool synthetic;
	uint64_t diskseq;
	uint64_t seqnum;
	char partname[40];
};

/* The events of one disk and its partitions, or those of all disks. */
struct monitor {
	int fd;
	bool udev;		/* not the kernel's, but what udev makes of them */
	char disk[16];
};

/*
 * Events as text, for a comparison and for a report that can be read: as in
 * "remove p1-3 +0, change disk +1 media".
 */
struct script {
	size_t len;
	char text[16384];
	/* the partitions that the last entry is about, and where it begins */
	int first;
	int last;
	size_t entry;
	struct uevent event;
};

void monitor_open(struct monitor *mon, const char *disk);
void monitor_open_udev(struct monitor *mon, const char *disk);
void monitor_close(struct monitor *mon);
bool monitor_next(struct monitor *mon, struct uevent *ev, int timeout_ms);
int monitor_next_lossy(struct monitor *mon, struct uevent *ev);
const char *mark_new(void);
void mark_raise(const char *mark);
const char *mark_now(void);
bool monitor_next_before(struct monitor *mon, struct uevent *ev, const char *mark);
bool monitor_next_number(struct monitor *mon, struct uevent *ev, uint64_t above,
			 const char *mark);
size_t monitor_drop(struct monitor *mon);
void trigger(const char *dev, const char *action);
void look_at(const char *disk, int partno);
pid_t spawn_opener(const char *disk);
void end_child(pid_t pid);

/* What another process finds that looks as soon as a number is announced. */
struct sighting {
	bool announced;
	uint64_t number;
	uint64_t by_ioctl;	/* 0 if the disk could not be opened */
	uint64_t by_sysfs;
	uint64_t bytes;
	int error;		/* errno if the sector LOOKED_AT cannot be read */
	char content[SECTOR];	/* of that sector */
};

#define LOOKED_AT		100

void look_at_number(struct monitor *mon, const char *disk, uint64_t above,
		    const char *mark, struct sighting *found);

struct announced {
	unsigned int count;
	unsigned int not_next;	/* that are not of the next number */
	unsigned int others;	/* events of the disk that announce no medium */
	unsigned int parts;	/* events of partitions */
	uint64_t last;
};

void count_announced(struct monitor *mon, uint64_t before, struct announced *a);

void script_event(struct script *s, const struct uevent *ev, uint64_t base);
void script_add(struct script *s, const char *fmt, ...) __printf(2, 3);
void script_parts(struct script *s, const char *action, int count, int relative);
const char *events(struct monitor *mon, uint64_t base);
const char *without_resize(const char *events);
const char *part_events(struct monitor *mon, uint64_t base);

/* Programs of the harness include it first. */
#ifdef TEST_HARNESS_MAIN
#include "select.h"
#endif

#endif /* DISKSEQ_H */
