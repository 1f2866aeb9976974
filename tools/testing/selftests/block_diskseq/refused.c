// SPDX-License-Identifier: GPL-2.0
/*
 * An operation that is refused changes nothing (rule 12): it takes no number and
 * raises no event, the disk and its medium stay what they were, and a good
 * attach that follows behaves as if there had been no other.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"

#define KEY			"key"

/* What the disk is when the operation is tried. */
enum state {
	UNBOUND,
	HELD,			/* unbound, and open exclusively elsewhere */
	BOUND,
	BOUND_READ_ONLY,
	BOUND_XOR,
	BOUND_TABLE,		/* with partitions, one of which is open */
	BOUND_BELOW,		/* another loop device is on top of it */
	BOUND_MAPPED,		/* its pages are in use */
};

/* What is tried. */
enum call {
	SET_FD,
	CONFIGURE,
	CONFIGURE_BAD_POINTER,
	CHANGE_FD,
	STATUS,
	STATUS_BAD_POINTER,
	STATUS_AS_NOBODY,
	STATUS64,
	STATUS64_BAD_POINTER,
	STATUS64_AS_NOBODY,
	STATUS64_AS_NOBODY_WRITABLE,
	SET_CAPACITY,
	SET_CAPACITY_AS_NOBODY,
	SET_BLOCK_SIZE,
	SET_DIRECT_IO,
	CLEAR,
	RESCAN,
	CTL_ADD,
	CTL_REMOVE,
};

/* With what as the backing file. */
enum backing {
	IMAGE,
	LARGER_IMAGE,
	NO_FILE,
	PATH_ONLY,
	DIRECTORY,
	CHARACTER_DEVICE,
	PIPE,
	ITSELF,
	OTHER_LOOP,
};

FIXTURE(refused) {
	struct loop lo;
	struct loop other;
	struct monitor mon;
	int image[2];
	int table;
	int held;
	int sysfs;
	uint64_t number;
	char *mapped;
};

FIXTURE_VARIANT(refused) {
	enum state state;
	enum call call;
	enum backing backing;
	unsigned int block_size;
	struct loop_info64 info;
	int error;
};

FIXTURE_VARIANT_ADD(refused, set_fd_of_no_file) {
	.call = SET_FD,
	.backing = NO_FILE,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, set_fd_of_path_only) {
	.call = SET_FD,
	.backing = PATH_ONLY,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, set_fd_of_directory) {
	.call = SET_FD,
	.backing = DIRECTORY,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, set_fd_of_character_device) {
	.call = SET_FD,
	.backing = CHARACTER_DEVICE,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, set_fd_of_pipe) {
	.call = SET_FD,
	.backing = PIPE,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, set_fd_of_itself) {
	.call = SET_FD,
	.backing = ITSELF,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, set_fd_of_unbound_loop) {
	.call = SET_FD,
	.backing = OTHER_LOOP,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, set_fd_when_bound) {
	.state = BOUND,
	.call = SET_FD,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(refused, set_fd_when_held) {
	.state = HELD,
	.call = SET_FD,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(refused, configure_of_no_file) {
	.call = CONFIGURE,
	.backing = NO_FILE,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, configure_of_directory) {
	.call = CONFIGURE,
	.backing = DIRECTORY,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_of_itself) {
	.call = CONFIGURE,
	.backing = ITSELF,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, configure_of_unbound_loop) {
	.call = CONFIGURE,
	.backing = OTHER_LOOP,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_when_bound) {
	.state = BOUND,
	.call = CONFIGURE,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(refused, configure_when_bound_with_partitions) {
	.state = BOUND_TABLE,
	.call = CONFIGURE,
	.info.lo_flags = LO_FLAGS_PARTSCAN,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(refused, configure_when_held) {
	.state = HELD,
	.call = CONFIGURE,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(refused, configure_block_size_777) {
	.call = CONFIGURE,
	.block_size = 777,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_block_size_777_partscan) {
	.call = CONFIGURE,
	.block_size = 777,
	.info.lo_flags = LO_FLAGS_PARTSCAN,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_block_size_256) {
	.call = CONFIGURE,
	.block_size = 256,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_block_size_1048576) {
	.call = CONFIGURE,
	.block_size = 1 << 20,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_unknown_flag) {
	.call = CONFIGURE,
	.info.lo_flags = 1U << 31,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_key_size) {
	.call = CONFIGURE,
	.info.lo_encrypt_key_size = LO_KEY_SIZE + 1,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_negative_key_size) {
	.call = CONFIGURE,
	.info.lo_encrypt_key_size = -1,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_encrypt_type) {
	.call = CONFIGURE,
	.info.lo_encrypt_type = MAX_LO_CRYPT,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_encrypt_type_without_driver) {
	.call = CONFIGURE,
	.info.lo_encrypt_type = LO_CRYPT_DES,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_xor_without_key) {
	.call = CONFIGURE,
	.info.lo_encrypt_type = LO_CRYPT_XOR,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, configure_offset) {
	.call = CONFIGURE,
	.info.lo_offset = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, configure_size_limit) {
	.call = CONFIGURE,
	.info.lo_sizelimit = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, configure_bad_pointer) {
	.call = CONFIGURE_BAD_POINTER,
	.error = EFAULT,
};

FIXTURE_VARIANT_ADD(refused, change_fd_when_unbound) {
	.call = CHANGE_FD,
	.error = ENXIO,
};

FIXTURE_VARIANT_ADD(refused, change_fd_when_writable) {
	.state = BOUND,
	.call = CHANGE_FD,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, change_fd_of_other_size) {
	.state = BOUND_READ_ONLY,
	.call = CHANGE_FD,
	.backing = LARGER_IMAGE,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, change_fd_of_other_size_with_partitions) {
	.state = BOUND_TABLE,
	.call = CHANGE_FD,
	.backing = LARGER_IMAGE,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, change_fd_of_no_file) {
	.state = BOUND_READ_ONLY,
	.call = CHANGE_FD,
	.backing = NO_FILE,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, change_fd_of_directory) {
	.state = BOUND_READ_ONLY,
	.call = CHANGE_FD,
	.backing = DIRECTORY,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, change_fd_of_itself) {
	.state = BOUND_READ_ONLY,
	.call = CHANGE_FD,
	.backing = ITSELF,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, change_fd_of_unbound_loop) {
	.state = BOUND_READ_ONLY,
	.call = CHANGE_FD,
	.backing = OTHER_LOOP,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, change_fd_of_loop_on_top) {
	.state = BOUND_BELOW,
	.call = CHANGE_FD,
	.backing = OTHER_LOOP,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(refused, status_when_unbound) {
	.call = STATUS,
	.error = ENXIO,
};

FIXTURE_VARIANT_ADD(refused, status_key_size) {
	.state = BOUND,
	.call = STATUS,
	.info.lo_encrypt_key_size = LO_KEY_SIZE + 1,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, status_encrypt_type) {
	.state = BOUND,
	.call = STATUS,
	.info.lo_encrypt_type = MAX_LO_CRYPT,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, status_negative_offset) {
	.state = BOUND,
	.call = STATUS,
	.info.lo_offset = -SECTOR,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, status_bad_pointer) {
	.state = BOUND,
	.call = STATUS_BAD_POINTER,
	.error = EFAULT,
};

FIXTURE_VARIANT_ADD(refused, status_unprivileged) {
	.state = BOUND,
	.call = STATUS_AS_NOBODY,
	.info.lo_offset = SECTOR,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(refused, status64_when_unbound) {
	.call = STATUS64,
	.error = ENXIO,
};

FIXTURE_VARIANT_ADD(refused, status64_key_size) {
	.state = BOUND,
	.call = STATUS64,
	.info.lo_encrypt_key_size = LO_KEY_SIZE + 1,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, status64_encrypt_type) {
	.state = BOUND,
	.call = STATUS64,
	.info.lo_encrypt_type = MAX_LO_CRYPT,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, status64_xor_without_key) {
	.state = BOUND,
	.call = STATUS64,
	.info.lo_encrypt_type = LO_CRYPT_XOR,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, status64_offset) {
	.state = BOUND,
	.call = STATUS64,
	.info.lo_offset = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, status64_size_limit) {
	.state = BOUND,
	.call = STATUS64,
	.info.lo_sizelimit = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, status64_offset_with_partitions) {
	.state = BOUND_TABLE,
	.call = STATUS64,
	.info.lo_offset = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, status64_bad_pointer) {
	.state = BOUND,
	.call = STATUS64_BAD_POINTER,
	.error = EFAULT,
};

FIXTURE_VARIANT_ADD(refused, status64_unprivileged) {
	.state = BOUND,
	.call = STATUS64_AS_NOBODY,
	.info.lo_offset = SECTOR,
	.error = EPERM,
};

/* Pages that cannot be dropped: try again (EAGAIN), but not what is wrong. */

FIXTURE_VARIANT_ADD(refused, mapped_status64_new_offset) {
	.state = BOUND_MAPPED,
	.call = STATUS64,
	.info.lo_offset = SECTOR,
	.error = EAGAIN,
};

FIXTURE_VARIANT_ADD(refused, mapped_status64_offset) {
	.state = BOUND_MAPPED,
	.call = STATUS64,
	.info.lo_offset = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, mapped_status64_encrypt_type) {
	.state = BOUND_MAPPED,
	.call = STATUS64,
	.info.lo_encrypt_type = MAX_LO_CRYPT,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, mapped_status64_xor_without_key) {
	.state = BOUND_MAPPED,
	.call = STATUS64,
	.info.lo_encrypt_type = LO_CRYPT_XOR,
	.error = EINVAL,
};

/* The transfer of the old status is given up last. */

FIXTURE_VARIANT_ADD(refused, transfer_status_key_size) {
	.state = BOUND_XOR,
	.call = STATUS,
	.info.lo_encrypt_key_size = LO_KEY_SIZE + 1,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, transfer_status64_encrypt_type) {
	.state = BOUND_XOR,
	.call = STATUS64,
	.info.lo_encrypt_type = MAX_LO_CRYPT,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, transfer_status64_without_driver) {
	.state = BOUND_XOR,
	.call = STATUS64,
	.info.lo_encrypt_type = LO_CRYPT_DES,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, transfer_status64_without_key) {
	.state = BOUND_XOR,
	.call = STATUS64,
	.info.lo_encrypt_type = LO_CRYPT_XOR,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, transfer_status64_offset) {
	.state = BOUND_XOR,
	.call = STATUS64,
	.info.lo_offset = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, transfer_status64_size_limit) {
	.state = BOUND_XOR,
	.call = STATUS64,
	.info.lo_sizelimit = 1ULL << 63,
	.error = EOVERFLOW,
};

FIXTURE_VARIANT_ADD(refused, transfer_status64_key_of_somebody_else) {
	.state = BOUND_XOR,
	.call = STATUS64_AS_NOBODY_WRITABLE,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(refused, capacity_when_unbound) {
	.call = SET_CAPACITY,
	.error = ENXIO,
};

FIXTURE_VARIANT_ADD(refused, capacity_unprivileged) {
	.state = BOUND,
	.call = SET_CAPACITY_AS_NOBODY,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(refused, block_size_when_unbound) {
	.call = SET_BLOCK_SIZE,
	.block_size = 4096,
	.error = ENXIO,
};

FIXTURE_VARIANT_ADD(refused, block_size_777) {
	.state = BOUND,
	.call = SET_BLOCK_SIZE,
	.block_size = 777,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, direct_io_when_unbound) {
	.call = SET_DIRECT_IO,
	.error = ENXIO,
};

FIXTURE_VARIANT_ADD(refused, clr_fd_when_unbound) {
	.call = CLEAR,
	.error = ENXIO,
};

FIXTURE_VARIANT_ADD(refused, rescan_without_partscan) {
	.state = BOUND,
	.call = RESCAN,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(refused, rescan_with_partition_in_use) {
	.state = BOUND_TABLE,
	.call = RESCAN,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(refused, ctl_add_of_what_is_there) {
	.call = CTL_ADD,
	.error = EEXIST,
};

FIXTURE_VARIANT_ADD(refused, ctl_remove_when_open) {
	.call = CTL_REMOVE,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(refused, ctl_remove_when_bound) {
	.state = BOUND,
	.call = CTL_REMOVE,
	.error = EBUSY,
};

/* Kernels without transfers take no notice of one in the old kind of status. */
static bool needs_xor(const FIXTURE_VARIANT(refused) *v)
{
	return v->state == BOUND_XOR ||
	       (v->call == STATUS && (v->info.lo_encrypt_type ||
				      v->info.lo_encrypt_key_size));
}

/* Later kernels can do without the pages. */
static bool pages_do_not_matter(struct loop *lo)
{
	struct loop_info64 info = { .lo_offset = SECTOR };
	int image = image_create('a', 1);
	bool taken;
	void *page;

	loop_attach(lo, image, 0);
	page = mmap(NULL, SECTOR, PROT_READ, MAP_SHARED | MAP_POPULATE, lo->fd, 0);
	if (page == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	taken = !ioctl(lo->fd, LOOP_SET_STATUS64, &info);
	munmap(page, SECTOR);
	loop_detach(lo);
	close(image);
	return taken;
}

FIXTURE_SETUP(refused)
{
	const char *missing = diskseq_missing();
	struct loop_config config = { 0 };

	if (missing)
		SKIP_SETUP("%s", missing);
	loop_create(&self->lo);
	if (needs_xor(variant) && !loop_has_xor(&self->lo)) {
		loop_destroy(&self->lo);
		SKIP_SETUP("no loop transfers: removed in 5.16");
	}
	if (variant->error == EAGAIN && pages_do_not_matter(&self->lo)) {
		loop_destroy(&self->lo);
		SKIP_SETUP("not refused: pages in use do not matter");
	}
	loop_create(&self->other);
	self->image[0] = image_create('a', 1);
	self->image[1] = image_create('b', 2);
	self->table = image_create('t', 1);
	image_table(self->table, 0, TABLE_GPT, 2, "part");
	self->held = -1;

	switch (variant->state) {
	case UNBOUND:
		break;
	case HELD:
		self->held = loop_open(&self->lo, O_RDONLY | O_EXCL);
		break;
	case BOUND:
		loop_attach(&self->lo, self->image[0], 0);
		break;
	case BOUND_READ_ONLY:
		loop_attach(&self->lo, self->image[0], LO_FLAGS_READ_ONLY);
		break;
	case BOUND_XOR:
		config.fd = self->image[0];
		config.info.lo_encrypt_type = LO_CRYPT_XOR;
		config.info.lo_encrypt_key_size = strlen(KEY);
		memcpy(config.info.lo_encrypt_key, KEY, strlen(KEY));
		ASSERT_EQ(0, ioctl(self->lo.fd, LOOP_CONFIGURE, &config));
		break;
	case BOUND_TABLE:
		loop_attach(&self->lo, self->table,
			    LO_FLAGS_READ_ONLY | LO_FLAGS_PARTSCAN);
		self->held = loop_open_part(&self->lo, 1, O_RDONLY);
		break;
	case BOUND_BELOW:
		loop_attach(&self->lo, self->image[0], LO_FLAGS_READ_ONLY);
		loop_attach(&self->other, self->lo.fd, LO_FLAGS_READ_ONLY);
		break;
	case BOUND_MAPPED:
		loop_attach(&self->lo, self->image[0], 0);
		self->mapped = mmap(NULL, IMAGE_BYTES, PROT_READ,
				    MAP_SHARED | MAP_POPULATE, self->lo.fd, 0);
		ASSERT_TRUE(self->mapped != MAP_FAILED);
		ASSERT_EQ('i', self->mapped[0]);
		break;
	}
	self->number = diskseq(self->lo.fd);
	self->sysfs = diskseq_open_sysfs(self->lo.name);
	diskseq_read(self->sysfs);
	monitor_open(&self->mon, self->lo.name);
}

FIXTURE_TEARDOWN(refused)
{
	monitor_close(&self->mon);
	close(self->sysfs);
	if (self->held >= 0)
		close(self->held);
	if (self->mapped)
		munmap(self->mapped, IMAGE_BYTES);
	loop_destroy(&self->other);
	loop_destroy(&self->lo);
	close(self->image[0]);
	close(self->image[1]);
	close(self->table);
}

static int open_backing(FIXTURE_DATA(refused) *self, enum backing backing)
{
	int ends[2];

	switch (backing) {
	case LARGER_IMAGE:
		return dup(self->image[1]);
	case NO_FILE:
		return -1;
	case PATH_ONLY:
		return open("/", O_PATH);
	case DIRECTORY:
		return open("/", O_RDONLY | O_DIRECTORY);
	case CHARACTER_DEVICE:
		return open("/dev/null", O_RDWR);
	case PIPE:
		if (pipe(ends))
			return -1;
		close(ends[1]);
		return ends[0];
	case ITSELF:
		return dup(self->lo.fd);
	case OTHER_LOOP:
		return dup(self->other.fd);
	default:
		return dup(self->image[0]);
	}
}

struct status_call {
	int fd;
	unsigned long cmd;
	void *arg;
};

static int call_status(void *arg)
{
	struct status_call *call = arg;

	return ioctl(call->fd, call->cmd, call->arg) ? errno : 0;
}

/* Returns the errno. */
static int attempt(FIXTURE_DATA(refused) *self,
		   const FIXTURE_VARIANT(refused) *v)
{
	static char * const bad_pointer = (char *)8;
	int control = open("/dev/loop-control", O_RDWR);
	int backing = open_backing(self, v->backing);
	int read_only = open(self->lo.path, O_RDONLY);
	struct loop_info64 info64 = v->info;
	struct loop_info info = {
		.lo_offset = v->info.lo_offset,
		.lo_encrypt_type = v->info.lo_encrypt_type,
		.lo_encrypt_key_size = v->info.lo_encrypt_key_size,
	};
	struct loop_config config = {
		.fd = backing,
		.block_size = v->block_size,
		.info = v->info,
	};
	struct status_call call = { .fd = read_only };
	int fd = self->lo.fd, ret = -1;

	errno = 0;
	switch (v->call) {
	case SET_FD:
		ret = ioctl(fd, LOOP_SET_FD, backing);
		break;
	case CONFIGURE:
		ret = ioctl(fd, LOOP_CONFIGURE, &config);
		break;
	case CONFIGURE_BAD_POINTER:
		ret = ioctl(fd, LOOP_CONFIGURE, bad_pointer);
		break;
	case CHANGE_FD:
		ret = ioctl(fd, LOOP_CHANGE_FD, backing);
		break;
	case STATUS:
		ret = ioctl(fd, LOOP_SET_STATUS, &info);
		break;
	case STATUS_BAD_POINTER:
		ret = ioctl(fd, LOOP_SET_STATUS, bad_pointer);
		break;
	case STATUS_AS_NOBODY:
		call.cmd = LOOP_SET_STATUS;
		call.arg = &info;
		errno = as_nobody(call_status, &call);
		break;
	case STATUS64:
		ret = ioctl(fd, LOOP_SET_STATUS64, &info64);
		break;
	case STATUS64_BAD_POINTER:
		ret = ioctl(fd, LOOP_SET_STATUS64, bad_pointer);
		break;
	case STATUS64_AS_NOBODY:
	case STATUS64_AS_NOBODY_WRITABLE:
		if (v->call == STATUS64_AS_NOBODY_WRITABLE)
			call.fd = fd;
		call.cmd = LOOP_SET_STATUS64;
		call.arg = &info64;
		errno = as_nobody(call_status, &call);
		break;
	case SET_CAPACITY:
		ret = ioctl(fd, LOOP_SET_CAPACITY);
		break;
	case SET_CAPACITY_AS_NOBODY:
		call.cmd = LOOP_SET_CAPACITY;
		errno = as_nobody(call_status, &call);
		break;
	case SET_BLOCK_SIZE:
		ret = ioctl(fd, LOOP_SET_BLOCK_SIZE, (long)v->block_size);
		break;
	case SET_DIRECT_IO:
		ret = ioctl(fd, LOOP_SET_DIRECT_IO, 1L);
		break;
	case CLEAR:
		ret = ioctl(fd, LOOP_CLR_FD);
		break;
	case RESCAN:
		ret = ioctl(fd, BLKRRPART);
		break;
	case CTL_ADD:
		ret = ioctl(control, LOOP_CTL_ADD, self->lo.index);
		break;
	case CTL_REMOVE:
		ret = ioctl(control, LOOP_CTL_REMOVE, self->lo.index);
		break;
	}
	ret = ret < 0 ? errno : 0;
	close(read_only);
	close(backing);
	close(control);
	return ret;
}

TEST_F(refused, r12_with_its_errno)
{
	EXPECT_EQ(variant->error, attempt(self, variant));
}

TEST_F(refused, r12_takes_no_number)
{
	uint64_t counter = next_number();

	ASSERT_NE(0, attempt(self, variant));
	EXPECT_EQ(self->number, diskseq(self->lo.fd));
	EXPECT_EQ(self->number, diskseq_read(self->sysfs));
	EXPECT_EQ(counter + 1, next_number());
}

TEST_F(refused, r12_raises_no_event_and_wakes_nobody)
{
	ASSERT_NE(0, attempt(self, variant));
	EXPECT_STREQ("", events(&self->mon, self->number));
	EXPECT_FALSE(diskseq_wait(self->sysfs, 0));
}

TEST_F(refused, r12_leaves_the_medium_as_it_was)
{
	struct loop_info64 before, after;
	bool bound = loop_is_bound(&self->lo);
	char image = variant->state == BOUND_TABLE ? 't' : 'a';
	const char *key = variant->state == BOUND_XOR ? KEY : NULL;
	uint64_t bytes;

	memset(&before, 0, sizeof(before));
	memset(&after, 0, sizeof(after));
	if (bound)
		loop_get_status(&self->lo, &before);
	ASSERT_NE(0, attempt(self, variant));
	ASSERT_EQ(bound, loop_is_bound(&self->lo));
	ASSERT_EQ(0, ioctl(self->lo.fd, BLKGETSIZE64, &bytes));
	EXPECT_EQ(bound ? IMAGE_BYTES : 0ULL, bytes);
	if (!bound)
		return;

	loop_get_status(&self->lo, &after);
	EXPECT_EQ(0, memcmp(&before, &after, sizeof(before)));
	EXPECT_EQ(0, ioctl(self->lo.fd, BLKFLSBUF));
	EXPECT_TRUE(sector_is(self->lo.fd, 400, image, 400, key));
	EXPECT_EQ(variant->state == BOUND_TABLE ? 2 : 0,
		  loop_count_parts(&self->lo));
}

/* Attach and detach, and say what was seen of it. */
static void good_attach(struct loop *lo, int table, struct script *seen)
{
	uint64_t base = next_number();
	int sysfs = diskseq_open_sysfs(lo->name);
	struct monitor mon;

	diskseq_read(sysfs);
	monitor_open(&mon, lo->name);
	loop_attach(lo, table, LO_FLAGS_PARTSCAN);
	script_add(seen, "%s", events(&mon, base));
	script_add(seen, "number %+lld", (long long)(diskseq(lo->fd) - base));
	script_add(seen, "wakes %d", diskseq_wait(sysfs, 0));
	script_add(seen, "reads %d", sector_is(lo->fd, 400, 't', 400, NULL));
	loop_detach(lo);
	script_add(seen, "%s", events(&mon, base));
	script_add(seen, "number %+lld", (long long)(diskseq(lo->fd) - base));
	monitor_close(&mon);
	close(sysfs);
}

TEST_F(refused, r12_good_attach_behaves_after_it)
{
	static struct script seen, want;

	ASSERT_NE(0, attempt(self, variant));
	if (self->held >= 0)
		close(self->held);
	self->held = -1;
	if (self->mapped)
		munmap(self->mapped, IMAGE_BYTES);
	self->mapped = NULL;
	loop_destroy(&self->other);
	if (loop_is_bound(&self->lo))
		loop_detach(&self->lo);
	good_attach(&self->lo, self->table, &seen);

	/* as on a disk with which nobody has tried anything */
	loop_create(&self->other);
	good_attach(&self->other, self->table, &want);
	EXPECT_STREQ(want.text, seen.text);
}

TEST_HARNESS_MAIN
