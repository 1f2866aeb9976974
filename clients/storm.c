// SPDX-License-Identifier: GPL-2.0
/*
 * Several processes attach and detach images with 0 to 3 partitions, CYCLES
 * times in all, on loop devices that they share with each other, without regard
 * for anybody.  Each finds its own number after its own attach, and no other one
 * as long as it has the device open.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "diskseq.h"

#define IMAGES	4

static int images[IMAGES];
static int *cycles;		/* that are left, shared */

static int attach(int fd, int image)
{
	struct loop_config config = {
		.fd = image,
		.info.lo_flags = LO_FLAGS_PARTSCAN,
	};

	return ioctl(fd, LOOP_CONFIGURE, &config);
}

static void cycle(const char *path)
{
	uint64_t number;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	/* newer kernels refuse it between LOOP_CLR_FD and the last close */
	if (fd < 0 && errno == ENXIO) {
		poll(NULL, 0, 1);
		return;
	}
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	if (attach(fd, images[rand() % IMAGES])) {
		if (errno != EBUSY)
			die("%s: LOOP_CONFIGURE: %s", path, strerror(errno));
		close(fd);
		poll(NULL, 0, 1);
		return;
	}
	__atomic_sub_fetch(cycles, 1, __ATOMIC_RELAXED);
	number = diskseq(fd);
	poll(NULL, 0, rand() % 20);
	if (diskseq(fd) != number)
		die("%s: the number went from %llu to %llu while attached", path,
		    (unsigned long long)number, (unsigned long long)diskseq(fd));
	if (ioctl(fd, LOOP_CLR_FD))
		die("%s: LOOP_CLR_FD: %s", path, strerror(errno));
	close(fd);
}

int main(int argc, char **argv)
{
	int processes, i, failed = 0;
	pid_t pids[64];

	if (argc < 4) {
		fprintf(stderr, "usage: storm CYCLES PROCESSES LOOP...\n");
		return 2;
	}
	cycles = shared_memory(sizeof(*cycles));
	*cycles = atoi(argv[1]);
	processes = atoi(argv[2]);
	if (processes > 64)
		die("at most 64 processes");
	for (i = 0; i < IMAGES; i++) {
		images[i] = image_create('a' + i, 1);
		if (i)
			image_table(images[i], 0, TABLE_GPT, i, "storm");
	}
	for (i = 0; i < processes; i++) {
		pids[i] = spawn();
		if (!pids[i]) {
			srand(i);
			while (__atomic_load_n(cycles, __ATOMIC_RELAXED) > 0)
				cycle(argv[3 + rand() % (argc - 3)]);
			_exit(0);
		}
	}
	for (i = 0; i < processes; i++)
		failed |= child_status(pids[i]);
	return !!failed;
}
