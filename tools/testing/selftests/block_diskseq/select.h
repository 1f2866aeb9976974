/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Runs those tests of a program whose names match DISKSEQ_TESTS in the
 * environment, which older harnesses have no option for: the name of a test
 * ("r8_*"), or that with its fixture and variant ("*.netlink.r8_*").
 */
#ifndef DISKSEQ_SELECT_H
#define DISKSEQ_SELECT_H

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keep of a list of the harness, of which only prev is circular, what matches. */
#define select_from(head, item, matches)			\
do {								\
	__typeof__(head) next, last = NULL;			\
								\
	for (item = (head), (head) = NULL; item; item = next) {	\
		next = item->next;				\
		if (!(matches))					\
			continue;				\
		if (last)					\
			last->next = item;			\
		else						\
			(head) = item;				\
		item->prev = last;				\
		item->next = NULL;				\
		last = item;					\
	}							\
	if (head)						\
		(head)->prev = last;				\
} while (0)

static inline bool select_owner(const char *pattern, const char *fixture,
				const char *variant)
{
	char name[256];

	snprintf(name, sizeof(name), "%s%s%s", fixture, variant ? "." : "",
		 variant ?: "");
	return !fnmatch(pattern, name, 0);
}

static inline void select_tests(void)
{
	const char *pattern = getenv("DISKSEQ_TESTS"), *test;
	struct __fixture_variant_metadata *v;
	struct __fixture_metadata *f;
	struct __test_metadata *t;
	char owner[256] = "";

	if (!pattern)
		return;
	test = strrchr(pattern, '.');
	if (test)
		snprintf(owner, sizeof(owner), "%.*s", (int)(test - pattern), pattern);
	test = test ? test + 1 : pattern;

	for (f = __fixture_list; f; f = f->next) {
		select_from(f->tests, t, !fnmatch(test, t->name, 0));
		if (!*owner)
			continue;
		if (f->variant) {
			select_from(f->variant, v, select_owner(owner, f->name, v->name));
			if (!f->variant)
				f->tests = NULL;
		} else if (!select_owner(owner, f->name, NULL)) {
			f->tests = NULL;
		}
	}
}

/* What TEST_HARNESS_MAIN calls when all tests are known. */
#define test_harness_run(argc, argv)	(select_tests(), test_harness_run(argc, argv))

#endif /* DISKSEQ_SELECT_H */
