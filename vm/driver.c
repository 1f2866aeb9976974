// SPDX-License-Identifier: GPL-2.0
/*
 * A driver from outside of the kernel tree, built against the packaged headers and
 * loaded into the packaged kernel. It fails to load unless each disk has a number from
 * the start, a later disk a greater one.
 */
#include <linux/blkdev.h>
#include <linux/err.h>
#include <linux/module.h>

/* Kernels before 5.18 have this header, and partitions of another kind. */
#if __has_include(<linux/genhd.h>)
#include <linux/genhd.h>

static struct gendisk * __init new_disk(void)
{
	return alloc_disk(1);
}

static u64 __init number_of(struct gendisk *disk)
{
	return part_diskseq(&disk->part0);
}
#else
static struct gendisk * __init new_disk(void)
{
	return blk_alloc_disk(NULL, NUMA_NO_NODE);
}

static u64 __init number_of(struct gendisk *disk)
{
	return atomic64_read(&disk->part0->bd_diskseq);
}
#endif

static u64 __init number_of_a_disk(void)
{
	struct gendisk *disk = new_disk();
	u64 number;

	if (IS_ERR_OR_NULL(disk))
		return 0;
	number = number_of(disk);
	disk_mark_medium_changed(disk);
	put_disk(disk);
	return number;
}

static int __init driver_load(void)
{
	u64 first = number_of_a_disk();

	return first && number_of_a_disk() > first ? 0 : -EPROTO;
}
module_init(driver_load);

static void __exit driver_unload(void)
{
}
module_exit(driver_unload);

MODULE_LICENSE("GPL");
/* it would taint the kernel, and a tainted one has failed its tests */
MODULE_INFO(intree, "Y");
