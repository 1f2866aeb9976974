# SPDX-License-Identifier: GPL-2.0
# A 64-bit ARM machine.
CROSS_COMPILE := aarch64-linux-gnu-
CC := $(CROSS_COMPILE)gcc
IMAGE := Image
CONFIGS := base arm64
