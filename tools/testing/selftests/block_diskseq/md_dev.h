/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs that make md arrays share: the steps of an assembly by ioctls,
 * without superblocks, of disks that have the size of an image. They return the errno.
 */
#ifndef MD_DEV_H
#define MD_DEV_H

int md_set_info(int fd, int level, int disks);
int md_add_disk(int fd, int disk, int nr);
int md_run(int fd);

#endif /* MD_DEV_H */
