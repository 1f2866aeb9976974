# SPDX-License-Identifier: GPL-2.0
# A 64-bit PC that runs 32-bit programs, too: the machine that everything else is built on.
CROSS_COMPILE :=
CC := gcc
IMAGE := bzImage
CONFIGS := base x86 x86_64
