/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of zram share. A size is always the same one.
 */
#ifndef ZRAM_DEV_H
#define ZRAM_DEV_H

#include "diskseq.h"

#define SIZE_BYTES		(1024 * 1024ULL)

struct zram {
	int index;
	char name[16];		/* zram1 */
	int fd;			/* the disk, if the test has it open */
};

int zram_write(const struct zram *z, const char *file, const char *value);
void zram_read(const struct zram *z, const char *name, char *line, int size);
int zram_set_size(const struct zram *z);
int zram_reset(const struct zram *z);
bool zram_has_size(const struct zram *z);
const char *zram_missing(void);
void zram_create(struct zram *z);
int zram_hot_remove(const struct zram *z);
void zram_open(struct zram *z);
void zram_close(struct zram *z);
void zram_destroy(struct zram *z);

#endif /* ZRAM_DEV_H */
