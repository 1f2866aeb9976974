// SPDX-License-Identifier: GPL-2.0
/*
 * Operations on nbd devices, by ioctls and by netlink.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject.h"
#include "nbd_dev.h"

static struct nbd n = { .fd = -1, .part = -1, .held = -1 };
static struct request request;
static int image, netlink = -1, sock = -1, scan = -1;

/* Of the process that stays in NBD_DO_IT. */
static struct {
	bool fired;
	bool done;
	int err;
} *client;

static void set_up(void)
{
	const char *missing = nbd_missing();

	if (missing)
		skip(missing);
	nbd_create(&n, MAX_INDEX);
	let_requests_fail(n.name);
	image = image_create('n', 1);
	image_table(image, 0, TABLE_GPT, 3, "n");
	netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (netlink < 0)
		die("netlink: %s", strerror(errno));
	client = shared_memory(sizeof(*client));
	watch(n.name);
}

static void drop_sock(void)
{
	if (sock >= 0)
		close(sock);
	sock = -1;
	end_server(&n, 0);
}

static void close_scan(void)
{
	if (scan >= 0)
		close(scan);
	scan = -1;
}

/* Nobody connected, and closed. */
static void restore(void)
{
	close_scan();
	nbd_close(&n);
	disconnect_index(n.index);
	drop_sock();
}

static void tear_down(void)
{
	restore();
	nbd_destroy(&n);
}

/*
 * The kernel answers without memory, too, but who waits for the answer may only be
 * told that there was one.
 */
static int send_it(void)
{
	struct timeval limit = { .tv_sec = 20 };
	struct nlmsghdr *head;
	char buf[8192];
	ssize_t len;

	setsockopt(netlink, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (send(netlink, &request, request.head.nlmsg_len, 0) < 0)
		return errno;
	for (;;) {
		len = recv(netlink, buf, sizeof(buf), 0);
		if (len < 0)
			return errno == ENOBUFS ? NO_ANSWER : errno;
		head = (struct nlmsghdr *)buf;
		if (head->nlmsg_type == NLMSG_ERROR)
			return -((struct nlmsgerr *)NLMSG_DATA(head))->error;
	}
}

static void ask_connect(void)
{
	drop_sock();
	sock = start_server(&n, 0, image);
	nbd_request(&request, NBD_CMD_CONNECT);
	put_u32(&request, NBD_ATTR_INDEX, n.index);
	put_u64(&request, NBD_ATTR_SIZE_BYTES, IMAGE_BYTES);
	put_u64(&request, NBD_ATTR_BLOCK_SIZE_BYTES, SECTOR);
	put_u64(&request, NBD_ATTR_SERVER_FLAGS, NBD_FLAG_HAS_FLAGS);
	if (op->arg)
		put_u64(&request, NBD_ATTR_CLIENT_FLAGS, op->arg);
	put_sockets(&request, &sock, 1);
}

static void connected(void)
{
	ask_connect();
	must(send_it(), "connect");
}

/* As udev does; it is closed again, so that nobody has it open. */
static void connected_and_scanned(void)
{
	connected();
	nbd_scan(&n);
}

static int open_it(void)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/%s", n.name);
	scan = open(path, O_RDONLY | O_CLOEXEC);
	return scan < 0 ? errno : 0;
}

static void ask_disconnect(void)
{
	nbd_request(&request, NBD_CMD_DISCONNECT);
	put_u32(&request, NBD_ATTR_INDEX, n.index);
}

static void ask_reconfigure(void)
{
	nbd_request(&request, NBD_CMD_RECONFIGURE);
	put_u32(&request, NBD_ATTR_INDEX, n.index);
	put_u64(&request, NBD_ATTR_SIZE_BYTES, IMAGE_BYTES / 2);
}

static void connected_and_open(void)
{
	connected_and_scanned();
	nbd_open(&n);
}

/* The open scans, too; each close would be the end. */
static void connected_until_closed(void)
{
	connected();
	nbd_open(&n);
}

static int close_it(void)
{
	nbd_close(&n);
	return 0;
}

static int clear_sock(void)
{
	return called(ioctl(n.fd, NBD_CLEAR_SOCK));
}

/* By ioctls. */

static void take_sock(void)
{
	if (n.fd < 0)
		nbd_open(&n);
	drop_sock();
	sock = start_server(&n, 0, image);
}

static int set_sock(void)
{
	return called(ioctl(n.fd, NBD_SET_SOCK, (long)sock));
}

static void unset_sock(void)
{
	ioctl(n.fd, NBD_CLEAR_SOCK);
	restore();
}

static void new_sock(void)
{
	drop_sock();
	sock = start_server(&n, 0, n.image[0]);
}

static void do_it(void)
{
	int fd = disk_open(n.name, 0, O_RDWR);
	unsigned int nth = failure();

	must(called(ioctl(fd, NBD_SET_SOCK, (long)sock)), "NBD_SET_SOCK");
	must(called(ioctl(fd, NBD_SET_BLKSIZE, (long)SECTOR)), "NBD_SET_BLKSIZE");
	must(called(ioctl(fd, NBD_SET_SIZE, (long)IMAGE_BYTES)), "NBD_SET_SIZE");
	must(called(ioctl(fd, NBD_SET_FLAGS, (long)NBD_FLAG_HAS_FLAGS)), "NBD_SET_FLAGS");
	close(sock);
	arm(nth);
	client->err = called(ioctl(fd, NBD_DO_IT));
	client->fired = disarm() && nth;
	ioctl(fd, NBD_CLEAR_QUE);
	ioctl(fd, NBD_CLEAR_SOCK);
	close(fd);
	__atomic_store_n(&client->done, true, __ATOMIC_SEQ_CST);
	_exit(0);
}

/* From NBD_DO_IT to where it returns since another process disconnects. */
static int connect_and_disconnect(void)
{
	uint64_t before = diskseq_read(n.sysfs);
	pid_t pid;

	memset(client, 0, sizeof(*client));
	pid = spawn();
	if (!pid)
		do_it();
	while (diskseq_read(n.sysfs) == before && !__atomic_load_n(&client->done, __ATOMIC_SEQ_CST))
		poll(NULL, 0, 1);
	if (!client->done)
		must(by_fd(&n, NBD_DISCONNECT, 0), "NBD_DISCONNECT");
	if (!ends(pid))
		die("%s: NBD_DO_IT does not return", n.name);
	failed_in_other(client->fired);
	return client->err;
}

#define DEVICE	.set_up = set_up, .restore = restore, .tear_down = tear_down

const struct operation nbd_operations[] = {
	{ "nbd_connect", DEVICE, .ready = ask_connect, .act = send_it, .taken = 1 },
	{ "nbd_open_scans", DEVICE, .prepare = connected, .act = open_it, .flags = NO_LOOK },
	{ "nbd_disconnect", DEVICE, .prepare = connected_and_scanned,
	  .ready = ask_disconnect, .act = send_it, .taken = 1 },
	{ "nbd_disconnect_on_close", DEVICE, .prepare = connected_until_closed, .act = close_it,
	  .arg = NBD_CFLAG_DISCONNECT_ON_CLOSE, .taken = 1 },
	{ "nbd_reconfigure", DEVICE, .prepare = connected_and_scanned,
	  .ready = ask_reconfigure, .act = send_it },
	{ "nbd_clear_sock", DEVICE, .prepare = connected_and_open, .act = clear_sock,
	  .taken = 1 },
	{ "nbd_set_sock", .set_up = set_up, .ready = take_sock, .act = set_sock,
	  .restore = unset_sock, .tear_down = tear_down },
	{ "nbd_do_it", DEVICE, .ready = new_sock, .act = connect_and_disconnect,
	  .flags = ARMS_ITSELF, .taken = 2 },
	{ }
};
