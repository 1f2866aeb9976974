// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the guest: prepares the machine, runs the programs named on the
 * kernel command line after "--", one after the other, and writes what they
 * say and how they ended to the virtio port "verdict".  Without programs it
 * is an interactive shell on the console.
 *
 * The host takes nothing on trust: it looks for an "== end" for each program
 * and for the "== done" at the end, so whatever goes wrong here only has to
 * stop this program.
 */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MODULES "/modules"

static void mount_at(const char *type, const char *dir)
{
	mkdir(dir, 0755);
	/* The kernel may have mounted devtmpfs itself. */
	if (mount(type, dir, type, 0, NULL) && errno != EBUSY)
		err(1, "mount %s", dir);
}

/* The first line of a file without its newline, "" if there is none. */
static const char *first_line(const char *path)
{
	static char line[256];
	FILE *f = fopen(path, "r");

	line[0] = '\0';
	if (f) {
		if (fgets(line, sizeof(line), f))
			line[strcspn(line, "\n")] = '\0';
		fclose(f);
	}
	return line;
}

/* What the kernel's command line says for the module NAME.ko, as modprobe looks for it. */
static void module_parameters(const char *name, char *parameters, size_t size)
{
	size_t len = strcspn(name, ".") + 1;
	FILE *f = fopen("/proc/cmdline", "r");
	char word[256];

	parameters[0] = '\0';
	while (f && fscanf(f, "%255s", word) == 1)
		if (!strncmp(word, name, len)) {
			strncat(parameters, word + len, size - strlen(parameters) - 1);
			strncat(parameters, " ", size - strlen(parameters) - 1);
		}
	if (f)
		fclose(f);
}

/* Loads the modules that MODULES/order lists, in its order, if there is one. */
static void load_modules(void)
{
	char name[128], path[256], parameters[256];
	FILE *order = fopen(MODULES "/order", "r");
	int fd;

	if (!order)
		return;
	while (fscanf(order, "%127s", name) == 1) {
		snprintf(path, sizeof(path), MODULES "/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			err(1, "%s", path);
		module_parameters(name, parameters, sizeof(parameters));
		if (syscall(SYS_finit_module, fd, parameters, 0) && errno != EEXIST)
			err(1, "finit_module %s", path);
		close(fd);
	}
	fclose(order);
}

/*
 * Makes the kernel panic, and so end the boot, where it would only complain.
 * An emulated CPU may get none for 20 seconds on a busy machine: what is stuck
 * for so long is stuck for two minutes, too.
 */
static void panic_on_trouble(void)
{
	static const struct {
		const char *path, *value;
	} knobs[] = {
		{ "/proc/sys/kernel/watchdog_thresh", "60" },
		{ "/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout", "120" },
		{ "/proc/sys/kernel/hung_task_panic", "1" },
		{ "/proc/sys/kernel/softlockup_panic", "1" },
		{ "/proc/sys/kernel/panic_on_rcu_stall", "1" },
	};
	size_t i, len;
	int fd;

	for (i = 0; i < sizeof(knobs) / sizeof(*knobs); i++) {
		fd = open(knobs[i].path, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			continue;	/* this kernel has no such knob */
		len = strlen(knobs[i].value);
		if (write(fd, knobs[i].value, len) != (ssize_t)len)
			err(1, "%s", knobs[i].path);
		close(fd);
	}
}

/* Opens the virtio port of that name. */
static int open_port(const char *name)
{
	char path[300];
	struct dirent *e;
	int tries, fd = -1;
	DIR *d;

	/* The host tells the name of a port some time after the driver binds. */
	for (tries = 0; tries < 1000 && fd < 0; tries++) {
		d = opendir("/sys/class/virtio-ports");
		while (d && fd < 0 && (e = readdir(d))) {
			snprintf(path, sizeof(path),
				 "/sys/class/virtio-ports/%s/name", e->d_name);
			if (strcmp(first_line(path), name))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", e->d_name);
			fd = open(path, O_WRONLY | O_CLOEXEC);
		}
		if (d)
			closedir(d);
		if (fd < 0)
			usleep(10000);
	}
	if (fd < 0)
		errx(1, "no virtio port named %s", name);
	return fd;
}

/* Waits for pid and, being PID 1, for every orphan that ends before it. */
static int wait_for(pid_t pid)
{
	pid_t ended;
	int status;

	do {
		ended = wait(&status);
		if (ended < 0)
			err(1, "wait");
	} while (ended != pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Runs one program with both outputs on the port. */
static int run(char *path, int port)
{
	char *argv[] = { path, NULL };
	int null, status;
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		null = open("/dev/null", O_RDONLY | O_CLOEXEC);
		if (null < 0 || dup2(null, 0) < 0 || dup2(port, 1) < 0 ||
		    dup2(port, 2) < 0 || setsid() < 0)
			err(127, "%s", path);
		execv(path, argv);
		err(127, "%s", path);
	}
	status = wait_for(pid);

	/* What it left running must not disturb the next one. */
	kill(-1, SIGKILL);
	while (wait(NULL) > 0)
		;
	return status;
}

static void run_shell(void)
{
	char *argv[] = { "sh", "-l", NULL };
	int status, tty;
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		/* Job control and Ctrl-C need a controlling terminal. */
		setsid();
		tty = open("/dev/ttyS0", O_RDWR | O_CLOEXEC);
		if (tty < 0 || ioctl(tty, TIOCSCTTY, 0) || dup2(tty, 0) < 0 ||
		    dup2(tty, 1) < 0 || dup2(tty, 2) < 0)
			err(127, "/dev/ttyS0");
		setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
		execv("/bin/sh", argv);
		err(127, "/bin/sh");
	}
	status = wait_for(pid);
	if (status == 127)
		errx(1, "no shell in this initrd");
}

/* Says whether lockdep still watches: it stops at its first report. */
static const char *lockdep_state(void)
{
	const char *state = "none";
	char line[256];
	int on;
	FILE *f = fopen("/proc/lockdep_stats", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, " debug_locks: %d", &on) == 1)
			state = on ? "on" : "off";
	if (f)
		fclose(f);
	return state;
}

#define COUNTS	"/sys/kernel/debug/gcov"
#define BLOCK	512

static int counts_port;
static size_t counts_prefix;

static void write_counts(const void *data, size_t len)
{
	ssize_t n;

	for (; len; data = (const char *)data + n, len -= n) {
		n = write(counts_port, data, len);
		if (n <= 0)
			err(1, "write to the port for counts");
	}
}

/* Reads all of a file; these say that they have no size. */
static char *read_all(const char *path, size_t *len)
{
	FILE *f = fopen(path, "r");
	size_t room = 1 << 20, n;
	char *data = NULL;

	*len = 0;
	if (!f)
		err(1, "%s", path);
	do {
		if (!data || *len == room) {
			room *= 2;
			data = realloc(data, room);
			if (!data)
				err(1, "realloc");
		}
		n = fread(data + *len, 1, room - *len, f);
		*len += n;
	} while (n);
	if (ferror(f))
		err(1, "%s", path);
	fclose(f);
	return data;
}

/* Writes one file as a member of a tar. */
static int save_counts_of(const char *path, const struct stat *st, int type,
			  struct FTW *ftw)
{
	static const char zeros[BLOCK];
	const char *name = path + counts_prefix;
	char header[BLOCK] = "", *data, *end = strrchr(path, '.');
	unsigned int i, sum = 0;
	size_t len;

	if (type != FTW_F || !end || strcmp(end, ".gcda"))
		return 0;
	if (strlen(name) >= 100)
		errx(1, "%s: too long a name for a tar", name);
	data = read_all(path, &len);
	strcpy(header, name);
	strcpy(header + 100, "0000644");
	strcpy(header + 108, "0000000");
	strcpy(header + 116, "0000000");
	sprintf(header + 124, "%011zo", len);
	sprintf(header + 136, "%011o", 0);
	memset(header + 148, ' ', 8);
	header[156] = '0';
	memcpy(header + 257, "ustar\00000", 8);
	for (i = 0; i < BLOCK; i++)
		sum += (unsigned char)header[i];
	sprintf(header + 148, "%06o", sum);
	write_counts(header, BLOCK);
	write_counts(data, len);
	write_counts(zeros, -len % BLOCK);
	free(data);
	return 0;
}

/*
 * Sends to the host how often each line was executed, if it has asked for that:
 * of the kernel that was built in OBJ, and the names relative to it.
 */
static void save_counts(const char *obj)
{
	static const char zeros[2 * BLOCK];
	char dir[PATH_MAX];

	if (!obj)
		return;
	snprintf(dir, sizeof(dir), COUNTS "%s/", obj);
	counts_prefix = strlen(dir);
	counts_port = open_port("counts");
	if (nftw(dir, save_counts_of, 8, FTW_PHYS))
		err(1, "%s", dir);
	write_counts(zeros, sizeof(zeros));
	close(counts_port);
}

static void run_all(char **programs)
{
	int status, port = open_port("verdict");
	time_t begun;

	for (; *programs; programs++) {
		dprintf(port, "== begin %s\n", *programs);
		begun = time(NULL);
		status = run(*programs, port);
		dprintf(port, "== end %s %d\n", *programs, status);
		dprintf(port, "== took %lld s\n", (long long)(time(NULL) - begun));
	}
	save_counts(getenv("DISKSEQ_COVERAGE"));
	dprintf(port, "== kernel tainted=%s lockdep=%s\n",
		first_line("/proc/sys/kernel/tainted"), lockdep_state());
	dprintf(port, "== done\n");
	close(port);
}

int main(int argc, char **argv)
{
	if (getpid() != 1)
		errx(1, "this is the guest's PID 1, not a program to run");

	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("devtmpfs", "/dev");
	mount_at("tmpfs", "/tmp");
	mount_at("tmpfs", "/run");
	if (!access("/sys/kernel/debug", F_OK))
		mount_at("debugfs", "/sys/kernel/debug");
	load_modules();
	panic_on_trouble();

	if (argc > 1)
		run_all(argv + 1);
	else
		run_shell();

	sync();
	reboot(RB_AUTOBOOT);	/* QEMU runs with -no-reboot */
	return 1;
}
