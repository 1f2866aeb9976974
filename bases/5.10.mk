# SPDX-License-Identifier: GPL-2.0
# Linux 5.10, from Debian 11 (bullseye): the youngest long-term kernel without a diskseq.

# The source package. When the mirror has this version no more, its newest is taken.
DEB_SUITE := bullseye
DEB_PACKAGE := linux-source-5.10
DEB_VERSION := 5.10.262-1
DEB_SHA256 := 4f01148344ca9e5c1c9743ab4a084cf61c437548f803443ccc044602278b52bc

# About how many files a kernel build compiles, for the progress line; with vm/configs/base.config,
# with clients.config, too, and with deb.config, too.
FILES := 1265
CLIENTS_FILES := 1380
PACKAGED_FILES := 1400
