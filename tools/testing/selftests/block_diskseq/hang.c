// SPDX-License-Identifier: GPL-2.0
/*
 * Nobody hangs because a number is taken and announced (rule 14): a server of nbd
 * that does not answer, or not before the call has returned that connects to it,
 * keeps neither that call nor the end of the connection waiting, whoever has the
 * disk open, reads it, has it scanned for partitions, or waits for its number.
 * Nor does a loop device that waits for a server when it gets another medium keep
 * that server waiting, if it has the device open and closes it or attaches it
 * itself, nor one that is scanned a server that sets its size; nor do those wait for
 * each other who use it.
 *
 * Each wait has a limit. Then a guard tells where in the kernel the test is, and
 * has the server go, which ends what waits for it.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "nbd_dev.h"

#define BLOCK			4096
#define READERS			2
#define WRITERS			4
/* of connecting and disconnecting, in each test */
#define ROUNDS_MS		2000

struct guard {
	int64_t until;		/* 0: nobody waits */
	int fired;
};

/* What a server does before somebody tells it otherwise. */
enum server { SILENT, LATE, SLOW, DYING };

FIXTURE(server) {
	struct nbd n;
	struct guard *guard;
	int *reads;		/* that were answered, of all readers */
	pid_t guardian;
	pid_t reader[READERS];
};

FIXTURE_VARIANT(server) {
	enum server server;
	/* NULL for a connection over netlink */
	int (*end)(struct nbd *n);
};

/* An open that comes now may have to wait for the server. */
static int op_clear_sock_from_before(struct nbd *n)
{
	int err = ioctl(n->fd, NBD_CLEAR_SOCK) ? errno : 0;

	nbd_close(n);
	client_ended(n);
	return err;
}

static int op_disconnect(struct nbd *n)
{
	return by_fd(n, NBD_DISCONNECT, 0);
}

FIXTURE_VARIANT_ADD(server, silent_by_netlink) {
	.server = SILENT,
};

FIXTURE_VARIANT_ADD(server, late_by_netlink) {
	.server = LATE,
};

FIXTURE_VARIANT_ADD(server, slow_by_netlink) {
	.server = SLOW,
};

FIXTURE_VARIANT_ADD(server, dying_by_netlink) {
	.server = DYING,
};

FIXTURE_VARIANT_ADD(server, silent_client_killed) {
	.server = SILENT,
	.end = op_client_dies,
};

FIXTURE_VARIANT_ADD(server, silent_server_dies) {
	.server = SILENT,
	.end = op_server_dies,
};

FIXTURE_VARIANT_ADD(server, silent_sockets_cleared) {
	.server = SILENT,
	.end = op_clear_sock_from_before,
};

FIXTURE_VARIANT_ADD(server, late_client_killed) {
	.server = LATE,
	.end = op_client_dies,
};

FIXTURE_VARIANT_ADD(server, slow_disconnected) {
	.server = SLOW,
	.end = op_disconnect,
};

FIXTURE_VARIANT_ADD(server, dying_by_ioctl) {
	.server = DYING,
	.end = op_server_dies,
};

static void guard_begin(struct guard *guard)
{
	__atomic_store_n(&guard->until, now_ms() + limit_ms(), __ATOMIC_SEQ_CST);
}

static void guard_end(struct guard *guard)
{
	__atomic_store_n(&guard->until, 0, __ATOMIC_SEQ_CST);
}

static pid_t start_guardian(struct guard *guard, struct orders *orders)
{
	pid_t pid, test = getpid();
	int64_t until;

	pid = spawn();
	if (pid)
		return pid;
	for (;;) {
		poll(NULL, 0, 10);
		until = __atomic_load_n(&guard->until, __ATOMIC_SEQ_CST);
		if (!until || now_ms() < until)
			continue;
		guard_end(guard);
		guard->fired = 1;
		tell_where(test);
		__atomic_store_n(&orders->leave, 1, __ATOMIC_SEQ_CST);
	}
}

/* Others, who do not end by themselves. */

/*
 * Has it open before there is something to read, and until there is no more. But
 * not for ever: nobody can connect it again as long as it is open.
 */
static void wait_and_read(const char *disk, int *reads)
{
	char buf[BLOCK];
	int64_t end;
	ssize_t len;
	int fd;

	for (;;) {
		fd = disk_open(disk, 0, O_RDONLY);
		end = now_ms() + 50;
		do {
			len = pread(fd, buf, BLOCK, 0);
			if (len == BLOCK)
				__atomic_fetch_add(reads, 1, __ATOMIC_SEQ_CST);
			/* cached, it would not be asked for */
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		} while (len > 0 || (!len && now_ms() < end));
		close(fd);
		poll(NULL, 0, 1);
	}
}

static void open_and_read(const char *disk, int *reads)
{
	char buf[BLOCK];
	int fd;

	for (;;) {
		fd = disk_open(disk, 0, O_RDONLY);
		if (pread(fd, buf, BLOCK, 0) == BLOCK)
			__atomic_fetch_add(reads, 1, __ATOMIC_SEQ_CST);
		close(fd);
		poll(NULL, 0, 1);
	}
}

static void rescan_always(const char *disk, int *reads)
{
	int fd;

	for (;;) {
		fd = disk_open(disk, 0, O_RDONLY);
		ioctl(fd, BLKRRPART);
		close(fd);
		poll(NULL, 0, 1);
	}
}

static void wait_always(const char *disk, int *reads)
{
	int sysfs = diskseq_open_sysfs(disk);

	for (;;) {
		diskseq_read(sysfs);
		diskseq_wait(sysfs, 100);
	}
}

static pid_t start(FIXTURE_DATA(server) *self,
		   void (*fn)(const char *disk, int *reads))
{
	pid_t pid = spawn();

	if (!pid)
		fn(self->n.name, self->reads);
	return pid;
}

FIXTURE_SETUP(server)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	self->guard = shared_memory(sizeof(*self->guard));
	self->reads = shared_memory(sizeof(*self->reads));
	self->guardian = start_guardian(self->guard, self->n.orders);
}

FIXTURE_TEARDOWN(server)
{
	int i;

	guard_end(self->guard);
	self->n.orders->leave = 1;
	for (i = 0; i < READERS; i++) {
		if (!self->reader[i])
			continue;
		kill(self->reader[i], SIGKILL);
		EXPECT_TRUE(ends(self->reader[i]));
	}
	nbd_destroy(&self->n);
	kill(self->guardian, SIGKILL);
	child_status(self->guardian);
}

/* Connects, again and again while others have it open since the last time. */
static int connect_it(FIXTURE_DATA(server) *self,
		      const FIXTURE_VARIANT(server) *variant)
{
	int64_t end = now_ms() + limit_ms();
	struct nbd *n = &self->n;
	int err;

	do {
		guard_begin(self->guard);
		if (variant->end == op_clear_sock_from_before) {
			nbd_close(n);
			nbd_open(n);
		}
		if (variant->end)
			err = connect_by_ioctl(n, n->image[0],
					       NBD_FLAG_HAS_FLAGS);
		else
			err = connect_by_netlink(n, n->image[0],
						 NBD_FLAG_HAS_FLAGS, 0, 1);
		guard_end(self->guard);
	} while (err == EBUSY && !self->guard->fired && now_ms() < end);
	return err;
}

static int end_it(FIXTURE_DATA(server) *self,
		  const FIXTURE_VARIANT(server) *variant)
{
	int err;

	guard_begin(self->guard);
	err = variant->end ? variant->end(&self->n) :
			     op_disconnect_by_netlink(&self->n);
	client_ended(&self->n);
	guard_end(self->guard);
	end_server(&self->n, 0);
	return err;
}

/* Returns how many times it has connected and disconnected. */
static int rounds(FIXTURE_DATA(server) *self,
		  const FIXTURE_VARIANT(server) *variant,
		  struct __test_metadata *_metadata)
{
	int64_t end = now_ms() + ROUNDS_MS;
	struct orders *orders = self->n.orders;
	uint64_t before;
	int round;

	/* a busy machine may take longer for the first one */
	for (round = 0; round < 2 || now_ms() < end; round++) {
		orders->silent = variant->server == SILENT ||
				 variant->server == LATE;
		orders->delay_ms = variant->server == SLOW ? 20 : 0;
		orders->die_after = variant->server == DYING ? 1 : 0;
		before = diskseq_sysfs(self->n.name);
		ASSERT_EQ(0, connect_it(self, variant)) {
			TH_LOG("round %d", round);
		}
		EXPECT_LT(before, diskseq_sysfs(self->n.name));
		if (variant->server == LATE)
			orders->silent = 0;

		/* whoever else uses generic netlink is not kept waiting */
		guard_begin(self->guard);
		EXPECT_LT(0, nbd_family());
		guard_end(self->guard);

		poll(NULL, 0, variant->server == SLOW ? 50 : round % 8);
		ASSERT_EQ(0, end_it(self, variant)) {
			TH_LOG("round %d", round);
		}
		ASSERT_FALSE(self->guard->fired) {
			TH_LOG("round %d", round);
		}
	}
	return round;
}

TEST_F(server, r14_keeps_nobody_waiting_who_reads)
{
	self->reader[0] = start(self, variant->end ? wait_and_read : open_and_read);
	self->reader[1] = start(self, wait_always);
	ASSERT_LT(1, rounds(self, variant, _metadata));
	if (variant->server == SLOW) {
		EXPECT_LT(0, *self->reads);
	}
}

TEST_F(server, r14_keeps_nobody_waiting_who_opens_it)
{
	self->reader[0] = start(self, open_and_read);
	self->reader[1] = start(self, open_and_read);
	ASSERT_LT(1, rounds(self, variant, _metadata));
}

TEST_F(server, r14_keeps_nobody_waiting_who_scans_it)
{
	self->reader[0] = start(self, rescan_always);
	self->reader[1] = start(self, open_and_read);
	ASSERT_LT(1, rounds(self, variant, _metadata));
}

/*
 * A loop device whose new medium has to wait for a server, which closes the device
 * before it answers. To open it would not do: from 6.11 on, that takes the mutex
 * under which the medium changes, without the series, too.
 */
FIXTURE(closing) {
	struct nbd n;
	struct loop lo;
	struct monitor mon;
	int disk;		/* that of the server */
	int image;		/* a file of the same size */
	int part;
	pid_t reader;
	int *ret;		/* of the one who reads, shared */
	int *err;		/* of the one who changes the medium, shared */
};

FIXTURE_VARIANT(closing) {
	/* before the server falls silent, and after that */
	void (*attach)(FIXTURE_DATA(closing) *self);
	void (*use)(FIXTURE_DATA(closing) *self);
	int (*change)(FIXTURE_DATA(closing) *self);
	bool writes;		/* what the server has to have in the end */
};

#define READERS			4
#define READ_MS			100
#define WRITTEN_AT		(2 * BLOCK)
#define PART_AT			(WRITTEN_AT / SECTOR)

/* Direct, or what it writes would wait in the other device's cache. */
static void attach_server(FIXTURE_DATA(closing) *self)
{
	loop_attach(&self->lo, self->disk, LO_FLAGS_DIRECT_IO);
}

static void attach_server_with_part(FIXTURE_DATA(closing) *self)
{
	loop_attach(&self->lo, self->disk, LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN);
	if (blkpg_add(self->lo.fd, 1, PART_AT, BLOCK / SECTOR))
		die("%s: BLKPG: %s", self->lo.name, strerror(errno));
	self->part = loop_open_part(&self->lo, 1, O_RDWR);
}

static void attach_server_ro(FIXTURE_DATA(closing) *self)
{
	loop_attach(&self->lo, self->disk, LO_FLAGS_DIRECT_IO | LO_FLAGS_READ_ONLY);
}

static void attach_file_ro(FIXTURE_DATA(closing) *self)
{
	loop_attach(&self->lo, self->image, LO_FLAGS_READ_ONLY);
}

static void write_block(int fd, off_t offset)
{
	char buf[BLOCK];

	memset(buf, 'w', BLOCK);
	if (pwrite(fd, buf, BLOCK, offset) != BLOCK)
		die("write: %s", strerror(errno));
}

static void write_to_loop(FIXTURE_DATA(closing) *self)
{
	write_block(self->lo.fd, WRITTEN_AT);
}

static void write_to_part(FIXTURE_DATA(closing) *self)
{
	write_block(self->part, 0);
}

static void write_to_disk(FIXTURE_DATA(closing) *self)
{
	write_block(self->disk, WRITTEN_AT);
}

static void read_block(FIXTURE_DATA(closing) *self)
{
	char buf[BLOCK];

	self->reader = spawn();
	if (!self->reader) {
		*self->ret = pread(self->lo.fd, buf, BLOCK, IMAGE_BYTES - BLOCK);
		_exit(0);
	}
	if (!waits_in(self->reader, SYS_pread64))
		die("%s: does not wait for its server", self->lo.name);
}

static int change_offset(FIXTURE_DATA(closing) *self)
{
	struct loop_info64 info;
	int err;

	loop_get_status(&self->lo, &info);
	info.lo_offset += BLOCK;
	do
		err = ioctl(self->lo.fd, LOOP_SET_STATUS64, &info) ? errno : 0;
	while (err == EAGAIN);
	return err;
}

static int change_to_file(FIXTURE_DATA(closing) *self)
{
	return ioctl(self->lo.fd, LOOP_CHANGE_FD, self->image) ? errno : 0;
}

static int change_to_server(FIXTURE_DATA(closing) *self)
{
	return ioctl(self->lo.fd, LOOP_CHANGE_FD, self->disk) ? errno : 0;
}

FIXTURE_VARIANT_ADD(closing, offset_after_a_write) {
	.attach = attach_server,
	.use = write_to_loop,
	.change = change_offset,
	.writes = true,
};

FIXTURE_VARIANT_ADD(closing, offset_after_a_write_to_a_partition) {
	.attach = attach_server_with_part,
	.use = write_to_part,
	.change = change_offset,
	.writes = true,
};

FIXTURE_VARIANT_ADD(closing, offset_during_a_read) {
	.attach = attach_server,
	.use = read_block,
	.change = change_offset,
};

FIXTURE_VARIANT_ADD(closing, change_fd_during_a_read) {
	.attach = attach_server_ro,
	.use = read_block,
	.change = change_to_file,
};

FIXTURE_VARIANT_ADD(closing, change_fd_after_a_write) {
	.attach = attach_file_ro,
	.use = write_to_disk,
	.change = change_to_server,
	.writes = true,
};

/* For what kernels do until then, with the series as without it. */
static bool before_version_5(int minor)
{
	struct utsname name;
	int have_major, have_minor;

	return !uname(&name) &&
	       sscanf(name.release, "%d.%d", &have_major, &have_minor) == 2 &&
	       (have_major < 5 || (have_major == 5 && have_minor < minor));
}

FIXTURE_SETUP(closing)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	if (before_version_5(18))
		SKIP_SETUP("to close a loop device takes its mutex: until 5.18");
	self->part = -1;
	self->ret = shared_memory(sizeof(*self->ret));
	self->err = shared_memory(sizeof(*self->err));
	self->image = image_create('c', 1);
	loop_create(&self->lo);
	nbd_create(&self->n, MAX_INDEX);
	/* the server begins with what the test has open, which is this alone */
	self->n.held = loop_open(&self->lo, O_RDONLY);
	loop_close(&self->lo);
	by_netlink(&self->n);
	loop_reopen(&self->lo);
	close(self->n.held);
	self->n.held = -1;
	self->disk = disk_open(self->n.name, 0, O_RDWR);
	variant->attach(self);
	monitor_open(&self->mon, self->lo.name);
}

FIXTURE_TEARDOWN(closing)
{
	self->n.orders->leave = 1;
	if (self->part >= 0)
		close(self->part);
	/* it may have the loop device open still */
	end_server(&self->n, 0);
	loop_destroy(&self->lo);
	close(self->disk);
	close(self->image);
	monitor_close(&self->mon);
	nbd_destroy(&self->n);
}

static bool server_has(const struct nbd *n)
{
	char buf[BLOCK], want[BLOCK];

	memset(want, 'w', BLOCK);
	return pread(n->image[0], buf, BLOCK, WRITTEN_AT) == BLOCK &&
	       !memcmp(buf, want, BLOCK);
}

TEST_F(closing, r14_gets_its_new_medium)
{
	struct orders *orders = self->n.orders;
	uint64_t before = next_number();
	bool ended;
	pid_t pid;

	__atomic_store_n(&orders->silent, 1, __ATOMIC_SEQ_CST);
	variant->use(self);
	monitor_drop(&self->mon);
	pid = spawn();
	if (!pid) {
		*self->err = variant->change(self);
		_exit(0);
	}
	EXPECT_TRUE(waits_in(pid, SYS_ioctl));
	__atomic_store_n(&orders->close, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&orders->silent, 0, __ATOMIC_SEQ_CST);

	ended = ends(pid);
	EXPECT_TRUE(ended);
	if (!ended) {
		/* its I/O fails then, so that it and the server go on */
		tell_where(self->n.server[0]);
		disconnect_index(self->n.index);
		ASSERT_TRUE(ends(pid));
	}
	EXPECT_EQ(0, *self->err);
	if (self->reader) {
		EXPECT_TRUE(ends(self->reader));
		EXPECT_EQ(BLOCK, *self->ret);
	}
	EXPECT_EQ(before + 1, diskseq_sysfs(self->lo.name));
	EXPECT_STREQ("change disk +1 media", events(&self->mon, before));
	EXPECT_EQ(variant->writes, server_has(&self->n));
}

/* A loop device that others read, whose next file a server has who does not answer. */
FIXTURE(silent) {
	struct nbd n;
	struct loop lo;
	struct monitor mon;
	int disk;		/* that of the server */
	int image;		/* a file of the same size */
	pid_t reader[READERS];
};

FIXTURE_SETUP(silent)
{
	const char *missing = nbd_missing();
	int i;

	if (missing)
		SKIP_SETUP("%s", missing);
	self->image = image_create('c', 1);
	nbd_create(&self->n, MAX_INDEX);
	by_netlink(&self->n);
	self->disk = disk_open(self->n.name, 0, O_RDONLY);
	loop_create(&self->lo);
	loop_attach(&self->lo, self->image, LO_FLAGS_READ_ONLY);
	monitor_open(&self->mon, self->lo.name);
	for (i = 0; i < READERS; i++) {
		self->reader[i] = spawn();
		/* from the file, not from the cache */
		while (!self->reader[i]) {
			char buf[BLOCK];

			posix_fadvise(self->lo.fd, i * BLOCK, BLOCK, POSIX_FADV_DONTNEED);
			if (pread(self->lo.fd, buf, BLOCK, i * BLOCK) != BLOCK)
				_exit(1);
		}
	}
}

FIXTURE_TEARDOWN(silent)
{
	int i;

	__atomic_store_n(&self->n.orders->silent, 0, __ATOMIC_SEQ_CST);
	for (i = 0; i < READERS; i++)
		end_child(self->reader[i]);
	loop_destroy(&self->lo);
	close(self->disk);
	close(self->image);
	monitor_close(&self->mon);
	nbd_destroy(&self->n);
}

/* It may be the server who calls. */
TEST_F(silent, r14_change_fd_does_not_wait_for_what_is_read)
{
	uint64_t before = next_number();
	pid_t pid;

	poll(NULL, 0, READ_MS);
	__atomic_store_n(&self->n.orders->silent, 1, __ATOMIC_SEQ_CST);
	pid = spawn();
	if (!pid)
		_exit(ioctl(self->lo.fd, LOOP_CHANGE_FD, self->disk) ? errno : 0);
	ASSERT_TRUE(ends(pid));
	EXPECT_STREQ("change disk +1 media", events(&self->mon, before));
	EXPECT_EQ(before + 1, diskseq_sysfs(self->lo.name));
}

/*
 * A loop device that is scanned for partitions, which waits for a server that wants
 * to tell the device its new size first.
 */
FIXTURE(scan) {
	struct nbd n;
	struct loop lo;
	int disk;		/* that of the server */
	pid_t scanner;
	int *err;		/* of the one who sets the size, shared */
};

FIXTURE_SETUP(scan)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	self->err = shared_memory(sizeof(*self->err));
	loop_create(&self->lo);
	nbd_create(&self->n, MAX_INDEX);
	by_netlink(&self->n);
	self->disk = disk_open(self->n.name, 0, O_RDWR);
	loop_attach(&self->lo, self->disk, LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN);
}

FIXTURE_TEARDOWN(scan)
{
	self->n.orders->silent = 0;
	self->n.orders->leave = 1;
	EXPECT_TRUE(!self->scanner || ends(self->scanner));
	loop_destroy(&self->lo);
	close(self->disk);
	nbd_destroy(&self->n);
}

TEST_F(scan, r14_size_can_be_set_meanwhile)
{
	struct orders *orders = self->n.orders;
	pid_t pid;

	__atomic_store_n(&orders->silent, 1, __ATOMIC_SEQ_CST);
	self->scanner = spawn();
	if (!self->scanner) {
		ioctl(self->lo.fd, BLKRRPART);
		_exit(0);
	}
	ASSERT_TRUE(waits_in(self->scanner, SYS_ioctl));

	pid = spawn();
	if (!pid) {
		*self->err = ioctl(self->lo.fd, LOOP_SET_CAPACITY) ? errno : 0;
		_exit(0);
	}
	EXPECT_TRUE(ends(pid)) {
		__atomic_store_n(&orders->silent, 0, __ATOMIC_SEQ_CST);
		child_status(pid);
	}
	EXPECT_EQ(0, *self->err);
}

/*
 * A device that gets another size while its server owes somebody an answer, so that
 * whoever sets the size waits for that, too. (If the server dies instead, they wait for
 * ever without the series.)
 */
FIXTURE(size) {
	struct nbd n;
	pid_t reader;
	pid_t setter;
};

FIXTURE_SETUP(size)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	by_ioctl(&self->n);
}

FIXTURE_TEARDOWN(size)
{
	/* the answer */
	self->n.orders->silent = 0;
	EXPECT_TRUE(!self->reader || ends(self->reader));
	EXPECT_TRUE(!self->setter || ends(self->setter));
	nbd_destroy(&self->n);
}

TEST_F(size, r14_killed_client_keeps_nobody_waiting)
{
	char buf[BLOCK];
	int fd;

	fd = disk_open(self->n.name, 0, O_RDWR);
	__atomic_store_n(&self->n.orders->silent, 1, __ATOMIC_SEQ_CST);
	self->reader = spawn();
	if (!self->reader)
		_exit(pread(fd, buf, BLOCK, IMAGE_BYTES / 4) > 0);
	ASSERT_TRUE(waits_in(self->reader, SYS_pread64));
	self->setter = spawn();
	if (!self->setter) {
		ioctl(fd, NBD_SET_SIZE, IMAGE_BYTES / 2);
		_exit(0);
	}
	close(fd);
	if (!waits_in(self->setter, SYS_ioctl)) {
		ASSERT_TRUE(ends(self->setter));
		self->setter = 0;
		SKIP(return, "kernel where a new size waits for nobody");
	}

	EXPECT_EQ(0, op_client_dies(&self->n));
	EXPECT_TRUE(ends(self->reader));
	EXPECT_TRUE(ends(self->setter));
	self->reader = 0;
	self->setter = 0;
}

/*
 * Whoever attaches a loop device to a server may be the server itself, which answers
 * nobody until the call has returned. Others write to the medium at once, and sync.
 */
FIXTURE(attach) {
	struct nbd n;
	struct loop lo;
	int disk;		/* that of the server */
	pid_t writer[WRITERS];
	int *attaches;		/* that have begun, shared */
	int *err;		/* of the one who attaches, shared */
};

/* Once for each attach. */
static void write_and_sync(const FIXTURE_DATA(attach) *self, int which)
{
	char buf[BLOCK] = "";
	int fd, seen = 0;

	for (;;) {
		while (__atomic_load_n(self->attaches, __ATOMIC_SEQ_CST) == seen)
			poll(NULL, 0, 1);
		seen++;
		fd = loop_open(&self->lo, O_RDWR);
		while (pwrite(fd, buf, BLOCK, which * BLOCK) != BLOCK)
			continue;
		sync();
		close(fd);
	}
}

/* When the last of those who have it open has closed it. */
static void reopen_detached(struct loop *lo)
{
	int64_t end = now_ms() + limit_ms();
	struct loop_info64 info;

	do {
		if (now_ms() > end)
			die("%s: stays attached", lo->name);
		loop_close(lo);
		poll(NULL, 0, 1);
		lo->fd = open(lo->path, O_RDWR | O_CLOEXEC);
	} while (lo->fd < 0 || !ioctl(lo->fd, LOOP_GET_STATUS64, &info));
}

FIXTURE_SETUP(attach)
{
	const char *missing = nbd_missing();
	int i;

	if (missing)
		SKIP_SETUP("%s", missing);
	self->attaches = shared_memory(sizeof(*self->attaches));
	self->err = shared_memory(sizeof(*self->err));
	loop_create(&self->lo);
	nbd_create(&self->n, MAX_INDEX);
	/* neither the server nor a writer keeps it open */
	loop_close(&self->lo);
	by_netlink(&self->n);
	for (i = 0; i < WRITERS; i++) {
		self->writer[i] = spawn();
		if (!self->writer[i])
			write_and_sync(self, i);
	}
	loop_reopen(&self->lo);
	self->disk = disk_open(self->n.name, 0, O_RDWR | O_DIRECT);
}

FIXTURE_TEARDOWN(attach)
{
	int i;

	self->n.orders->silent = 0;
	self->n.orders->leave = 1;
	for (i = 0; i < WRITERS; i++) {
		kill(self->writer[i], SIGKILL);
		EXPECT_TRUE(ends(self->writer[i]));
	}
	loop_destroy(&self->lo);
	close(self->disk);
	nbd_destroy(&self->n);
}

TEST_F(attach, r14_returns_before_the_server_answers)
{
	struct orders *orders = self->n.orders;
	int64_t end = now_ms() + 3 * ROUNDS_MS;
	bool ended = true;
	pid_t pid;

	while (ended && (*self->attaches < 10 || now_ms() < end)) {
		__atomic_store_n(&orders->silent, 1, __ATOMIC_SEQ_CST);
		__atomic_fetch_add(self->attaches, 1, __ATOMIC_SEQ_CST);
		pid = spawn();
		if (!pid) {
			*self->err = loop_configure(&self->lo, self->disk,
						    LO_FLAGS_DIRECT_IO) ? errno : 0;
			_exit(0);
		}
		ended = ends(pid);
		EXPECT_TRUE(ended) {
			TH_LOG("the attach number %d", *self->attaches);
			tell_where(pid);
		}
		__atomic_store_n(&orders->silent, 0, __ATOMIC_SEQ_CST);
		if (!ended)
			child_status(pid);
		ASSERT_EQ(0, *self->err);
		ioctl(self->lo.fd, LOOP_CLR_FD);
		reopen_detached(&self->lo);
	}
}

/*
 * LOOP_CHANGE_FD waits for the server of its new file, with the lock that whoever
 * attaches a loop device to another one needs.
 */
FIXTURE(stacked) {
	struct nbd n;
	struct loop changed;	/* to the one below */
	struct loop below;	/* on nbd */
	struct loop other;
	struct loop lo;		/* is attached to the other one */
	int disk;
	int image;
	pid_t changer;
	pid_t attacher;
};

FIXTURE_SETUP(stacked)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	if (before_version_5(13))
		SKIP_SETUP("each open of a loop device takes the lock of all");
	/* first, so that the server has none of the others open */
	nbd_create(&self->n, MAX_INDEX);
	by_netlink(&self->n);
	loop_create(&self->changed);
	loop_create(&self->below);
	loop_create(&self->other);
	loop_create(&self->lo);
	self->disk = disk_open(self->n.name, 0, O_RDWR);
	loop_attach(&self->below, self->disk, LO_FLAGS_DIRECT_IO);
	self->image = image_create('c', 1);
	loop_attach(&self->changed, self->image, LO_FLAGS_READ_ONLY);
	loop_attach(&self->other, self->image, 0);
}

FIXTURE_TEARDOWN(stacked)
{
	self->n.orders->silent = 0;
	self->n.orders->leave = 1;
	EXPECT_TRUE(!self->changer || ends(self->changer));
	EXPECT_TRUE(!self->attacher || ends(self->attacher));
	loop_destroy(&self->lo);
	loop_destroy(&self->changed);
	loop_destroy(&self->other);
	loop_destroy(&self->below);
	close(self->image);
	close(self->disk);
	nbd_destroy(&self->n);
}

TEST_F(stacked, r14_attach_keeps_nobody_waiting_who_opens_it)
{
	char buf[BLOCK] = "";
	pid_t pid;

	ASSERT_EQ(BLOCK, pwrite(self->below.fd, buf, BLOCK, 0));
	__atomic_store_n(&self->n.orders->silent, 1, __ATOMIC_SEQ_CST);
	self->changer = spawn();
	if (!self->changer) {
		ioctl(self->changed.fd, LOOP_CHANGE_FD, self->below.fd);
		_exit(0);
	}
	ASSERT_TRUE(waits_in(self->changer, SYS_ioctl));
	self->attacher = spawn();
	if (!self->attacher) {
		loop_configure(&self->lo, self->other.fd, 0);
		_exit(0);
	}
	ASSERT_TRUE(waits_in(self->attacher, SYS_ioctl));

	pid = spawn();
	if (!pid) {
		close(loop_open(&self->lo, O_RDONLY));
		_exit(0);
	}
	EXPECT_TRUE(ends(pid)) {
		tell_where(pid);
		__atomic_store_n(&self->n.orders->silent, 0, __ATOMIC_SEQ_CST);
		child_status(pid);
	}
}

/* Others zero blocks, which waits for who claims the device, who has to open it first. */
FIXTURE(offset) {
	struct loop lo;
	int image;
	int *changes;		/* that were made, shared */
	pid_t zeroer;
	pid_t claimer;
};

static void zero_always(const struct loop *lo)
{
	uint64_t range[2] = { 16 * BLOCK, BLOCK };

	for (;;)
		ioctl(lo->fd, BLKZEROOUT, range);
}

static void claim_always(const struct loop *lo)
{
	int fd;

	for (;;) {
		fd = open(lo->path, O_RDONLY | O_EXCL | O_CLOEXEC);
		if (fd >= 0)
			close(fd);
	}
}

static void change_offsets(const struct loop *lo, int *changes)
{
	int64_t end = now_ms() + ROUNDS_MS;
	struct loop_info64 info;

	loop_get_status(lo, &info);
	while (*changes < 20 || now_ms() < end) {
		info.lo_offset = *changes % 2 ? 0 : BLOCK;
		if (!ioctl(lo->fd, LOOP_SET_STATUS64, &info))
			++*changes;
		else if (errno != EAGAIN)
			die("LOOP_SET_STATUS64: %s", strerror(errno));
	}
}

FIXTURE_SETUP(offset)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	self->image = image_create('o', 1);
	self->changes = shared_memory(sizeof(*self->changes));
	loop_attach(&self->lo, self->image, 0);
	self->zeroer = spawn();
	if (!self->zeroer)
		zero_always(&self->lo);
	self->claimer = spawn();
	if (!self->claimer)
		claim_always(&self->lo);
}

FIXTURE_TEARDOWN(offset)
{
	/* first who can be killed while it waits */
	kill(self->claimer, SIGKILL);
	EXPECT_TRUE(ends(self->claimer));
	kill(self->zeroer, SIGKILL);
	EXPECT_TRUE(ends(self->zeroer));
	loop_destroy(&self->lo);
	close(self->image);
}

TEST_F(offset, r14_changes_while_others_claim_the_device)
{
	pid_t pid = spawn();

	if (!pid) {
		change_offsets(&self->lo, self->changes);
		_exit(0);
	}
	EXPECT_TRUE(ends(pid)) {
		kill(self->claimer, SIGKILL);
		child_status(pid);
	}
	EXPECT_LE(20, *self->changes);
}

TEST_HARNESS_MAIN
