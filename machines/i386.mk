# SPDX-License-Identifier: GPL-2.0
# A 32-bit PC.
CROSS_COMPILE :=
CC := gcc -m32 -I/usr/include/x86_64-linux-gnu
IMAGE := bzImage
CONFIGS := base x86 i386
