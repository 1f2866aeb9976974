/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs that make disks of device mapper share.
 */
#ifndef DM_DEV_H
#define DM_DEV_H

#include <linux/dm-ioctl.h>

#include "diskseq.h"

#define DM_CONTROL		"/dev/mapper/control"

int dm_call(int control, const char *name, unsigned long command, unsigned int flags,
	    const char *type, uint64_t sectors, const char *text, dev_t *dev);

#endif /* DM_DEV_H */
