// SPDX-License-Identifier: GPL-2.0
/*
 * nbd: the medium is the server, which is connected by ioctls or by generic
 * netlink. What connecting and disconnecting owe to those who watch the disk
 * (rules 3, 5, 7, 8, 11), that nothing else and nothing that is refused takes a
 * number (rules 3, 12), and what becomes of the partitions (rules 6, 9, 10).
 *
 * The server is a process of the test's own. The device is one of those that
 * the driver made when it was loaded.
 */
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "diskseq.h"
#include "nbd_dev.h"

#define OPENERS			2
#define CONNECTS		20
#define PARTS			3

/* A descriptor that is not open; newer kernels refuse -1 before they look. */
#define NO_FILE			INT_MAX

/* What a device is before the operation. */

static void unconnected(struct nbd *n)
{
	(void)n;
}

static void by_netlink_until_closed(struct nbd *n)
{
	must(connect_by_netlink(n, n->image[0], NBD_FLAG_HAS_FLAGS,
				NBD_CFLAG_DISCONNECT_ON_CLOSE, 1),
	     "NBD_CMD_CONNECT");
}

/* The server has gone, which for netlink is no disconnect. */
static void by_netlink_dead(struct nbd *n)
{
	by_netlink(n);
	end_server(n, 0);
}

static void was_by_ioctl(struct nbd *n)
{
	must(connect_by_ioctl(n, n->image[1], NBD_FLAG_HAS_FLAGS), "NBD_DO_IT");
	nbd_scan(n);
	must(disconnect_by_ioctl(n), "NBD_DISCONNECT");
}

static void was_by_netlink(struct nbd *n)
{
	must(connect_by_netlink(n, n->image[1], NBD_FLAG_HAS_FLAGS, 0, 1),
	     "NBD_CMD_CONNECT");
	nbd_scan(n);
	must(disconnect_index(n->index), "NBD_CMD_DISCONNECT");
}

static void was_by_netlink_until_closed(struct nbd *n)
{
	uint64_t number;

	by_netlink_until_closed(n);
	number = diskseq_read(n->sysfs);
	nbd_scan(n);
	wait_for_number(n, number);
}

static void unconnected_open(struct nbd *n)
{
	nbd_open(n);
}

static void by_ioctl_open(struct nbd *n)
{
	by_ioctl(n);
	nbd_open(n);
}

/* Operations that give it another medium. All return the errno. */

static int op_connect_by_ioctl(struct nbd *n)
{
	return connect_by_ioctl(n, n->image[0], NBD_FLAG_HAS_FLAGS);
}

static int op_connect_by_netlink(struct nbd *n)
{
	return connect_by_netlink(n, n->image[0], NBD_FLAG_HAS_FLAGS, 0, 1);
}

static int op_connect_twice_by_netlink(struct nbd *n)
{
	return connect_by_netlink(n, n->image[0], NBD_FLAG_HAS_FLAGS |
				  NBD_FLAG_CAN_MULTI_CONN, 0, 2);
}

static int op_connect_read_only_by_ioctl(struct nbd *n)
{
	return connect_by_ioctl(n, n->image[0], NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY);
}

static int op_connect_read_only_by_netlink(struct nbd *n)
{
	return connect_by_netlink(n, n->image[0], NBD_FLAG_HAS_FLAGS |
				  NBD_FLAG_READ_ONLY, 0, 1);
}

/* As nbd-client -d does. */
static int op_disconnect_and_clear_sock(struct nbd *n)
{
	int fd = disk_open(n->name, 0, O_RDWR), err;

	ioctl(fd, NBD_CLEAR_QUE);
	err = ioctl(fd, NBD_DISCONNECT) || ioctl(fd, NBD_CLEAR_SOCK) ? errno : 0;
	client_ended(n);
	close(fd);
	return err;
}

static int op_close(struct nbd *n)
{
	uint64_t number = diskseq_read(n->sysfs);

	nbd_scan(n);
	/* somebody else may have it open */
	wait_for_number(n, number);
	return 0;
}

/* Operations that leave the medium, or are refused. */

static int op_open_and_close(struct nbd *n)
{
	char buf[SECTOR];
	int i, fd;

	for (i = 0; i < 5; i++) {
		fd = disk_open(n->name, 0, O_RDWR);
		/* who has it open still keeps the size of a medium that is gone */
		if (disk_bytes(fd) && pread(fd, buf, SECTOR, 0) != SECTOR &&
		    errno != EIO)
			die("%s: %s", n->name, strerror(errno));
		close(fd);
	}
	return 0;
}

static int op_do_it(struct nbd *n)
{
	return by_fd(n, NBD_DO_IT, 0);
}

static int op_disconnect(struct nbd *n)
{
	return by_fd(n, NBD_DISCONNECT, 0);
}

static int op_size(struct nbd *n)
{
	return by_fd(n, NBD_SET_SIZE, 2 * IMAGE_BYTES);
}

static int op_size_blocks(struct nbd *n)
{
	return by_fd(n, NBD_SET_SIZE_BLOCKS, 2 * IMAGE_SECTORS);
}

static int op_block_size(struct nbd *n)
{
	return by_fd(n, NBD_SET_BLKSIZE, 1024);
}

static int op_block_size_777(struct nbd *n)
{
	return by_fd(n, NBD_SET_BLKSIZE, 777);
}

static int op_block_size_256(struct nbd *n)
{
	return by_fd(n, NBD_SET_BLKSIZE, 256);
}

static int op_block_size_1048576(struct nbd *n)
{
	return by_fd(n, NBD_SET_BLKSIZE, 1 << 20);
}

static int op_timeout(struct nbd *n)
{
	return by_fd(n, NBD_SET_TIMEOUT, 30);
}

static int op_flags(struct nbd *n)
{
	return by_fd(n, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS);
}

static int op_clear_que(struct nbd *n)
{
	return by_fd(n, NBD_CLEAR_QUE, 0);
}

static int op_sock_of_no_file(struct nbd *n)
{
	return by_fd(n, NBD_SET_SOCK, NO_FILE);
}

static int op_sock_of_image(struct nbd *n)
{
	return by_fd(n, NBD_SET_SOCK, n->image[0]);
}

static int op_sock(struct nbd *n)
{
	int sock = start_server(n, 1, n->image[1]);
	int err = by_fd(n, NBD_SET_SOCK, sock);

	close(sock);
	end_server(n, 1);
	return err;
}

static int op_two_socks(struct nbd *n)
{
	int fd = disk_open(n->name, 0, O_RDWR), i, sock, err = 0;

	for (i = 0; i < 2; i++) {
		sock = start_server(n, i, n->image[1]);
		if (ioctl(fd, NBD_SET_SOCK, (long)sock))
			die("NBD_SET_SOCK: %s", strerror(errno));
		close(sock);
	}
	if (ioctl(fd, NBD_SET_SIZE, (long)IMAGE_BYTES) ||
	    ioctl(fd, NBD_DO_IT))
		err = errno;
	close(fd);
	for (i = 0; i < 2; i++)
		end_server(n, i);
	return err;
}

static int do_it(void *arg)
{
	return ioctl(*(int *)arg, NBD_DO_IT) ? errno : 0;
}

static int clear_sock(void *arg)
{
	return ioctl(*(int *)arg, NBD_CLEAR_SOCK) ? errno : 0;
}

static int as_nobody_by_fd(struct nbd *n, int (*fn)(void *))
{
	int fd = disk_open(n->name, 0, O_RDWR);
	int err = as_nobody(fn, &fd);

	close(fd);
	return err;
}

static int op_do_it_as_nobody(struct nbd *n)
{
	return as_nobody_by_fd(n, do_it);
}

static int op_clear_sock_as_nobody(struct nbd *n)
{
	return as_nobody_by_fd(n, clear_sock);
}

/* What a request to connect lacks. */
enum lack {
	LACKS_NOTHING,
	LACKS_INDEX,
	LACKS_SIZE,
	LACKS_BLOCK_SIZE,
	LACKS_SOCKETS,
	LACKS_SOCKET,
	LACKS_FILE,
};

static int connect_without(struct nbd *n, int cmd, enum lack lack, int sockets)
{
	int sock[SERVERS], i, err;
	struct request r;

	for (i = 0; i < sockets; i++)
		sock[i] = lack == LACKS_SOCKET ? dup(n->image[0]) :
			  lack == LACKS_FILE ? NO_FILE :
			  start_server(n, i, n->image[1]);
	nbd_request(&r, cmd);
	put_u32(&r, NBD_ATTR_INDEX, lack == LACKS_INDEX ? 1 << 30 : n->index);
	if (lack != LACKS_SIZE)
		put_u64(&r, NBD_ATTR_SIZE_BYTES, IMAGE_BYTES);
	put_u64(&r, NBD_ATTR_BLOCK_SIZE_BYTES,
		lack == LACKS_BLOCK_SIZE ? 777 : SECTOR);
	put_u64(&r, NBD_ATTR_SERVER_FLAGS, NBD_FLAG_HAS_FLAGS);
	if (lack != LACKS_SOCKETS)
		put_sockets(&r, sock, sockets);
	err = send_request(&r, NULL, 0);
	for (i = 0; i < sockets; i++) {
		close(sock[i]);
		if (lack != LACKS_SOCKET && lack != LACKS_FILE)
			end_server(n, i);
	}
	return err;
}

static int op_no_index(struct nbd *n)
{
	return connect_without(n, NBD_CMD_CONNECT, LACKS_INDEX, 1);
}

static int op_no_size(struct nbd *n)
{
	return connect_without(n, NBD_CMD_CONNECT, LACKS_SIZE, 1);
}

static int op_no_block_size(struct nbd *n)
{
	return connect_without(n, NBD_CMD_CONNECT, LACKS_BLOCK_SIZE, 1);
}

static int op_no_sockets(struct nbd *n)
{
	return connect_without(n, NBD_CMD_CONNECT, LACKS_SOCKETS, 0);
}

static int op_no_socket(struct nbd *n)
{
	return connect_without(n, NBD_CMD_CONNECT, LACKS_SOCKET, 1);
}

static int op_no_file(struct nbd *n)
{
	return connect_without(n, NBD_CMD_CONNECT, LACKS_FILE, 1);
}

static int op_two_sockets(struct nbd *n)
{
	return connect_without(n, NBD_CMD_CONNECT, LACKS_NOTHING, 2);
}

/* The device that is connected keeps its server, which is number 0. */
static int op_connect_busy(struct nbd *n)
{
	pid_t server = n->server[0];
	int err;

	n->server[0] = 0;
	err = connect_without(n, NBD_CMD_CONNECT, LACKS_NOTHING, 1);
	n->server[0] = server;
	return err;
}

static int op_reconfigure_block_size(struct nbd *n)
{
	struct request r;

	nbd_request(&r, NBD_CMD_RECONFIGURE);
	put_u32(&r, NBD_ATTR_INDEX, n->index);
	put_u64(&r, NBD_ATTR_BLOCK_SIZE_BYTES, 777);
	return send_request(&r, NULL, 0);
}

static int op_reconfigure(struct nbd *n)
{
	struct request r;

	nbd_request(&r, NBD_CMD_RECONFIGURE);
	put_u32(&r, NBD_ATTR_INDEX, n->index);
	put_u64(&r, NBD_ATTR_TIMEOUT, 30);
	return send_request(&r, NULL, 0);
}

static int op_reconfigure_size(struct nbd *n)
{
	struct request r;

	nbd_request(&r, NBD_CMD_RECONFIGURE);
	put_u32(&r, NBD_ATTR_INDEX, n->index);
	put_u64(&r, NBD_ATTR_SIZE_BYTES, 2 * IMAGE_BYTES);
	return send_request(&r, NULL, 0);
}

/* Another server for a link that is dead, if the kernel knows already. */
static int reconnect(struct nbd *n)
{
	int sock = start_server(n, 0, n->image[0]), err;
	struct request r;

	nbd_request(&r, NBD_CMD_RECONFIGURE);
	put_u32(&r, NBD_ATTR_INDEX, n->index);
	put_sockets(&r, &sock, 1);
	err = send_request(&r, NULL, 0);
	close(sock);
	return err;
}

static void by_netlink_cleared(struct nbd *n)
{
	by_netlink(n);
	/* the configuration stays for as long as the device is open */
	nbd_open(n);
	must(ioctl(n->fd, NBD_CLEAR_SOCK) ? errno : 0, "NBD_CLEAR_SOCK");
}

static bool serves(const struct nbd *n, char image)
{
	int fd = disk_open(n->name, 0, O_RDONLY);
	bool yes = sector_is(fd, 400, image, 400, NULL);

	close(fd);
	return yes;
}

/* As long as the kernel takes the link for alive, it gives the socket back. */
static int op_reconnect(struct nbd *n)
{
	int64_t end = now_ms() + limit_ms();

	do {
		if (now_ms() > end)
			die("%s: not reconnected", n->name);
		end_server(n, 0);
		must(reconnect(n), "NBD_CMD_RECONFIGURE");
	} while (!serves(n, 'a'));
	return 0;
}

static int op_server_leaves(struct nbd *n)
{
	end_server(n, 0);
	return 0;
}

static int call_disconnect(void *arg)
{
	return disconnect_index(((struct nbd *)arg)->index);
}

static int call_connect(void *arg)
{
	return connect_without(arg, NBD_CMD_CONNECT, LACKS_NOTHING, 1);
}

static int op_disconnect_as_nobody(struct nbd *n)
{
	return as_nobody(call_disconnect, n);
}

static int op_connect_as_nobody(struct nbd *n)
{
	return as_nobody(call_connect, n);
}

/* What the tests of new_medium.h and same_medium.h need to know. */

#define DISK			nbd

static const char *driver_create(struct nbd *d, int kind)
{
	const char *missing = nbd_missing();

	if (!missing)
		nbd_create(d, MAX_INDEX);
	return missing;
}

static void driver_destroy(struct nbd *d)
{
	nbd_destroy(d);
}

static const char *driver_name(const struct nbd *d)
{
	return d->name;
}

static int driver_fd(const struct nbd *d)
{
	return d->fd;
}

static int driver_open(const struct nbd *d)
{
	return disk_open(d->name, 0, O_RDWR);
}

static void driver_close(struct nbd *d)
{
	nbd_close(d);
}

/* The devices are as old as the machine. */
static uint64_t driver_last_number(const struct nbd *d)
{
	return next_number();
}

#include "same_medium.h"

FIXTURE_VARIANT_ADD(new_medium, connect_by_ioctl) {
	.prepare = unconnected,
	.operate = op_connect_by_ioctl,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_ioctl_while_open) {
	.prepare = unconnected_open,
	.operate = op_connect_by_ioctl,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_ioctl_read_only) {
	.prepare = unconnected,
	.operate = op_connect_read_only_by_ioctl,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_ioctl_to_another) {
	.prepare = was_by_ioctl,
	.operate = op_connect_by_ioctl,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_netlink) {
	.prepare = unconnected,
	.operate = op_connect_by_netlink,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_netlink_read_only) {
	.prepare = unconnected,
	.operate = op_connect_read_only_by_netlink,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_netlink_with_two_sockets) {
	.prepare = unconnected,
	.operate = op_connect_twice_by_netlink,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_netlink_to_another) {
	.prepare = was_by_netlink,
	.operate = op_connect_by_netlink,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_netlink_after_close) {
	.prepare = was_by_netlink_until_closed,
	.operate = op_connect_by_netlink,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, connect_by_ioctl_after_netlink) {
	.prepare = was_by_netlink,
	.operate = op_connect_by_ioctl,
	.bytes = IMAGE_BYTES,
	.image = 'a',
};

FIXTURE_VARIANT_ADD(new_medium, disconnect_by_ioctl) {
	.prepare = by_ioctl,
	.operate = op_disconnect_by_ioctl,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, disconnect_by_ioctl_while_open) {
	.prepare = by_ioctl_open,
	.operate = op_disconnect_by_ioctl,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, clear_sock) {
	.prepare = by_ioctl,
	.operate = op_clear_sock,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, disconnect_and_clear_sock) {
	.prepare = by_ioctl,
	.operate = op_disconnect_and_clear_sock,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, server_dies) {
	.prepare = by_ioctl,
	.operate = op_server_dies,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, client_dies) {
	.prepare = by_ioctl,
	.operate = op_client_dies,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, disconnect_by_netlink) {
	.prepare = by_netlink,
	.operate = op_disconnect_by_netlink,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, disconnect_by_netlink_of_dead_link) {
	.prepare = by_netlink_dead,
	.operate = op_disconnect_by_netlink,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, clear_sock_of_netlink) {
	.prepare = by_netlink,
	.operate = op_clear_sock,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, disconnect_and_clear_sock_of_netlink) {
	.prepare = by_netlink,
	.operate = op_disconnect_and_clear_sock,
	.size_stays = true,
};

FIXTURE_VARIANT_ADD(new_medium, disconnect_on_close) {
	.prepare = by_netlink_until_closed,
	.operate = op_close,
	.size_stays = true,
};

TEST_F(new_medium, r8_has_its_number_when_NBD_DO_IT_returns)
{
	ASSERT_EQ(0, variant->operate(&self->disk));
	/* of another process, if there was one */
	if (*self->disk.returned) {
		EXPECT_EQ(self->before + 1, *self->disk.returned);
	}
}

/* Somebody has the disk open while its medium comes or goes. */
FIXTURE(open_file) {
	struct nbd n;
};

FIXTURE_VARIANT(open_file) {
	void (*prepare)(struct nbd *n);
	int (*operate)(struct nbd *n);
	bool shows;
};

FIXTURE_VARIANT_ADD(open_file, connect_by_ioctl) {
	.prepare = unconnected,
	.operate = op_connect_by_ioctl,
	.shows = true,
};

FIXTURE_VARIANT_ADD(open_file, disconnect_by_ioctl) {
	.prepare = by_ioctl,
	.operate = op_disconnect_by_ioctl,
};

FIXTURE_VARIANT_ADD(open_file, clear_sock) {
	.prepare = by_ioctl,
	.operate = op_clear_sock,
};

FIXTURE_VARIANT_ADD(open_file, server_dies) {
	.prepare = by_ioctl,
	.operate = op_server_dies,
};

FIXTURE_VARIANT_ADD(open_file, client_dies) {
	.prepare = by_ioctl,
	.operate = op_client_dies,
};

FIXTURE_VARIANT_ADD(open_file, disconnect_by_netlink) {
	.prepare = by_netlink,
	.operate = op_disconnect_by_netlink,
};

FIXTURE_VARIANT_ADD(open_file, clear_sock_of_netlink) {
	.prepare = by_netlink,
	.operate = op_clear_sock,
};

FIXTURE_SETUP(open_file)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	variant->prepare(&self->n);
	nbd_open(&self->n);
	nbd_begin(&self->n);
}

FIXTURE_TEARDOWN(open_file)
{
	nbd_destroy(&self->n);
}

TEST_F(open_file, r8_tells_the_number_of_the_medium)
{
	ASSERT_EQ(0, variant->operate(&self->n));
	EXPECT_EQ(self->n.before + 1, diskseq(self->n.fd));
	if (variant->shows) {
		EXPECT_EQ((uint64_t)IMAGE_BYTES, disk_bytes(self->n.fd));
	}
}

TEST_F(open_file, r8_reads_nothing_of_the_old_medium)
{
	struct nbd *n = &self->n;

	if (!variant->shows) {
		ASSERT_TRUE(sector_is(n->fd, LOOKED_AT, 'a', LOOKED_AT, NULL));
	}
	ASSERT_EQ(0, variant->operate(n));
	EXPECT_EQ(variant->shows,
		  sector_is(n->fd, LOOKED_AT, 'a', LOOKED_AT, NULL));
}

/* Operations that leave the disk its medium, refused ones (rule 12) among them. */

FIXTURE_VARIANT_ADD(same_medium, open_and_close_unconnected) {
	.prepare = unconnected,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_disconnected) {
	.prepare = was_by_netlink,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close) {
	.prepare = by_ioctl,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, open_and_close_of_netlink) {
	.prepare = by_netlink,
	.operate = op_open_and_close,
};

FIXTURE_VARIANT_ADD(same_medium, clear_sock_unconnected) {
	.prepare = unconnected,
	.operate = op_clear_sock,
};

FIXTURE_VARIANT_ADD(same_medium, clear_sock_disconnected) {
	.prepare = was_by_ioctl,
	.operate = op_clear_sock,
};

FIXTURE_VARIANT_ADD(same_medium, clear_sock_disconnected_by_netlink) {
	.prepare = was_by_netlink,
	.operate = op_clear_sock,
};

FIXTURE_VARIANT_ADD(same_medium, clear_sock_disconnected_by_close) {
	.prepare = was_by_netlink_until_closed,
	.operate = op_clear_sock,
};

FIXTURE_VARIANT_ADD(same_medium, disconnect_unconnected) {
	.prepare = unconnected,
	.operate = op_disconnect,
};

FIXTURE_VARIANT_ADD(same_medium, disconnect_by_netlink_unconnected) {
	.prepare = unconnected,
	.operate = op_disconnect_by_netlink,
};

FIXTURE_VARIANT_ADD(same_medium, disconnect_by_netlink_open) {
	.prepare = unconnected_open,
	.operate = op_disconnect_by_netlink,
};

FIXTURE_VARIANT_ADD(same_medium, disconnect_by_netlink_twice) {
	.prepare = was_by_netlink,
	.operate = op_disconnect_by_netlink,
};

FIXTURE_VARIANT_ADD(same_medium, do_it_without_socket) {
	.prepare = unconnected,
	.operate = op_do_it,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, do_it_as_nobody) {
	.prepare = unconnected,
	.operate = op_do_it_as_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(same_medium, do_it_when_connected) {
	.prepare = by_ioctl,
	.operate = op_do_it,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, do_it_of_netlink) {
	.prepare = by_netlink,
	.operate = op_do_it,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, do_it_with_two_sockets) {
	.prepare = unconnected,
	.operate = op_two_socks,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, set_sock_alone) {
	.prepare = unconnected,
	.operate = op_sock,
};

FIXTURE_VARIANT_ADD(same_medium, set_sock_of_no_file) {
	.prepare = unconnected,
	.operate = op_sock_of_no_file,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(same_medium, set_sock_of_no_socket) {
	.prepare = unconnected,
	.operate = op_sock_of_image,
	.error = ENOTSOCK,
};

FIXTURE_VARIANT_ADD(same_medium, set_sock_when_connected) {
	.prepare = by_ioctl,
	.operate = op_sock,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, set_sock_of_netlink) {
	.prepare = by_netlink,
	.operate = op_sock,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, clear_sock_as_nobody) {
	.prepare = by_ioctl,
	.operate = op_clear_sock_as_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(same_medium, block_size_777) {
	.prepare = by_ioctl,
	.operate = op_block_size_777,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, block_size_256) {
	.prepare = by_ioctl,
	.operate = op_block_size_256,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, block_size_1048576) {
	.prepare = by_ioctl,
	.operate = op_block_size_1048576,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, block_size) {
	.prepare = by_ioctl,
	.operate = op_block_size,
	.events = "change disk +0",
};

FIXTURE_VARIANT_ADD(same_medium, size) {
	.prepare = by_ioctl,
	.operate = op_size,
	.events = "change disk +0",
	.may_resize = true,
};

FIXTURE_VARIANT_ADD(same_medium, size_blocks) {
	.prepare = by_ioctl,
	.operate = op_size_blocks,
	.events = "change disk +0",
	.may_resize = true,
};

FIXTURE_VARIANT_ADD(same_medium, size_unconnected) {
	.prepare = unconnected,
	.operate = op_size,
};

FIXTURE_VARIANT_ADD(same_medium, timeout) {
	.prepare = by_ioctl,
	.operate = op_timeout,
};

FIXTURE_VARIANT_ADD(same_medium, flags) {
	.prepare = by_ioctl,
	.operate = op_flags,
};

FIXTURE_VARIANT_ADD(same_medium, clear_que) {
	.prepare = by_ioctl,
	.operate = op_clear_que,
};

FIXTURE_VARIANT_ADD(same_medium, connect_without_index) {
	.prepare = unconnected,
	.operate = op_no_index,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, connect_without_size) {
	.prepare = unconnected,
	.operate = op_no_size,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, connect_with_block_size_777) {
	.prepare = unconnected,
	.operate = op_no_block_size,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, connect_without_sockets) {
	.prepare = unconnected,
	.operate = op_no_sockets,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, connect_of_no_socket) {
	.prepare = unconnected,
	.operate = op_no_socket,
	.error = ENOTSOCK,
};

FIXTURE_VARIANT_ADD(same_medium, connect_of_no_file) {
	.prepare = unconnected,
	.operate = op_no_file,
	.error = EBADF,
};

FIXTURE_VARIANT_ADD(same_medium, connect_with_two_sockets) {
	.prepare = unconnected,
	.operate = op_two_sockets,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, connect_as_nobody) {
	.prepare = unconnected,
	.operate = op_connect_as_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(same_medium, connect_while_open) {
	.prepare = unconnected_open,
	.operate = op_connect_busy,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, connect_when_connected) {
	.prepare = by_netlink,
	.operate = op_connect_busy,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, connect_when_connected_by_ioctl) {
	.prepare = by_ioctl,
	.operate = op_connect_busy,
	.error = EBUSY,
};

FIXTURE_VARIANT_ADD(same_medium, disconnect_as_nobody) {
	.prepare = by_netlink,
	.operate = op_disconnect_as_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(same_medium, reconfigure_unconnected) {
	.prepare = unconnected,
	.operate = op_reconfigure,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, reconnect_after_clear_sock) {
	.prepare = by_netlink_cleared,
	.operate = reconnect,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, reconfigure) {
	.prepare = by_netlink,
	.operate = op_reconfigure,
};

FIXTURE_VARIANT_ADD(same_medium, reconfigure_size) {
	.prepare = by_netlink,
	.operate = op_reconfigure_size,
	.events = "change disk +0",
	.may_resize = true,
};

FIXTURE_VARIANT_ADD(same_medium, reconfigure_block_size_777) {
	.prepare = by_netlink,
	.operate = op_reconfigure_block_size,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(same_medium, server_of_netlink_dies) {
	.prepare = by_netlink,
	.operate = op_server_leaves,
};

FIXTURE_VARIANT_ADD(same_medium, reconnect) {
	.prepare = by_netlink_dead,
	.operate = op_reconnect,
};

TEST_F(same_medium, r7_announces_nothing_and_wakes_nobody)
{
	expect_no_announcement(self, variant, _metadata);
}

static void disconnect(struct nbd *n)
{
	int i;

	nbd_close(n);
	for (i = 0; i < SERVERS; i++)
		end_server(n, i);
	client_ended(n);
	must(disconnect_index(n->index), "NBD_CMD_DISCONNECT");
}

/* Connect and disconnect, and say what was seen of it. */
static void good_medium(struct nbd *n, struct script *seen)
{
	uint64_t base;

	image_table(n->image[0], 0, TABLE_GPT, 2, "a");
	monitor_drop(&n->mon);
	base = next_number();
	by_netlink(n);
	script_add(seen, "%s", events(&n->mon, base));
	script_add(seen, "number %+lld",
		   (long long)(diskseq_sysfs(n->name) - base));
	nbd_scan(n);
	script_add(seen, "%s", events(&n->mon, base));
	script_add(seen, "reads %d", serves(n, 'a'));
	must(disconnect_index(n->index), "NBD_CMD_DISCONNECT");
	script_add(seen, "%s", events(&n->mon, base));
	by_ioctl(n);
	nbd_scan(n);
	must(disconnect_by_ioctl(n), "NBD_DISCONNECT");
	script_add(seen, "%s", events(&n->mon, base));
	script_add(seen, "number %+lld",
		   (long long)(diskseq_sysfs(n->name) - base));
}

TEST_F(same_medium, r12_good_medium_behaves_after_it)
{
	static struct script seen, want;

	ASSERT_EQ(variant->error, variant->operate(&self->disk));
	disconnect(&self->disk);
	good_medium(&self->disk, &seen);

	/* as on a disk with which nobody has tried anything */
	nbd_create(&self->other, self->disk.index);
	good_medium(&self->other, &want);
	EXPECT_STREQ(want.text, seen.text);
}

/* The partitions of what is connected to. */
FIXTURE(partitions) {
	struct nbd n;
};

FIXTURE_VARIANT(partitions) {
	void (*connect)(struct nbd *n);
	int (*disconnect)(struct nbd *n);
	enum table table;
	int count;
};

FIXTURE_VARIANT_ADD(partitions, gpt_by_ioctl) {
	.connect = by_ioctl,
	.disconnect = op_disconnect_by_ioctl,
	.table = TABLE_GPT,
	.count = PARTS,
};

FIXTURE_VARIANT_ADD(partitions, msdos_by_ioctl) {
	.connect = by_ioctl,
	.disconnect = op_clear_sock,
	.table = TABLE_MSDOS,
	.count = PARTS,
};

FIXTURE_VARIANT_ADD(partitions, gpt_until_the_server_dies) {
	.connect = by_ioctl,
	.disconnect = op_server_dies,
	.table = TABLE_GPT,
	.count = 1,
};

FIXTURE_VARIANT_ADD(partitions, gpt_by_netlink) {
	.connect = by_netlink,
	.disconnect = op_disconnect_by_netlink,
	.table = TABLE_GPT,
	.count = PARTS,
};

FIXTURE_VARIANT_ADD(partitions, msdos_by_netlink) {
	.connect = by_netlink,
	.disconnect = op_disconnect_by_netlink,
	.table = TABLE_MSDOS,
	.count = 1,
};

FIXTURE_VARIANT_ADD(partitions, gpt_by_netlink_and_clear_sock) {
	.connect = by_netlink,
	.disconnect = op_clear_sock,
	.table = TABLE_GPT,
	.count = PARTS,
};

FIXTURE_SETUP(partitions)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	image_table(self->n.image[0], 0, variant->table, variant->count, "a");
	nbd_begin(&self->n);
}

FIXTURE_TEARDOWN(partitions)
{
	nbd_destroy(&self->n);
}

TEST_F(partitions, r9_come_after_the_announcement_when_it_is_opened)
{
	struct script want = { .len = 0 };

	variant->connect(&self->n);
	EXPECT_STREQ("change disk +1 media", events(&self->n.mon, self->n.before));
	nbd_scan(&self->n);
	script_parts(&want, "add", variant->count, 1);
	EXPECT_STREQ(want.text, events(&self->n.mon, self->n.before));
}

TEST_F(partitions, r6_have_the_number_of_their_medium)
{
	char name[32];
	int i;

	variant->connect(&self->n);
	nbd_scan(&self->n);
	ASSERT_EQ(variant->count, disk_count_parts(self->n.name));
	for (i = 1; i <= variant->count; i++) {
		self->n.part = disk_open(self->n.name, i, O_RDONLY);
		EXPECT_EQ(self->n.before + 1, diskseq(self->n.part));
		close(self->n.part);
		self->n.part = -1;
		snprintf(name, sizeof(name), "%sp%d", self->n.name, i);
		EXPECT_EQ(self->n.before + 1, diskseq_uevent_file(name));
	}
}

TEST_F(partitions, r9_leave_before_the_disconnect_is_announced)
{
	struct script want = { .len = 0 };

	variant->connect(&self->n);
	nbd_scan(&self->n);
	monitor_drop(&self->n.mon);
	ASSERT_EQ(0, variant->disconnect(&self->n));
	script_parts(&want, "remove", variant->count, 1);
	script_add(&want, "change disk +2 media");
	EXPECT_STREQ(want.text, events(&self->n.mon, self->n.before));
}

/* udev takes that file for a connection, even while somebody has the device open. */
TEST_F(partitions, r8_pid_file_goes_before_the_disconnect_is_announced)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/pid", self->n.name);
	variant->connect(&self->n);
	nbd_open(&self->n);
	EXPECT_EQ(0, access(path, F_OK));
	ASSERT_EQ(0, variant->disconnect(&self->n));
	EXPECT_LE(self->n.before + 2, diskseq_read(self->n.sysfs));
	EXPECT_EQ(-1, access(path, F_OK));
}

TEST_F(partitions, r9_are_those_of_the_next_medium_after_it)
{
	struct script want = { .len = 0 };
	uint64_t start, sectors;

	variant->connect(&self->n);
	nbd_scan(&self->n);
	ASSERT_EQ(0, variant->disconnect(&self->n));
	monitor_drop(&self->n.mon);
	end_server(&self->n, 0);

	image_table(self->n.image[1], 0, TABLE_MSDOS, 2, "b");
	ASSERT_EQ(0, connect_by_netlink(&self->n, self->n.image[1],
					NBD_FLAG_HAS_FLAGS, 0, 1));
	nbd_scan(&self->n);
	script_add(&want, "change disk +3 media");
	script_parts(&want, "add", 2, 3);
	EXPECT_STREQ(want.text, events(&self->n.mon, self->n.before));
	self->n.part = disk_open(self->n.name, 2, O_RDONLY);
	image_part(TABLE_MSDOS, 2, &start, &sectors);
	EXPECT_TRUE(sector_is(self->n.part, 0, 'b', start, NULL));
}

TEST_F(partitions, r10_are_added_once_however_often_it_is_opened)
{
	struct script want = { .len = 0 };

	variant->connect(&self->n);
	ASSERT_EQ(0, op_open_and_close(&self->n));
	script_add(&want, "change disk +1 media");
	script_parts(&want, "add", variant->count, 1);
	EXPECT_STREQ(want.text, events(&self->n.mon, self->n.before));
}

TEST_F(partitions, r10_are_added_again_by_an_explicit_rescan_only)
{
	struct script want = { .len = 0 };

	variant->connect(&self->n);
	nbd_scan(&self->n);
	monitor_drop(&self->n.mon);
	ASSERT_EQ(0, by_fd(&self->n, BLKRRPART, 0));
	script_parts(&want, "remove", variant->count, 1);
	script_parts(&want, "add", variant->count, 1);
	EXPECT_STREQ(want.text, part_events(&self->n.mon, self->n.before));
	EXPECT_EQ(self->n.before + 1, diskseq_read(self->n.sysfs));
}

/* One of them is in use when the medium goes. */
static void disconnect_in_use(FIXTURE_DATA(partitions) *self,
			      const FIXTURE_VARIANT(partitions) *v)
{
	v->connect(&self->n);
	nbd_scan(&self->n);
	self->n.part = disk_open(self->n.name, 1, O_RDONLY);
	monitor_drop(&self->n.mon);
	must(v->disconnect(&self->n), "disconnect");
}

TEST_F(partitions, r6_in_use_stay_with_their_number)
{
	char name[32];

	disconnect_in_use(self, variant);
	snprintf(name, sizeof(name), "%sp1", self->n.name);
	EXPECT_EQ(variant->count, disk_count_parts(self->n.name));
	EXPECT_EQ(self->n.before + 1, diskseq(self->n.part));
	EXPECT_EQ(self->n.before + 1, diskseq_uevent_file(name));
	EXPECT_EQ(self->n.before + 2, diskseq_read(self->n.sysfs));
}

TEST_F(partitions, r7_medium_is_announced_in_spite_of_those_in_use)
{
	disconnect_in_use(self, variant);
	EXPECT_STREQ("change disk +2 media", events(&self->n.mon, self->n.before));
}

TEST_F(partitions, r9_that_were_in_use_leave_before_the_next_announcement)
{
	struct script want = { .len = 0 };

	disconnect_in_use(self, variant);
	close(self->n.part);
	self->n.part = -1;
	end_server(&self->n, 0);
	monitor_drop(&self->n.mon);

	image_table(self->n.image[1], 0, TABLE_GPT, 2, "b");
	ASSERT_EQ(0, connect_by_netlink(&self->n, self->n.image[1],
					NBD_FLAG_HAS_FLAGS, 0, 1));
	nbd_scan(&self->n);
	script_parts(&want, "remove", variant->count, 1);
	script_add(&want, "change disk +3 media");
	script_parts(&want, "add", 2, 3);
	EXPECT_STREQ(want.text, events(&self->n.mon, self->n.before));
}

TEST_F(partitions, r9_that_were_in_use_leave_at_the_first_open_after_it)
{
	struct script want = { .len = 0 };
	int fd;

	disconnect_in_use(self, variant);
	fd = disk_open(self->n.name, 0, O_RDONLY);
	EXPECT_EQ(variant->count, disk_count_parts(self->n.name));
	close(self->n.part);
	self->n.part = -1;
	monitor_drop(&self->n.mon);

	nbd_scan(&self->n);
	script_parts(&want, "remove", variant->count, 1);
	EXPECT_STREQ(want.text, events(&self->n.mon, self->n.before));
	close(fd);
}

/* Netlink has two more ways for a connection to end, and one to go on. */
FIXTURE(netlink) {
	struct nbd n;
};

FIXTURE_SETUP(netlink)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	image_table(self->n.image[0], 0, TABLE_GPT, PARTS, "a");
	nbd_begin(&self->n);
}

FIXTURE_TEARDOWN(netlink)
{
	nbd_destroy(&self->n);
}

TEST_F(netlink, r9_partitions_leave_before_disconnect_on_close_is_announced)
{
	by_netlink_until_closed(&self->n);
	nbd_scan(&self->n);
	wait_for_number(&self->n, self->n.before + 1);
	EXPECT_STREQ("change disk +1 media, add p1-3 +1, remove p1-3 +1, change disk +2 media",
		     events(&self->n.mon, self->n.before));
}

TEST_F(netlink, r9_partitions_leave_before_the_close_of_one_is_announced)
{
	by_netlink_until_closed(&self->n);
	nbd_open(&self->n);
	self->n.part = disk_open(self->n.name, 2, O_RDONLY);
	nbd_close(&self->n);
	EXPECT_STREQ("change disk +1 media, add p1-3 +1",
		     events(&self->n.mon, self->n.before));
	close(self->n.part);
	self->n.part = -1;
	wait_for_number(&self->n, self->n.before + 1);
	EXPECT_STREQ("remove p1-3 +1, change disk +2 media",
		     events(&self->n.mon, self->n.before));
}

TEST_F(netlink, r3_reconnect_keeps_partitions_and_number)
{
	by_netlink(&self->n);
	nbd_scan(&self->n);
	monitor_drop(&self->n.mon);
	end_server(&self->n, 0);
	ASSERT_EQ(0, op_reconnect(&self->n));
	EXPECT_STREQ("", events(&self->n.mon, self->n.before));
	EXPECT_EQ(self->n.before + 1, diskseq_read(self->n.sysfs));
	EXPECT_EQ(PARTS, disk_count_parts(self->n.name));
}

/* An open finds out that nobody answers, which is no reason to scan. */
TEST_F(netlink, r10_open_of_a_dead_link_keeps_partitions)
{
	char buf[SECTOR];
	int fd;

	by_netlink(&self->n);
	nbd_scan(&self->n);
	monitor_drop(&self->n.mon);
	end_server(&self->n, 0);
	fd = disk_open(self->n.name, 0, O_RDONLY);
	EXPECT_EQ(-1, pread(fd, buf, SECTOR, 300 * SECTOR));
	close(fd);
	nbd_scan(&self->n);
	EXPECT_EQ(PARTS, disk_count_parts(self->n.name));
	ASSERT_EQ(0, op_reconnect(&self->n));
	nbd_scan(&self->n);
	EXPECT_STREQ("", events(&self->n.mon, self->n.before));
	EXPECT_EQ(self->n.before + 1, diskseq_read(self->n.sysfs));
	EXPECT_EQ(PARTS, disk_count_parts(self->n.name));
}

TEST_F(netlink, r10_resize_of_a_closed_device_keeps_partitions)
{
	by_netlink(&self->n);
	nbd_scan(&self->n);
	monitor_drop(&self->n.mon);
	ASSERT_EQ(0, op_reconfigure_size(&self->n));
	nbd_scan(&self->n);
	EXPECT_STREQ("change disk +1",
		     without_resize(events(&self->n.mon, self->n.before)));
	EXPECT_EQ(PARTS, disk_count_parts(self->n.name));
}

TEST_F(netlink, r10_partitions_come_when_the_device_has_got_its_size)
{
	int sock = start_server(&self->n, 0, self->n.image[0]);
	struct request r;

	nbd_request(&r, NBD_CMD_CONNECT);
	put_u32(&r, NBD_ATTR_INDEX, self->n.index);
	put_u64(&r, NBD_ATTR_SIZE_BYTES, 0);
	put_u64(&r, NBD_ATTR_BLOCK_SIZE_BYTES, SECTOR);
	put_sockets(&r, &sock, 1);
	ASSERT_EQ(0, send_request(&r, NULL, 0));
	close(sock);
	nbd_scan(&self->n);
	EXPECT_STREQ("change disk +1 media",
		     events(&self->n.mon, self->n.before));

	ASSERT_EQ(0, op_reconfigure_size(&self->n));
	EXPECT_STREQ("change disk +1", events(&self->n.mon, self->n.before));
	nbd_scan(&self->n);
	EXPECT_STREQ("change disk +1, add p1-3 +1",
		     events(&self->n.mon, self->n.before));
}

/* The flags of a server can make the disk read-only, and the announcement tells that. */
TEST_F(netlink, r7_read_only_medium_is_announced_once)
{
	/* so that the disk has the last number that was given */
	was_by_netlink(&self->n);
	end_server(&self->n, 0);
	self->n.before = diskseq_read(self->n.sysfs);
	monitor_drop(&self->n.mon);

	ASSERT_EQ(0, connect_by_netlink(&self->n, self->n.image[0],
					NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY,
					0, 1));
	EXPECT_STREQ("change disk +1 media",
		     events(&self->n.mon, self->n.before));
	ASSERT_EQ(0, disconnect_index(self->n.index));
	EXPECT_STREQ("change disk +2 media",
		     events(&self->n.mon, self->n.before));
	/* the next one is not */
	end_server(&self->n, 0);
	by_netlink(&self->n);
	EXPECT_STREQ("change disk +3 media",
		     events(&self->n.mon, self->n.before));
}

/*
 * The server dies and leaves a request without an answer, for which a process
 * waits in the kernel: NBD_DO_IT returns nevertheless, and so does the process.
 */
FIXTURE(in_flight) {
	struct nbd n;
};

FIXTURE_VARIANT(in_flight) {
	bool opened;		/* before, so that not the open waits but a read */
};

FIXTURE_VARIANT_ADD(in_flight, scan) {
	.opened = false,
};

FIXTURE_VARIANT_ADD(in_flight, read) {
	.opened = true,
};

FIXTURE_SETUP(in_flight)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	nbd_begin(&self->n);
}

FIXTURE_TEARDOWN(in_flight)
{
	nbd_destroy(&self->n);
}

TEST_F(in_flight, r8_request_does_not_keep_the_medium)
{
	struct nbd *n = &self->n;
	pid_t reader;

	by_ioctl(n);
	if (variant->opened)
		nbd_scan(n);
	__atomic_store_n(&n->orders->die_at_read, 1, __ATOMIC_SEQ_CST);
	reader = spawn();
	if (!reader) {
		int fd = disk_open(n->name, 0, O_RDONLY);
		char buf[SECTOR];

		_exit(pread(fd, buf, SECTOR, 300 * SECTOR) == SECTOR);
	}
	ASSERT_TRUE(ends(n->client));
	n->client = 0;
	ASSERT_TRUE(ends(reader));
	EXPECT_EQ(n->before + 2, *n->returned);
	EXPECT_STREQ("change disk +1 media, change disk +2 media",
		     events(&n->mon, n->before));
}

/*
 * Programs that look at each disk and partition of which they get an event, as
 * udev does, while media come and go.
 */
FIXTURE(openers) {
	struct nbd n;
	pid_t opener[OPENERS];
};

FIXTURE_VARIANT(openers) {
	bool ioctl;
	int (*disconnect)(struct nbd *n);
};

FIXTURE_VARIANT_ADD(openers, by_ioctl) {
	.ioctl = true,
	.disconnect = op_disconnect_by_ioctl,
};

FIXTURE_VARIANT_ADD(openers, by_ioctl_until_the_server_dies) {
	.ioctl = true,
	.disconnect = op_server_dies,
};

FIXTURE_VARIANT_ADD(openers, by_netlink) {
	.ioctl = false,
	.disconnect = op_disconnect_by_netlink,
};

FIXTURE_SETUP(openers)
{
	const char *missing = nbd_missing();
	int i;

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	image_table(self->n.image[0], 0, TABLE_GPT, PARTS, "a");
	for (i = 0; i < OPENERS; i++)
		self->opener[i] = spawn_opener(self->n.name);
	nbd_begin(&self->n);
}

FIXTURE_TEARDOWN(openers)
{
	nbd_destroy(&self->n);
}

/* They may have the device open: a refused try takes no number. */
static void connect_when_free(struct nbd *n, bool ioctl)
{
	int64_t end = now_ms() + limit_ms();
	int err;

	do {
		err = ioctl ? op_connect_by_ioctl(n) : op_connect_by_netlink(n);
		if (err && err != EBUSY)
			die("%s: connect: %s", n->name, strerror(err));
		if (now_ms() > end)
			die("%s: never free", n->name);
	} while (err);
}

struct seen {
	int announced;
	int not_next;		/* announcements that are not of the next number */
	int other_events;	/* of the disk, that are no announcements */
	int added_twice;	/* partitions, for one number */
	int not_added;
	int other_medium;	/* that come or leave with a wrong number */
};

/*
 * An opener may have a partition open when its medium goes. Then all of them stay
 * (rule 6), and what comes for the next number may be a scan after that.
 */
static void check_openers(struct nbd *n, struct seen *seen)
{
	uint64_t number[PARTS + 1] = { 0 }, last = n->before;
	int added[PARTS + 1] = { 0 }, p;
	const char *mark = mark_now();
	bool in_use = false;
	struct uevent ev;

	memset(seen, 0, sizeof(*seen));
	while (monitor_next_before(&n->mon, &ev, mark)) {
		if (!ev.partno && ev.media_change) {
			seen->announced++;
			seen->not_next += ev.diskseq != last + 1;
			last = ev.diskseq;
			/* every other medium has partitions */
			for (p = 1; p <= PARTS; p++) {
				if ((last - n->before) % 2 == 0 && !in_use)
					seen->not_added += !added[p];
				added[p] = 0;
			}
			for (p = 1, in_use = false; p <= PARTS; p++)
				in_use |= number[p];
		} else if (!ev.partno) {
			seen->other_events += !in_use;
		} else if (ev.partno > PARTS) {
			die("a partition that is not in the table");
		} else if (!strcmp(ev.action, "add")) {
			seen->added_twice += added[ev.partno]++;
			seen->other_medium += ev.diskseq != last;
			number[ev.partno] = ev.diskseq;
		} else {
			seen->other_medium += ev.diskseq != number[ev.partno];
			number[ev.partno] = 0;
		}
	}
}

/* Somebody has found the last partition. */
static void wait_for_parts(const struct nbd *n)
{
	int64_t end = now_ms() + limit_ms();

	while (disk_count_parts(n->name) != PARTS) {
		if (now_ms() > end)
			die("%s: nobody finds the partitions", n->name);
		poll(NULL, 0, 1);
	}
	/* there before its event; who opens the disk waits for the scan to end */
	close(disk_open(n->name, 0, O_RDONLY));
}

TEST_F(openers, r10_do_not_disturb_partitions_or_announcements)
{
	struct nbd *n = &self->n;
	struct seen seen;
	int i;

	/* the first connect and disconnect take numbers 1 and 2, and so on */
	for (i = 0; i < CONNECTS; i++) {
		connect_when_free(n, variant->ioctl);
		wait_for_parts(n);
		ASSERT_EQ(0, variant->disconnect(n));
		wait_for_number(n, n->before + 2 * i + 1);
		end_server(n, 0);
	}
	for (i = 0; i < OPENERS; i++)
		end_child(self->opener[i]);
	check_openers(n, &seen);
	EXPECT_EQ(2 * CONNECTS, seen.announced);
	EXPECT_EQ(0, seen.not_next);
	EXPECT_EQ(0, seen.other_events);
	EXPECT_EQ(0, seen.added_twice);
	EXPECT_EQ(0, seen.not_added);
	EXPECT_EQ(0, seen.other_medium);
}

/* Their opens, in answer to events, are answered by no more events. */
TEST_F(openers, r7_opening_at_every_event_ends)
{
	struct nbd *n = &self->n;
	int i;

	connect_when_free(n, variant->ioctl);
	wait_for_parts(n);
	/* one more event, for which they open it once more each */
	trigger(n->name, "change");
	monitor_drop(&n->mon);
	poll(NULL, 0, 200);
	EXPECT_STREQ("", events(&n->mon, n->before));
	/* without a server it cannot be read, but is there for netlink */
	end_server(n, 0);
	poll(NULL, 0, 200);
	monitor_drop(&n->mon);
	poll(NULL, 0, 500);
	EXPECT_STREQ("", events(&n->mon, n->before));
	/* what an opener has asked the server for would keep it for ever */
	disconnect_index(n->index);
	for (i = 0; i < OPENERS; i++)
		end_child(self->opener[i]);
}

/*
 * One process clears the sockets that there have been, through the same open file as
 * another one, which goes on to connect the device. What the former has to do last must
 * not befall the connection of the latter.
 */
FIXTURE(cleared) {
	struct nbd n;
	struct connecting {
		int begun;
		enum { SETTING_UP, IN_DO_IT, ENDED } state;
	} *connecting;
};

FIXTURE_SETUP(cleared)
{
	const char *missing = nbd_missing();

	if (missing)
		SKIP_SETUP("%s", missing);
	nbd_create(&self->n, MAX_INDEX);
	self->connecting = shared_memory(sizeof(*self->connecting));
}

FIXTURE_TEARDOWN(cleared)
{
	nbd_destroy(&self->n);
}

/* So that one is stopped by the other, wherever it is. */
static void on_the_same_cpu(int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };
	cpu_set_t cpu;

	CPU_ZERO(&cpu);
	CPU_SET(0, &cpu);
	if (sched_setaffinity(0, sizeof(cpu), &cpu) ||
	    sched_setscheduler(0, policy, &param))
		die("scheduler: %s", strerror(errno));
}

static void clear_when_begun(const struct nbd *n, struct connecting *c)
{
	on_the_same_cpu(SCHED_IDLE, 0);
	while (!__atomic_load_n(&c->begun, __ATOMIC_SEQ_CST))
		;
	ioctl(n->fd, NBD_CLEAR_SOCK);
	_exit(0);
}

static void begin_to_connect(const struct nbd *n, struct connecting *c, int sock, int round)
{
	on_the_same_cpu(SCHED_FIFO, 10);
	__atomic_store_n(&c->begun, 1, __ATOMIC_SEQ_CST);
	/* how long the other one takes is not known */
	usleep(100 * round);
	if (!ioctl(n->fd, NBD_SET_SOCK, (long)sock)) {
		__atomic_store_n(&c->state, IN_DO_IT, __ATOMIC_SEQ_CST);
		ioctl(n->fd, NBD_DO_IT);
	}
	__atomic_store_n(&c->state, ENDED, __ATOMIC_SEQ_CST);
	_exit(0);
}

TEST_F(cleared, r3_who_connects_meanwhile_has_its_medium)
{
	struct connecting *c = self->connecting;
	int round, sock, connected = 0, empty = 0;
	struct nbd *n = &self->n;
	pid_t clearer, client;
	int64_t end;

	for (round = 0; round < 60; round++) {
		nbd_open(n);
		sock = start_server(n, 0, n->image[0]);
		ASSERT_EQ(0, ioctl(n->fd, NBD_SET_BLKSIZE, (long)SECTOR));
		ASSERT_EQ(0, ioctl(n->fd, NBD_SET_SIZE, (long)IMAGE_BYTES));
		c->begun = 0;
		c->state = SETTING_UP;
		clearer = spawn();
		if (!clearer)
			clear_when_begun(n, c);
		client = spawn();
		if (!client)
			begin_to_connect(n, c, sock, round);
		close(sock);
		ASSERT_TRUE(ends(clearer));
		end = now_ms() + 1000;
		do
			poll(NULL, 0, 5);
		while (__atomic_load_n(&c->state, __ATOMIC_SEQ_CST) != ENDED &&
		       !disk_bytes(n->fd) && now_ms() < end);
		if (__atomic_load_n(&c->state, __ATOMIC_SEQ_CST) == IN_DO_IT) {
			connected++;
			empty += !disk_bytes(n->fd);
		}
		ioctl(n->fd, NBD_DISCONNECT);
		ioctl(n->fd, NBD_CLEAR_SOCK);
		end_server(n, 0);
		ASSERT_TRUE(ends(client));
		nbd_close(n);
	}
	EXPECT_LT(0, connected);
	EXPECT_EQ(0, empty) TH_LOG("of %d connections", connected);
}

TEST_HARNESS_MAIN
