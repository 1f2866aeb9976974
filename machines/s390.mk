# SPDX-License-Identifier: GPL-2.0
# A 64-bit IBM mainframe, which is big-endian. Others than the kernel call it s390x.
CROSS_COMPILE := s390x-linux-gnu-
CC := $(CROSS_COMPILE)gcc
IMAGE := bzImage
CONFIGS := base s390
