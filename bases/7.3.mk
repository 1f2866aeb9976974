# SPDX-License-Identifier: GPL-2.0
# Linux 7.3, from Debian 13's backports: today's kernel, which has mainline's number.

# The source package. Backports have only their newest version, and not 7.3 when they have 7.4.
DEB_SUITE := trixie-backports
DEB_PACKAGE := linux-source-7.3
DEB_VERSION := 7.3.4-1~bpo13+1
DEB_SHA256 := 703e369ddd4cce971452f5a593ee55df3a5c10c83caf0fa0df039633ed181ee3

# Debian's own kernel beside it: that of this suite, and its number (none, or mainline's)
PREBUILT_SUITE := trixie-backports
PREBUILT_NUMBER := mainline
# The suite that the packages are installed in
INSTALL_SUITE := trixie

MAIL_PREFIX := PATCH

# Rule 13: the structures that may grow by 8 bytes each, and an object that has them
SIZES := gendisk block_device
SIZES_OBJECT := block/genhd.o
# and functions that each I/O runs, whose instructions the series leaves as they are. Not so is
# loop_queue_rq(), which compares the state with another value.
IO_PATH := block/blk-core.o:submit_bio block/blk-core.o:submit_bio_noacct block/bio.o:bio_endio \
	block/blk-mq.o:blk_mq_submit_bio block/blk-mq.o:blk_update_request \
	block/blk-mq.o:blk_mq_dispatch_rq_list block/fops.o:blkdev_read_iter \
	block/fops.o:blkdev_write_iter drivers/block/loop.o:loop_process_work \
	drivers/block/loop.o:lo_rw_aio_complete drivers/block/loop.o:lo_complete_rq \
	drivers/block/nbd.o:nbd_queue_rq drivers/block/nbd.o:recv_work \
	drivers/block/zram/zram_drv.o:zram_submit_bio drivers/md/md.o:md_handle_request drivers/scsi/sd.o:sd_init_command drivers/scsi/sd.o:sd_done

MACHINES := x86_64 i386 arm64 s390
# About how many files a kernel build compiles, for the progress line: FILES_MACHINE without
# clients.config (SANITIZE=1, other machines), FILES_clients with it, FILES_deb with deb.config, too
FILES_x86_64 := 1265
FILES_i386 := 1270
FILES_arm64 := 950
FILES_s390 := 880
FILES_clients := 1450
FILES_deb := 1500
