/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Fault injection: each operation on a disk is done over and over, and each time
 * another allocation or request of it fails: the first, the second, the third and so
 * on, until it succeeds without a failure (Documentation/fault-injection in the
 * kernel). inject.c does that and judges, fail_*.c have the operations.
 */
#ifndef INJECT_H
#define INJECT_H

#include "diskseq.h"

/* Flags of an operation. */
#define MAKES_DISK	0x1	/* a number may be gone of a disk that was never seen */
#define ARMS_ITSELF	0x2	/* by arm() and disarm(), in another process */
#define BY_WORKER	0x4	/* a kworker does it, in @within; only failslab */
#define NO_LOOK		0x8	/* an open changes something */
#define MEDIUM_CAME	0x10	/* before it: to notice that is right, also if it fails then */

/* Like an errno: what became of it is only seen by its effects. */
#define NO_ANSWER	4095

struct operation {
	const char *name;
	void (*set_up)(void);		/* once; it calls watch() */
	void (*prepare)(void);		/* before each try, but not before a repetition */
	void (*ready)(void);		/* before each try and each repetition */
	int (*act)(void);		/* what fails; the errno */
	void (*settle)(void);		/* until what follows @act has happened */
	void (*restore)(void);		/* after it was done, to before prepare() */
	void (*tear_down)(void);
	const char *within;		/* a function, for BY_WORKER */
	const char *known_in, *known;	/* a function, and what the base does wrong there */
	unsigned int flags;
	int err;			/* that it fails with in any case */
	int taken;			/* numbers */
	int arg;
};

extern const struct operation *op;

/* Of fail_*.c: arrays that end with an operation without a name. */
extern const struct operation loop_operations[], nbd_operations[], stack_operations[],
			      zram_operations[], drive_operations[];

void watch(const char *disk);
void let_requests_fail(const char *disk);
void skip(const char *why) __noreturn;
void arm(unsigned int nth);
bool disarm(void);
unsigned int failure(void);
void failed_in_other(bool fired);

/* A call that says by errno what it failed with. */
#define called(call)		((call) < 0 ? errno : 0)

#endif /* INJECT_H */
