// SPDX-License-Identifier: GPL-2.0
/*
 * What becomes of data when the medium ends that they were written to: they are
 * behind the disk, or fsync() says that they are not (rule 14); they are not on
 * the next medium, and nobody reads them any more under its number (rule 8). And
 * who only reads does not keep a medium from ending (rule 15).
 */
#include <endian.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "nbd_dev.h"
#include "zram_dev.h"

#define BLOCK			4096
#define BLOCKS			16
#define STORM_MS		3000
#define LOOK_MS			500

static void block_content(char *buf, int block)
{
	memset(buf, 'A' + block, BLOCK);
}

/* Whether a block can be read, and is that one. */
static bool has_block(int fd, int block, uint64_t at)
{
	char want[BLOCK], have[BLOCK];

	block_content(want, block);
	return pread(fd, have, BLOCK, at) == BLOCK && !memcmp(want, have, BLOCK);
}

static void write_blocks(int fd)
{
	char data[BLOCK];
	int i;

	for (i = 0; i < BLOCKS; i++) {
		block_content(data, i);
		if (pwrite(fd, data, BLOCK, i * BLOCK) != BLOCK)
			die("write: %s", strerror(errno));
	}
}

/* Whether a block begins with that text. */
static bool has(int fd, const char *text)
{
	char have[BLOCK];

	return pread(fd, have, BLOCK, 0) == BLOCK && !strcmp(have, text);
}

/* For partitions, which are small: the first sector. */

static bool has_sector(int fd, uint64_t at)
{
	char want[BLOCK], have[SECTOR];

	block_content(want, 1);
	return pread(fd, have, SECTOR, at) == SECTOR &&
	       !memcmp(want, have, SECTOR);
}

static void write_sector(int fd)
{
	char data[BLOCK];

	block_content(data, 1);
	if (pwrite(fd, data, SECTOR, 0) != SECTOR)
		die("write: %s", strerror(errno));
}

static void store_sector(int fd)
{
	char data[BLOCK], *map;

	block_content(data, 1);
	map = mmap(NULL, SECTOR, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	memcpy(map, data, SECTOR);
	munmap(map, SECTOR);
}

static char *map_blocks(int fd, int prot)
{
	char *map = mmap(NULL, BLOCKS * BLOCK, prot, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	return map;
}

static void store_blocks(int fd)
{
	char *map = map_blocks(fd, PROT_READ | PROT_WRITE);
	int i;

	for (i = 0; i < BLOCKS; i++)
		block_content(map + i * BLOCK, i);
	munmap(map, BLOCKS * BLOCK);
}

static sigjmp_buf no_page;

static void on_sigbus(int sig)
{
	siglongjmp(no_page, 1);
}

/* Whether block 1 is still there for one who has it mapped. */
static bool maps_block(const char *map)
{
	char want[BLOCK];
	bool has;

	block_content(want, 1);
	signal(SIGBUS, on_sigbus);
	if (sigsetjmp(no_page, 1))
		has = false;
	else
		has = !memcmp(map + BLOCK, want, BLOCK);
	signal(SIGBUS, SIG_DFL);
	return has;
}

/* nbd: the data cannot reach a server that is gone. */

FIXTURE(server) {
	struct nbd n;
};

FIXTURE_VARIANT(server) {
	void (*connect)(struct nbd *n);
	int (*end)(struct nbd *n);
};

FIXTURE_VARIANT_ADD(server, disconnected_by_netlink) {
	.connect = by_netlink,
	.end = op_disconnect_by_netlink,
};

FIXTURE_VARIANT_ADD(server, disconnected_by_ioctl) {
	.connect = by_ioctl,
	.end = op_disconnect_by_ioctl,
};

FIXTURE_VARIANT_ADD(server, sockets_cleared) {
	.connect = by_ioctl,
	.end = op_clear_sock,
};

FIXTURE_VARIANT_ADD(server, sockets_of_netlink_cleared) {
	.connect = by_netlink,
	.end = op_clear_sock,
};

FIXTURE_VARIANT_ADD(server, died) {
	.connect = by_ioctl,
	.end = op_server_dies,
};

FIXTURE_VARIANT_ADD(server, client_died) {
	.connect = by_ioctl,
	.end = op_client_dies,
};

FIXTURE_SETUP(server)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	image_table(self->n.image[0], 0, TABLE_GPT, 1, "a");
	variant->connect(&self->n);
}

FIXTURE_TEARDOWN(server)
{
	nbd_destroy(&self->n);
}

TEST_F(server, r14_fsync_fails_for_what_was_written)
{
	nbd_open(&self->n);
	write_blocks(self->n.fd);
	ASSERT_EQ(0, variant->end(&self->n));
	ASSERT_EQ(-1, fsync(self->n.fd));
	EXPECT_EQ(EIO, errno);
}

TEST_F(server, r14_fsync_fails_for_what_was_written_exclusively)
{
	self->n.fd = disk_open(self->n.name, 0, O_RDWR | O_EXCL);
	write_blocks(self->n.fd);
	ASSERT_EQ(0, variant->end(&self->n));
	ASSERT_EQ(-1, fsync(self->n.fd));
	EXPECT_EQ(EIO, errno);
}

/*
 * A page fault sends a request under mmap_lock, and a receiver waits for its
 * socket under that request's lock: lockdep sees a cycle there, and no more then.
 */
static bool lockdep_watches(void)
{
	return !access("/proc/lockdep_stats", F_OK);
}

TEST_F(server, r14_fsync_fails_for_what_was_stored)
{
	if (lockdep_watches())
		SKIP(return, "lockdep would report a page fault on nbd");
	nbd_open(&self->n);
	store_blocks(self->n.fd);
	ASSERT_EQ(0, variant->end(&self->n));
	ASSERT_EQ(-1, fsync(self->n.fd));
	EXPECT_EQ(EIO, errno);
}

TEST_F(server, r14_fsync_fails_for_what_was_written_to_a_partition)
{
	struct nbd *n = &self->n;

	nbd_scan(n);
	n->part = disk_open(n->name, 1, O_RDWR);
	write_sector(n->part);
	ASSERT_EQ(0, variant->end(n));
	ASSERT_EQ(-1, fsync(n->part));
	EXPECT_EQ(EIO, errno);
}

TEST_F(server, r14_fsync_succeeds_for_what_was_written_back)
{
	nbd_open(&self->n);
	write_blocks(self->n.fd);
	ASSERT_EQ(0, fsync(self->n.fd));
	ASSERT_EQ(0, variant->end(&self->n));
	EXPECT_EQ(0, fsync(self->n.fd));
	EXPECT_TRUE(has_block(self->n.image[0], 1, BLOCK));
}

TEST_F(server, r14_direct_writes_arrive_or_fail)
{
	static char data[BLOCK] __aligned(BLOCK);
	int fd = disk_open(self->n.name, 0, O_RDWR | O_DIRECT);

	block_content(data, 1);
	ASSERT_EQ(BLOCK, pwrite(fd, data, BLOCK, BLOCK));
	EXPECT_TRUE(has_block(self->n.image[0], 1, BLOCK));
	/* others may not have it open when it is connected again */
	self->n.fd = fd;
	ASSERT_EQ(0, variant->end(&self->n));
	EXPECT_NE(BLOCK, pwrite(fd, data, BLOCK, 2 * BLOCK));
}

TEST_F(server, r8_who_has_it_open_reads_nothing_of_it)
{
	struct nbd *n = &self->n;

	nbd_open(n);
	write_blocks(n->fd);
	ASSERT_EQ(0, fsync(n->fd));
	ASSERT_TRUE(has_block(n->fd, 1, BLOCK));
	ASSERT_EQ(0, variant->end(n));
	EXPECT_FALSE(has_block(n->fd, 1, BLOCK));
}

TEST_F(server, r8_claimed_partition_keeps_nothing_of_the_disk)
{
	struct nbd *n = &self->n;

	nbd_scan(n);
	nbd_open(n);
	write_blocks(n->fd);
	ASSERT_EQ(0, fsync(n->fd));
	n->part = disk_open(n->name, 1, O_RDONLY | O_EXCL);
	ASSERT_TRUE(has_block(n->fd, 1, BLOCK));
	ASSERT_EQ(0, variant->end(n));
	EXPECT_FALSE(has_block(n->fd, 1, BLOCK));
}

TEST_F(server, r8_who_has_it_mapped_reads_nothing_of_it)
{
	struct nbd *n = &self->n;
	char *map;

	if (lockdep_watches())
		SKIP(return, "lockdep would report a page fault on nbd");
	nbd_open(n);
	write_blocks(n->fd);
	ASSERT_EQ(0, fsync(n->fd));
	map = map_blocks(n->fd, PROT_READ);
	ASSERT_TRUE(maps_block(map));
	ASSERT_EQ(0, variant->end(n));
	EXPECT_FALSE(maps_block(map));
	munmap(map, BLOCKS * BLOCK);
}

/* Whoever copies the disk must not take a dead server for its end. */
TEST_F(server, r14_reads_fail_rather_than_end)
{
	struct nbd *n = &self->n;
	char buf[BLOCK];

	nbd_open(n);
	ASSERT_EQ(BLOCK, pread(n->fd, buf, BLOCK, 0));
	ASSERT_EQ(0, variant->end(n));
	ASSERT_EQ(-1, pread(n->fd, buf, BLOCK, BLOCK));
	EXPECT_EQ(EIO, errno);
}

/*
 * One process writes by the file by which another is in NBD_DO_IT. When the server
 * dies, nobody else has the device open.
 */
FIXTURE(shared_file) {
	struct nbd n;
	int *lost;		/* shared */
	int *stop;
};

FIXTURE_SETUP(shared_file)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	self->lost = shared_memory(sizeof(*self->lost));
	self->stop = shared_memory(sizeof(*self->stop));
	nbd_create(&self->n, MAX_INDEX);
	nbd_close(&self->n);
}

FIXTURE_TEARDOWN(shared_file)
{
	nbd_destroy(&self->n);
}

static void write_to_the_end(const struct nbd *n, int round, int *lost, const int *stop)
{
	char data[BLOCK] = "";
	int i;

	for (i = 0; !__atomic_load_n(stop, __ATOMIC_SEQ_CST); i++) {
		snprintf(data, sizeof(data), "round %d, write %d", round, i);
		if (pwrite(n->fd, data, BLOCK, 0) == BLOCK && !fsync(n->fd) &&
		    !has(n->image[0], data))
			__atomic_fetch_add(lost, 1, __ATOMIC_SEQ_CST);
	}
}

TEST_F(shared_file, r14_fsync_fails_for_what_is_written_at_the_end)
{
	int64_t end = now_ms() + STORM_MS;
	int round, sock;
	pid_t writer;

	for (round = 0; !round || now_ms() < end; round++) {
		self->n.orders->die_after = 10 + round % 50;
		sock = start_server(&self->n, 0, self->n.image[0]);
		nbd_open(&self->n);
		__atomic_store_n(self->stop, 0, __ATOMIC_SEQ_CST);
		writer = spawn();
		if (!writer) {
			close(sock);
			write_to_the_end(&self->n, round, self->lost, self->stop);
			_exit(0);
		}
		ASSERT_EQ(0, ioctl(self->n.fd, NBD_SET_BLKSIZE, (long)BLOCK));
		ASSERT_EQ(0, ioctl(self->n.fd, NBD_SET_SIZE, (long)IMAGE_BYTES));
		ASSERT_EQ(0, ioctl(self->n.fd, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS));
		ASSERT_EQ(0, ioctl(self->n.fd, NBD_SET_SOCK, (long)sock));
		ioctl(self->n.fd, NBD_DO_IT);
		poll(NULL, 0, 2);
		ioctl(self->n.fd, NBD_CLEAR_SOCK);
		close(sock);
		__atomic_store_n(self->stop, 1, __ATOMIC_SEQ_CST);
		EXPECT_EQ(0, child_status(writer));
		end_server(&self->n, 0);
		nbd_close(&self->n);
	}
	EXPECT_EQ(0, *self->lost) {
		TH_LOG("in %d rounds", round);
	}
}

/* loop: the data can still reach the backing file. */

FIXTURE(file) {
	struct loop lo;
	int image;
};

FIXTURE_SETUP(file)
{
	const char *missing = diskseq_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	self->image = image_create('a', 2);
}

FIXTURE_TEARDOWN(file)
{
	loop_destroy(&self->lo);
	close(self->image);
}

TEST_F(file, r14_has_what_was_written_before_a_detach)
{
	loop_attach(&self->lo, self->image, 0);
	write_blocks(self->lo.fd);
	ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CLR_FD));
	/* from 6.11 on that is when it is carried out */
	loop_close(&self->lo);
	EXPECT_TRUE(has_block(self->image, 0, 0));
	EXPECT_TRUE(has_block(self->image, BLOCKS - 1, (BLOCKS - 1) * BLOCK));
}

TEST_F(file, r14_has_what_was_stored_before_a_detach)
{
	loop_attach(&self->lo, self->image, 0);
	store_blocks(self->lo.fd);
	ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CLR_FD));
	loop_close(&self->lo);
	EXPECT_TRUE(has_block(self->image, BLOCKS - 1, (BLOCKS - 1) * BLOCK));
}

TEST_F(file, r14_has_what_was_written_before_an_autoclear)
{
	loop_attach(&self->lo, self->image, LO_FLAGS_AUTOCLEAR);
	write_blocks(self->lo.fd);
	loop_close(&self->lo);
	EXPECT_TRUE(has_block(self->image, BLOCKS - 1, (BLOCKS - 1) * BLOCK));
}

TEST_F(file, r8_who_has_it_open_reads_nothing_of_it)
{
	int other;

	loop_attach(&self->lo, self->image, 0);
	write_blocks(self->lo.fd);
	ASSERT_TRUE(has_block(self->lo.fd, 1, BLOCK));
	ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CLR_FD));
	/* otherwise it still has its medium, and its number */
	if (!loop_detach_is_deferred(&self->lo)) {
		EXPECT_FALSE(has_block(self->lo.fd, 1, BLOCK));
	}

	other = image_create('b', 2);
	loop_reopen(&self->lo);
	loop_attach(&self->lo, other, 0);
	EXPECT_FALSE(has_block(self->lo.fd, 1, BLOCK));
	EXPECT_FALSE(has_block(other, 1, BLOCK));
	close(other);
}

TEST_F(file, r8_who_has_it_mapped_reads_nothing_of_it)
{
	char *map;

	loop_attach(&self->lo, self->image, 0);
	write_blocks(self->lo.fd);
	map = map_blocks(self->lo.fd, PROT_READ);
	ASSERT_TRUE(maps_block(map));
	ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CLR_FD));
	if (loop_detach_is_deferred(&self->lo))
		SKIP(goto out, "the detach waits for the mapping to go: since 6.11");
	EXPECT_FALSE(maps_block(map));
out:
	munmap(map, BLOCKS * BLOCK);
}

static int try_offset(struct loop *lo, uint64_t offset)
{
	struct loop_info64 info;

	loop_get_status(lo, &info);
	info.lo_offset = offset;
	return ioctl(lo->fd, LOOP_SET_STATUS64, &info) ? errno : 0;
}

/* As losetup does: pages may have become dirty again meanwhile. */
static int set_offset(struct loop *lo, uint64_t offset)
{
	int64_t end = now_ms() + limit_ms();
	int err;

	do
		err = try_offset(lo, offset);
	while (err == EAGAIN && now_ms() < end);
	return err;
}

TEST_F(file, r8_who_has_it_mapped_reads_nothing_of_the_old_offset)
{
	char *map;
	int err;

	loop_attach(&self->lo, self->image, 0);
	write_blocks(self->lo.fd);
	map = map_blocks(self->lo.fd, PROT_READ);
	ASSERT_TRUE(maps_block(map));
	err = try_offset(&self->lo, IMAGE_BYTES / 2);
	if (err) {
		ASSERT_EQ(EAGAIN, err);
		SKIP(goto out, "the offset stays while pages are mapped: before 5.16");
	}
	EXPECT_FALSE(maps_block(map));
out:
	munmap(map, BLOCKS * BLOCK);
}

static pid_t keep_storing(int fd)
{
	pid_t pid = spawn();
	char *map;
	int i;

	if (pid)
		return pid;
	map = map_blocks(fd, PROT_READ | PROT_WRITE);
	for (i = 0; ; i = (i + 1) % BLOCKS)
		map[(i + 1) * BLOCK - 1]++;
}

/* Of each block, the last byte alone is the storer's: the rest must stay what it was. */
static void store_at_offsets(struct loop *lo, int image, int pristine,
			     struct __test_metadata *_metadata)
{
	char want[BLOCK], have[BLOCK];
	int64_t end = now_ms() + limit_ms();
	uint64_t at, offset;
	pid_t storer;
	int err;

	storer = keep_storing(lo->fd);
	ASSERT_EQ(BLOCK, pread(pristine, want, BLOCK, 0));
	do {
		ASSERT_EQ(BLOCK, pread(lo->fd, have, BLOCK, 0));
	} while (!memcmp(want, have, BLOCK) && now_ms() < end);
	ASSERT_NE(0, memcmp(want, have, BLOCK));
	for (offset = BLOCK; offset < IMAGE_BYTES; offset += 2 * BLOCK) {
		err = try_offset(lo, offset);
		EXPECT_TRUE(!err || err == EAGAIN);
		poll(NULL, 0, 5);
	}
	end_child(storer);
	EXPECT_EQ(0, fsync(lo->fd));
	for (at = 0; at < IMAGE_BYTES; at += BLOCK) {
		ASSERT_EQ(BLOCK, pread(pristine, want, BLOCK, at));
		ASSERT_EQ(BLOCK, pread(image, have, BLOCK, at));
		EXPECT_EQ(0, memcmp(want, have, BLOCK - 1));
	}
}

TEST_F(file, r8_who_keeps_storing_brings_nothing_to_another_offset)
{
	int pristine = image_create('a', 2);

	loop_attach(&self->lo, self->image, 0);
	store_at_offsets(&self->lo, self->image, pristine, _metadata);
	close(pristine);
}

/* The least that vfat takes for one of its own: 16 entries, a sector of FAT. */
static void make_vfat(int image)
{
	static const unsigned char boot[] = {
		0xeb, 0x3c, 0x90, 'd', 'i', 's', 'k', 's', 'e', 'q', ' ',
		SECTOR & 0xff, SECTOR >> 8, 1, 1, 0, 1, 16, 0, 64, 0, 0xf8, 1, 0,
	};
	unsigned char sector[SECTOR] = { 0 };

	memcpy(sector, boot, sizeof(boot));
	sector[SECTOR - 2] = 0x55;
	sector[SECTOR - 1] = 0xaa;
	if (pwrite(image, sector, SECTOR, 0) != SECTOR ||
	    pwrite(image, "\xf8\xff\xff", 3, SECTOR) != 3)
		die("write: %s", strerror(errno));
}

/* A file system keeps what it uses in the cache, and that alone. */
TEST_F(file, r8_who_keeps_storing_beside_a_file_system_brings_nothing)
{
	int pristine = image_create('a', 2), err;
	char dir[] = "/tmp/ends.XXXXXX";

	make_vfat(self->image);
	make_vfat(pristine);
	loop_attach(&self->lo, self->image, 0);
	ASSERT_NE(NULL, mkdtemp(dir));
	err = mount(self->lo.path, dir, "vfat", MS_RDONLY, NULL) ? errno : 0;
	if (!err) {
		store_at_offsets(&self->lo, self->image, pristine, _metadata);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	close(pristine);
	if (err == ENODEV)
		SKIP(return, "this kernel has no vfat");
	EXPECT_EQ(0, err);
}

/*
 * A loop device whose storage is slow, and which is scanned for partitions meanwhile.
 * Each half of it has a table whose logical partitions lead to a sector near the end,
 * and from there to one before it.
 */
#define HALF			(IMAGE_SECTORS / 2)
#define EXTENDED_AT		8
#define READ_FIRST		208
#define READ_NEXT		104
#define ANSWER_MS		100
#define OFFSETS			4

static void put_entry(unsigned char *entry, unsigned char type, uint32_t start,
		      uint32_t sectors)
{
	const uint32_t where[] = { htole32(start), htole32(sectors) };

	entry[4] = type;
	memcpy(entry + 8, where, sizeof(where));
}

/* A table at @sector, with a partition after it and a link, both if there are. */
static void put_table(int image, uint64_t sector, bool partition, uint32_t link)
{
	unsigned char table[SECTOR] = { 0 };

	if (partition)
		put_entry(table + 446, 0x83, 1, 1);
	if (link)
		put_entry(table + 462, 5, link, HALF - EXTENDED_AT - READ_FIRST);
	table[SECTOR - 2] = 0x55;
	table[SECTOR - 1] = 0xaa;
	if (pwrite(image, table, SECTOR, sector * SECTOR) != SECTOR)
		die("write: %s", strerror(errno));
}

FIXTURE(scanned) {
	struct nbd n;
	struct loop lo;
	int disk;
};

FIXTURE_SETUP(scanned)
{
	const char *missing = nbd_missing();
	struct loop_info64 info;
	uint64_t at;

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	for (at = 0; at < IMAGE_SECTORS; at += HALF) {
		put_table(self->n.image[0], at, false, EXTENDED_AT);
		put_table(self->n.image[0], at + EXTENDED_AT, true,
			  READ_FIRST - EXTENDED_AT);
		put_table(self->n.image[0], at + READ_FIRST, true,
			  READ_NEXT - EXTENDED_AT);
		put_table(self->n.image[0], at + READ_NEXT, true, 0);
	}
	by_netlink(&self->n);
	self->disk = disk_open(self->n.name, 0, O_RDWR);
	loop_create(&self->lo);
	loop_attach(&self->lo, self->disk, LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN);
	loop_get_status(&self->lo, &info);
	info.lo_sizelimit = HALF * SECTOR;
	ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_SET_STATUS64, &info));
}

FIXTURE_TEARDOWN(scanned)
{
	__atomic_store_n(&self->n.orders->delay_ms, 0, __ATOMIC_SEQ_CST);
	loop_destroy(&self->lo);
	close(self->disk);
	nbd_destroy(&self->n);
}

/* In either half. */
static bool wait_for_read(const struct orders *orders, uint64_t sector)
{
	int64_t end = now_ms() + limit_ms();
	uint64_t at;

	for (;;) {
		at = __atomic_load_n(&orders->reading, __ATOMIC_SEQ_CST) / SECTOR;
		if (at % HALF == sector)
			return true;
		if (now_ms() > end)
			return false;
		poll(NULL, 0, 1);
	}
}

/* The page that is touched is the one that the scan reads after the cache was dropped. */
TEST_F(scanned, r8_scan_leaves_no_page_of_the_old_offset)
{
	struct orders *orders = self->n.orders;
	uint64_t sector = READ_NEXT + 1;
	pid_t scanner, toucher;
	char *map;
	int i;

	map = mmap(NULL, HALF * SECTOR, PROT_READ, MAP_SHARED, self->lo.fd, 0);
	ASSERT_TRUE(map != MAP_FAILED);
	ASSERT_EQ(0, madvise(map, HALF * SECTOR, MADV_RANDOM));
	for (i = 1; i <= OFFSETS; i++) {
		__atomic_store_n(&orders->reading, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&orders->delay_ms, ANSWER_MS, __ATOMIC_SEQ_CST);
		scanner = spawn();
		if (!scanner)
			_exit(ioctl(self->lo.fd, BLKRRPART) ? errno : 0);
		toucher = spawn();
		if (!toucher) {
			if (wait_for_read(orders, READ_NEXT))
				__atomic_load_n(map + READ_NEXT * SECTOR, __ATOMIC_RELAXED);
			_exit(0);
		}
		ASSERT_TRUE(wait_for_read(orders, READ_FIRST));
		ASSERT_EQ(0, set_offset(&self->lo, i % 2 * HALF * SECTOR));
		__atomic_store_n(&orders->delay_ms, 0, __ATOMIC_SEQ_CST);
		ASSERT_TRUE(ends(scanner));
		ASSERT_TRUE(ends(toucher));
		EXPECT_TRUE(sector_is(self->lo.fd, sector, 'a',
				      i % 2 * HALF + sector, NULL));
		ASSERT_EQ(0, ioctl(self->lo.fd, BLKFLSBUF));
	}
	munmap(map, HALF * SECTOR);
}

/* A page of a disk that direct I/O of another one, whose server is silent, reads into. */
FIXTURE(pinned) {
	struct nbd source;
	struct nbd n;
	struct loop lo;
	int from;
	int image;
};

FIXTURE_SETUP(pinned)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->source, MAX_INDEX);
	by_netlink(&self->source);
	self->from = disk_open(self->source.name, 0, O_RDONLY | O_DIRECT);
	nbd_create(&self->n, self->source.index);
	loop_create(&self->lo);
	self->image = image_create('p', 1);
}

FIXTURE_TEARDOWN(pinned)
{
	__atomic_store_n(&self->source.orders->silent, 0, __ATOMIC_SEQ_CST);
	close(self->image);
	loop_destroy(&self->lo);
	nbd_destroy(&self->n);
	close(self->from);
	nbd_destroy(&self->source);
}

TEST_F(pinned, r14_page_is_not_lost_by_a_new_offset)
{
	pid_t reader;
	int err;

	loop_attach(&self->lo, self->image, 0);
	__atomic_store_n(&self->source.orders->silent, 1, __ATOMIC_SEQ_CST);
	reader = start_reading_into(self->lo.fd, self->from);
	err = try_offset(&self->lo, BLOCK);
	EXPECT_EQ(err ? EAGAIN : 0, err);
	__atomic_store_n(&self->source.orders->silent, 0, __ATOMIC_SEQ_CST);
	ASSERT_EQ(0, child_status(reader));
	EXPECT_TRUE(sector_is(self->image, 0, 'a', 0, NULL) ||
		    sector_is(self->image, BLOCK / SECTOR, 'a', 0, NULL));
	EXPECT_EQ(0, set_offset(&self->lo, 2 * BLOCK));
}

/* It is clean when the server goes, and gets dirty after that. */
TEST_F(pinned, r14_fsync_fails_for_a_page_of_a_server_that_has_gone)
{
	pid_t reader;

	by_netlink(&self->n);
	nbd_open(&self->n);
	__atomic_store_n(&self->source.orders->silent, 1, __ATOMIC_SEQ_CST);
	reader = start_reading_into(self->n.fd, self->from);
	ASSERT_EQ(0, fsync(self->n.fd));
	ASSERT_EQ(0, op_disconnect_by_netlink(&self->n));
	__atomic_store_n(&self->source.orders->silent, 0, __ATOMIC_SEQ_CST);
	EXPECT_EQ(EIO, child_status(reader));
}

/* The file system of the backing file is full when it is written back. */
FIXTURE(full) {
	char dir[24];
	int fill;
	int image;
	struct loop lo;
};

FIXTURE_SETUP(full)
{
	const char *missing = diskseq_missing();
	char path[64], block[BLOCK];

	if (missing)
		SKIP_SETUP("%s", missing);
	strcpy(self->dir, "/tmp/full.XXXXXX");
	ASSERT_NE(NULL, mkdtemp(self->dir));
	if (mount("tmpfs", self->dir, "tmpfs", 0, "size=256k")) {
		rmdir(self->dir);
		SKIP_SETUP("cannot mount a tmpfs: %s", strerror(errno));
	}
	snprintf(path, sizeof(path), "%s/image", self->dir);
	self->image = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ASSERT_EQ(0, ftruncate(self->image, IMAGE_BYTES));
	snprintf(path, sizeof(path), "%s/fill", self->dir);
	self->fill = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	memset(block, 'f', BLOCK);
	while (write(self->fill, block, BLOCK) == BLOCK)
		;
	loop_create(&self->lo);
	loop_attach(&self->lo, self->image, 0);
	write_blocks(self->lo.fd);
}

FIXTURE_TEARDOWN(full)
{
	loop_destroy(&self->lo);
	close(self->image);
	close(self->fill);
	umount2(self->dir, MNT_DETACH);
	rmdir(self->dir);
}

TEST_F(full, r14_fsync_fails_for_what_a_detach_cannot_write_back)
{
	ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CLR_FD));
	EXPECT_EQ(-1, fsync(self->lo.fd));
	EXPECT_EQ(EIO, errno);

	/* nobody else is told */
	loop_reopen(&self->lo);
	loop_attach(&self->lo, self->image, 0);
	EXPECT_EQ(0, fsync(self->lo.fd));
}

TEST_F(full, r12_refused_attach_leaves_fsync_its_error)
{
	struct loop_config bad[] = {
		{ .block_size = 777 },
		{ .info.lo_flags = 1 << 31 },
		{ .info.lo_encrypt_type = 18 },
		{ .info.lo_offset = 1ULL << 63 },
	};
	struct loop other;
	int i, image = image_create('b', 1);

	loop_create(&other);
	loop_attach(&other, image, 0);
	EXPECT_EQ(-1, loop_configure(&other, self->lo.fd, 0));
	EXPECT_EQ(EBUSY, errno);
	/* it is not read-only */
	EXPECT_EQ(-1, ioctl(other.fd, LOOP_CHANGE_FD, self->lo.fd));
	EXPECT_EQ(EINVAL, errno);
	loop_detach(&other);
	for (i = 0; i < (int)ARRAY_SIZE(bad); i++) {
		bad[i].fd = self->lo.fd;
		EXPECT_EQ(-1, ioctl(other.fd, LOOP_CONFIGURE, &bad[i]));
		EXPECT_TRUE(errno == EINVAL || errno == EOVERFLOW);
	}
	EXPECT_EQ(-1, fsync(self->lo.fd));
	EXPECT_EQ(EIO, errno);
	loop_destroy(&other);
	close(image);
}

/*
 * The error belongs to who writes through the new device, even if the one who attaches
 * it still writes back what the file has in the cache.
 */
TEST_F(full, r14_attach_leaves_fsync_of_the_device_its_error)
{
	static char data[BLOCK] __aligned(BLOCK);
	int64_t end = now_ms() + STORM_MS;
	int *lost = shared_memory(sizeof(*lost));
	int file, fd, round;
	struct loop upper;
	uint64_t size;
	pid_t writer;

	loop_create(&upper);
	for (round = 0; !round || now_ms() < end; round++) {
		file = loop_open(&self->lo, O_RDWR);
		fsync(file);
		write_blocks(file);
		writer = spawn();
		if (!writer) {
			fd = loop_open(&upper, O_RDWR | O_DIRECT);
			do
				ioctl(fd, BLKGETSIZE64, &size);
			while (!size);
			*lost += pwrite(fd, data, BLOCK, BLOCKS * BLOCK) == BLOCK &&
				 !fsync(fd);
			_exit(0);
		}
		loop_attach(&upper, file, 0);
		ASSERT_EQ(0, child_status(writer));
		loop_detach(&upper);
		close(file);
	}
	EXPECT_EQ(0, *lost) {
		TH_LOG("in %d rounds", round);
	}
	loop_destroy(&upper);
}

FIXTURE(partition) {
	struct loop lo;
	int image;
	int part;
	uint64_t at;		/* where it begins */
};

FIXTURE_VARIANT(partition) {
	void (*write)(int fd);
};

FIXTURE_VARIANT_ADD(partition, written) {
	.write = write_sector,
};

FIXTURE_VARIANT_ADD(partition, stored) {
	.write = store_sector,
};

FIXTURE_SETUP(partition)
{
	const char *missing = diskseq_missing();
	uint64_t start, sectors;

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	self->image = image_create('a', 2);
	image_table(self->image, 0, TABLE_GPT, 1, "a");
	image_part(TABLE_GPT, 1, &start, &sectors);
	self->at = start * SECTOR;
	loop_attach(&self->lo, self->image, LO_FLAGS_PARTSCAN);
	self->part = loop_open_part(&self->lo, 1, O_RDWR);
}

FIXTURE_TEARDOWN(partition)
{
	close(self->part);
	loop_destroy(&self->lo);
	close(self->image);
}

TEST_F(partition, r14_in_use_loses_nothing_by_a_detach)
{
	loop_close(&self->lo);
	variant->write(self->part);
	ASSERT_EQ(0, ioctl(self->part, LOOP_CLR_FD));
	close(self->part);
	self->part = -1;
	EXPECT_TRUE(has_sector(self->image, self->at));
}

TEST_F(partition, r14_in_use_loses_nothing_by_a_new_offset)
{
	variant->write(self->part);
	ASSERT_EQ(0, set_offset(&self->lo, IMAGE_BYTES));
	EXPECT_EQ(0, fsync(self->part));
	EXPECT_TRUE(has_sector(self->image, self->at));
	EXPECT_FALSE(has_sector(self->image, IMAGE_BYTES + self->at));
}

/*
 * zram: a reset, and a removal, wait for those who have the disk open for a moment, as
 * udev has whenever there is an event about it.
 */

FIXTURE(memory) {
	struct zram z;
	int reader;
};

FIXTURE_VARIANT(memory) {
	int (*operate)(const struct zram *z);
};

FIXTURE_VARIANT_ADD(memory, reset) {
	.operate = zram_reset,
};

FIXTURE_VARIANT_ADD(memory, hot_remove) {
	.operate = zram_hot_remove,
};

FIXTURE_SETUP(memory)
{
	const char *missing = zram_missing();
	struct zram *z = &self->z;

	if (missing)
		SKIP_SETUP("%s", missing);
	zram_create(z);
	must(zram_set_size(z), "disksize");
	zram_open(z);
	write_blocks(z->fd);
	zram_close(z);
	self->reader = disk_open(z->name, 0, O_RDONLY);
}

FIXTURE_TEARDOWN(memory)
{
	if (self->reader >= 0)
		close(self->reader);
	/* it may have been removed */
	if (!disk_exists(self->z.name))
		zram_create(&self->z);
	zram_destroy(&self->z);
}

/* Another process has it open, too, for as long as that. */
static pid_t look_for(FIXTURE_DATA(memory) *self, int ms)
{
	pid_t pid = spawn();

	if (!pid) {
		poll(NULL, 0, ms);
		_exit(!has_block(self->reader, 1, BLOCK));
	}
	return pid;
}

TEST_F(memory, r15_waits_for_who_looks)
{
	pid_t pid = look_for(self, LOOK_MS);

	close(self->reader);
	self->reader = -1;
	EXPECT_EQ(0, variant->operate(&self->z));
	/* it could read until it closed the disk */
	EXPECT_EQ(0, child_status(pid));
}

TEST_F(memory, r12_gives_up_on_who_stays)
{
	uint64_t number = diskseq_sysfs(self->z.name);

	EXPECT_EQ(EBUSY, variant->operate(&self->z));
	EXPECT_EQ(number, diskseq_sysfs(self->z.name));
	EXPECT_TRUE(has_block(self->reader, 1, BLOCK));
}

TEST_F(memory, r12_does_not_wait_for_who_has_claimed_it)
{
	int fd = disk_open(self->z.name, 0, O_RDONLY | O_EXCL);
	int64_t begin = now_ms();

	EXPECT_EQ(EBUSY, variant->operate(&self->z));
	EXPECT_GT(LOOK_MS, now_ms() - begin);
	EXPECT_TRUE(has_block(self->reader, 1, BLOCK));
	close(fd);
}

static void woken(int signal)
{
	(void)signal;
}

TEST_F(memory, r12_signal_ends_the_wait)
{
	struct sigaction action = { .sa_handler = woken };
	uint64_t number = diskseq_sysfs(self->z.name);

	sigaction(SIGALRM, &action, NULL);
	ualarm(1000 * LOOK_MS, 0);
	EXPECT_EQ(EINTR, variant->operate(&self->z));
	EXPECT_EQ(number, diskseq_sysfs(self->z.name));
	EXPECT_TRUE(has_block(self->reader, 1, BLOCK));
}

static int add_and_remove(const struct zram *z)
{
	struct zram other;

	(void)z;
	zram_create(&other);
	zram_destroy(&other);
	return 0;
}

/* Others may have to wait until the wait is over. */
TEST_F(memory, r14_wait_keeps_nobody_from_being_killed)
{
	static int (* const operate[])(const struct zram *z) = {
		zram_hot_remove, add_and_remove,
	};
	pid_t first = spawn(), other;
	size_t i;

	if (!first)
		_exit(variant->operate(&self->z));
	if (!waits_in(first, SYS_write)) {
		EXPECT_EQ(EBUSY, child_status(first));
		return;
	}
	for (i = 0; i < ARRAY_SIZE(operate); i++) {
		other = spawn();
		if (!other)
			_exit(operate[i](&self->z));
		waits_in(other, i ? SYS_read : SYS_write);
		kill(other, SIGKILL);
		child_status(other);
	}
	EXPECT_EQ(0, waitpid(first, NULL, WNOHANG));
	EXPECT_EQ(EBUSY, child_status(first));
}

/* A read that is under way must not find its data freed. */
TEST_F(memory, r14_is_not_freed_while_it_is_read)
{
	int64_t end = now_ms() + STORM_MS;
	static char buf[BLOCKS * BLOCK] __aligned(BLOCK);
	int i, fd, err, done = 0;
	pid_t pid[2];

	close(self->reader);
	self->reader = -1;
	for (i = 0; i < 2; i++) {
		pid[i] = spawn();
		if (pid[i])
			continue;
		/* who opens it in the middle of a reset is refused */
		for (;;) {
			char path[32];

			snprintf(path, sizeof(path), "/dev/%s", self->z.name);
			fd = open(path, O_RDONLY | O_CLOEXEC | (i ? O_DIRECT : 0));
			if (fd < 0)
				continue;
			pread(fd, buf, sizeof(buf), 0);
			close(fd);
		}
	}
	while (now_ms() < end || !done) {
		err = variant->operate(&self->z);
		if (err) {
			ASSERT_EQ(EBUSY, err);
			continue;
		}
		done++;
		if (!disk_exists(self->z.name))
			zram_create(&self->z);
		must(zram_set_size(&self->z), "disksize");
	}
	for (i = 0; i < 2; i++)
		end_child(pid[i]);
}

TEST_HARNESS_MAIN
