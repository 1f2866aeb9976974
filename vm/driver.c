// SPDX-License-Identifier: GPL-2.0
/*
 * A driver from outside of the kernel tree, built against the packaged headers and
 * loaded into the packaged kernel. It fails to load unless each disk has a number from
 * the start, a later disk a greater one.
 */
#include <linux/genhd.h>
#include <linux/module.h>

static u64 __init number_of_a_disk(void)
{
	struct gendisk *disk = alloc_disk(1);
	u64 number;

	if (!disk)
		return 0;
	number = part_diskseq(&disk->part0);
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
