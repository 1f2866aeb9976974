# SPDX-License-Identifier: GPL-2.0
# Linux 5.10, from Debian 11 (bullseye): the newest LTS kernel that has no diskseq.

# The source package. When the mirror has this version no more, its newest is taken.
DEB_SUITE := bullseye
DEB_PACKAGE := linux-source-5.10
DEB_VERSION := 5.10.262-1
DEB_SHA256 := 4f01148344ca9e5c1c9743ab4a084cf61c437548f803443ccc044602278b52bc

# Debian's own kernel beside it: that of this suite, and its number (none, or mainline's)
PREBUILT_SUITE := bullseye
PREBUILT_NUMBER := none
# The suite that the packages are installed in
INSTALL_SUITE := bullseye

# The posting of 2021, with five patches, was the fourth.
MAIL_PREFIX := PATCH 5.10 v5

# Rule 13: the structures that may grow by 8 bytes each, and an object that has them
SIZES := gendisk hd_struct
SIZES_OBJECT := block/genhd.o
# and functions that each I/O runs, whose instructions the series leaves as they are. Not so is
# nbd_queue_rq(), which a fix keeps from completing a request twice.
IO_PATH := block/blk-core.o:submit_bio block/blk-core.o:submit_bio_noacct block/bio.o:bio_endio \
	block/blk-mq.o:blk_mq_submit_bio block/blk-core.o:blk_update_request \
	block/blk-mq.o:blk_mq_dispatch_rq_list fs/block_dev.o:blkdev_read_iter \
	fs/block_dev.o:blkdev_write_iter drivers/block/loop.o:loop_queue_rq \
	drivers/block/loop.o:lo_complete_rq drivers/block/nbd.o:nbd_send_cmd \
	drivers/md/md.o:md_handle_request drivers/scsi/sd.o:sd_init_command drivers/scsi/sd.o:sd_done

MACHINES := x86_64 i386 arm64 s390
# About how many files a kernel build compiles, for the progress line: FILES_MACHINE without
# clients.config (SANITIZE=1, other machines), FILES_clients with it, FILES_deb with deb.config, too
FILES_x86_64 := 1265
FILES_i386 := 1200
FILES_arm64 := 885
FILES_s390 := 820
FILES_clients := 1380
FILES_deb := 1400
