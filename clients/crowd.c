// SPDX-License-Identifier: GPL-2.0
/*
 * What an attach and a detach of a loop device cost where there are many devices and
 * several processes: each process attaches its share of DEVICES loop devices and then
 * detaches them, again until all have attached at least 1,000. Prints how long each attach
 * and detach took in the fastest of ROUNDS, in microseconds. Nobody else opens the devices.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "diskseq.h"

#define FIRST		100	/* the index of the first device */
#define MAX_PROCESSES	64
#define MIN_ATTACHES	1000	/* the end of a process takes as long as ten */

static int devices, processes, repeats;
static struct loop_config config;

static int open_loop(int i)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/dev/loop%d", FIRST + i);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

static void attach(int i)
{
	int fd = open_loop(i);

	if (ioctl(fd, LOOP_CONFIGURE, &config))
		die("LOOP_CONFIGURE: %s", strerror(errno));
	close(fd);
}

static void detach(int i)
{
	int fd = open_loop(i);

	if (ioctl(fd, LOOP_CLR_FD))
		die("LOOP_CLR_FD: %s", strerror(errno));
	close(fd);
}

static void use_share(int process)
{
	int i, n;

	for (n = 0; n < repeats; n++) {
		for (i = process; i < devices; i += processes)
			attach(i);
		for (i = process; i < devices; i += processes)
			detach(i);
	}
}

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* The processes are there before the time begins. */
static int64_t round_us(void)
{
	pid_t pids[MAX_PROCESSES];
	struct gate start;
	int64_t begun, took;
	int i, failed = 0;

	gate_create(&start);
	for (i = 0; i < processes; i++) {
		pids[i] = spawn();
		if (!pids[i]) {
			gate_wait(&start);
			use_share(i);
			_exit(0);
		}
	}
	begun = now_us();
	for (i = 0; i < processes; i++)
		gate_pass(&start);
	for (i = 0; i < processes; i++)
		failed |= child_status(pids[i]);
	if (failed)
		die("a process has failed");
	took = now_us() - begun;
	close(start.fd[0]);
	close(start.fd[1]);
	return took;
}

int main(int argc, char **argv)
{
	int64_t best = INT64_MAX, took;
	int control, i, rounds;

	rounds = argc == 4 ? atoi(argv[1]) : 0;
	devices = argc == 4 ? atoi(argv[2]) : 0;
	processes = argc == 4 ? atoi(argv[3]) : 0;
	if (rounds < 1 || devices < 1 || processes < 1 || processes > MAX_PROCESSES) {
		fprintf(stderr, "usage: crowd ROUNDS DEVICES PROCESSES\n");
		return 2;
	}
	repeats = (MIN_ATTACHES + devices - 1) / devices;
	config.fd = image_create('a', 1);
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		die("/dev/loop-control: %s", strerror(errno));
	for (i = 0; i < devices; i++)
		if (ioctl(control, LOOP_CTL_ADD, FIRST + i) < 0)
			die("LOOP_CTL_ADD %d: %s", FIRST + i, strerror(errno));
	for (i = 0; i < rounds; i++) {
		took = round_us();
		if (took < best)
			best = took;
	}
	printf("%lld\n", (long long)(best / devices / repeats));
	for (i = 0; i < devices; i++)
		if (ioctl(control, LOOP_CTL_REMOVE, FIRST + i) < 0)
			die("LOOP_CTL_REMOVE %d: %s", FIRST + i, strerror(errno));
	return 0;
}
