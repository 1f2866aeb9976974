/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A fuzzer that knows the rules of Documentation/block/diskseq.rst. Several processes
 * do good and bad operations on disks of all kinds (do_*.c); one observer holds the
 * stream of uevents against the rules and against what they say that they did
 * (observe.c); fuzz.c starts them, kills them, and tells what was found.
 *
 * What an operation does depends on the seed, the process and how many operations that
 * process has done, and on nothing that happened: the same seed gives the same
 * operations.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "diskseq.h"

#define MAX_DISKS	64
#define MAX_WORKERS	32
#define MAX_BROKEN	64
#define MAX_OF_RULE	4	/* that are reported */
#define MAX_PARTS	130
#define TRACE		128
#define MEDIA		8192

/* What is not a rule has a place among them, too. */
enum {
	NO_EVENT_LOST = 16,	/* the observer's socket */
	NO_HANG,
	NO_DEATH,		/* of a process that nobody killed */
	FINDINGS
};

/* Flags of a disk: what holds for it, and so is checked. */
#define PARTS_ALONE	0x1	/* nobody means to open its partitions or scans for them again */
#define COUNTED		0x2	/* each announcement is one that an operation owes */
#define QUIET		0x4	/* and each other event is one that an operation may raise */
#define BY_DRIVER	0x8	/* the driver makes the change itself (rule 9) */
#define SHARED		0x20	/* several processes change its medium */
#define REMOVED_TWICE	0x10	/* device mapper sends an event of its own, too */

struct disk {
	char name[16];
	unsigned int flags;
	uint64_t published;	/* greatest number that anybody has read or was told */
	unsigned int owed_min;	/* announcements: at least so many */
	unsigned int owed_max;	/* and at most, with operations that are on their way */
	unsigned int plain;	/* other events, at most */
	unsigned int rescans;	/* that may add partitions once more */
	unsigned int strays;	/* opens of its partitions that were meant for others */
};

/* One operation of a process. */
struct op {
	int64_t ms;
	int step;
	short disk;		/* its index, or -1 */
	short err;		/* errno, or -1 while it runs */
	char what[52];
};

struct worker {
	const char *name;
	void (*begin)(struct worker *w);	/* also after it was killed */
	void (*step)(struct worker *w);
	void (*end)(struct worker *w);
	int arg;
	bool helper;		/* goes on for as long as others may need it */
	pid_t pid;
	bool held;		/* not started again while its driver is unloaded */
	unsigned int life;	/* how many were killed before it */
	unsigned int steps;
	uint64_t ops;
	int64_t begun;		/* when its operation began, 0 if it does none */
	bool idle;		/* at a checkpoint, or done */
	struct op op[TRACE];
	unsigned int at;
};

struct broken {
	int rule;
	short disk;
	short worker;		/* -1: the observer */
	bool ready;
	char text[200];
};

/* Whose content a medium has, by the number, for whoever reads it. */
struct medium {
	uint64_t number;
	char id;		/* 0: it may be another one by now */
};

struct fuzz {
	uint64_t seed;
	bool stop;
	bool pause;
	int64_t start;
	int disks;
	struct disk disk[MAX_DISKS];
	int workers;
	struct worker worker[MAX_WORKERS];
	unsigned int brokens;
	unsigned int of_rule[FINDINGS];	/* all of them */
	struct broken broken[MAX_BROKEN];
	unsigned int silent;	/* numbers, at most, of disks that were never registered */
	struct medium media[MEDIA];
	int unloading;		/* index of a driver that is a module, and 1 */
	unsigned int unloads;
};

extern struct fuzz *fuzz;

/* share.c; broken() is in fuzz.c and in million.c */

#define atomic_get(p)		__atomic_load_n(p, __ATOMIC_SEQ_CST)
#define atomic_put(p, v)	__atomic_store_n(p, v, __ATOMIC_SEQ_CST)
#define atomic_inc(p, n)	__atomic_add_fetch(p, n, __ATOMIC_SEQ_CST)

struct disk *disk_find(const char *name);
void part_name(const struct disk *d, int partno, char *name, size_t size);
uint64_t number_in_sysfs(const struct disk *d);
struct disk *disk_slot(const char *name, unsigned int flags);
void publish(struct disk *d, uint64_t number);
void broken(int rule, const struct disk *d, const char *fmt, ...) __printf(3, 4);

/* fuzz.c: for processes */

unsigned int draw(unsigned int below);
void op_begin(const struct disk *d, const char *fmt, ...) __printf(2, 3);
int op_end(int err);
void owe(struct disk *d, int announcements);
void settle(struct disk *d, int announcements, int err);
void may_raise(struct disk *d, unsigned int plain, unsigned int rescans);
uint64_t number_by_name(struct disk *d);
uint64_t number_by_fd(struct disk *d, int fd);
void expect_number(struct disk *d, int fd, uint64_t before, bool changed);
bool number_follows(struct disk *d, uint64_t above);
void medium_is(uint64_t number, char id);
void medium_check(struct disk *d, uint64_t number, const char *sector, uint64_t nr);
int open_disk(const struct disk *d, int partno, int flags);
void scan_and_close(struct disk *d, int fd, uint64_t before);
bool bytes_are(int fd, uint64_t sector, const char *want);

/* A call that says by errno what it failed with. */
#define called(call)		((call) < 0 ? errno : 0)

/* observe.c */

void observer_open(void);
void observer_begin(void);
int observer_fd(void);
void observer_receive(void);
void observer_drain(void);
void observer_show(const struct disk *d, int count);
void observer_compare(void);
void observer_finish(void);
uint64_t observer_events(void);
uint64_t observer_media(void);

/* do_*.c */

void loop_alone_begin(struct worker *w);
void loop_alone_step(struct worker *w);
void loop_alone_end(struct worker *w);
void loop_shared_step(struct worker *w);
void loop_rest(struct disk *d);
void nbd_alone_begin(struct worker *w);
void nbd_alone_step(struct worker *w);
void nbd_alone_end(struct worker *w);
void nbd_shared_step(struct worker *w);
void nbd_free_step(struct worker *w);
void nbd_rest(struct disk *d);
void zram_alone_begin(struct worker *w);
void zram_alone_step(struct worker *w);
void zram_shared_step(struct worker *w);
void zram_rest(struct disk *d);
void md_begin(struct worker *w);
void md_alone_step(struct worker *w);
void md_alone_end(struct worker *w);
void md_shared_step(struct worker *w);
void md_rest(struct disk *d);
void dm_begin(struct worker *w);
void dm_step(struct worker *w);
void dm_end(struct worker *w);
void dm_rest(struct disk *d);
const char *drive_missing(void);
void drive_begin(struct worker *w);
void drive_step(struct worker *w);
void drive_end(struct worker *w);
void look_step(struct worker *w);
void react_begin(struct worker *w);
void react_step(struct worker *w);
void poll_step(struct worker *w);
const char *modules_missing(void);
bool module_goes(const struct worker *w);
void module_begin(struct worker *w);
void module_step(struct worker *w);

#endif /* FUZZ_H */
