// SPDX-License-Identifier: GPL-2.0
/*
 * nbd devices, connected by ioctls or by generic netlink to servers that are
 * processes of the test's own. A device is one of those that the driver made when
 * it was loaded.
 */
#include <endian.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diskseq.h"
#include "nbd_dev.h"

/* Generic netlink: a request, and what the kernel answers. */

void request_init(struct request *r, int type, int cmd, int version)
{
	memset(r, 0, sizeof(*r));
	r->head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	r->head.nlmsg_type = type;
	r->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	r->head.nlmsg_seq = 1;
	r->genl.cmd = cmd;
	r->genl.version = version;
}

static struct nlattr *put(struct request *r, int type, const void *data, int len)
{
	struct nlattr *attr = (void *)((char *)r + NLMSG_ALIGN(r->head.nlmsg_len));

	attr->nla_type = type;
	attr->nla_len = NLA_HDRLEN + len;
	if (len)
		memcpy((char *)attr + NLA_HDRLEN, data, len);
	r->head.nlmsg_len = NLMSG_ALIGN(r->head.nlmsg_len) +
			    NLA_ALIGN(attr->nla_len);
	if (r->head.nlmsg_len > sizeof(*r))
		die("netlink: request too long");
	return attr;
}

void put_u32(struct request *r, int type, uint32_t value)
{
	put(r, type, &value, sizeof(value));
}

void put_u64(struct request *r, int type, uint64_t value)
{
	put(r, type, &value, sizeof(value));
}

/* What has been put since @attr is inside it. */
static void put_end(struct request *r, struct nlattr *attr)
{
	attr->nla_len = (char *)r + r->head.nlmsg_len - (char *)attr;
}

/* Returns the errno. The first message that is no acknowledgment goes to @answer. */
int send_request(const struct request *r, char *answer, size_t size)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	struct nlmsghdr *head;
	char buf[8192];
	ssize_t len;
	int err;

	if (fd < 0)
		die("netlink: %s", strerror(errno));
	if (send(fd, r, r->head.nlmsg_len, 0) < 0)
		die("netlink: send: %s", strerror(errno));
	for (;;) {
		len = recv(fd, buf, sizeof(buf), 0);
		if (len < (ssize_t)NLMSG_HDRLEN)
			die("netlink: receive: %s", strerror(errno));
		head = (struct nlmsghdr *)buf;
		if (head->nlmsg_type == NLMSG_ERROR)
			break;
		if (answer)
			memcpy(answer, buf, (size_t)len < size ? (size_t)len : size);
	}
	err = -((struct nlmsgerr *)NLMSG_DATA(head))->error;
	close(fd);
	return err;
}

/* The family's id, or 0. */
int nbd_family(void)
{
	struct request r;
	struct nlattr *attr;
	char answer[1024] = "";
	char *end;
	uint16_t id;

	request_init(&r, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1);
	put(&r, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME,
	    sizeof(NBD_GENL_FAMILY_NAME));
	if (send_request(&r, answer, sizeof(answer)))
		return 0;
	attr = (void *)(answer + NLMSG_LENGTH(GENL_HDRLEN));
	end = answer + ((struct nlmsghdr *)answer)->nlmsg_len;
	for (; (char *)attr + NLA_HDRLEN <= end && attr->nla_len;
	     attr = (void *)((char *)attr + NLA_ALIGN(attr->nla_len))) {
		if (attr->nla_type != CTRL_ATTR_FAMILY_ID)
			continue;
		memcpy(&id, (char *)attr + NLA_HDRLEN, sizeof(id));
		return id;
	}
	return 0;
}

void nbd_request(struct request *r, int cmd)
{
	int family = nbd_family();

	if (!family)
		die("netlink: no family " NBD_GENL_FAMILY_NAME);
	request_init(r, family, cmd, NBD_GENL_VERSION);
}

void put_sockets(struct request *r, const int *sock, int count)
{
	struct nlattr *sockets = put(r, NBD_ATTR_SOCKETS, NULL, 0), *item;
	int i;

	for (i = 0; i < count; i++) {
		item = put(r, NBD_SOCK_ITEM, NULL, 0);
		put_u32(r, NBD_SOCK_FD, sock[i]);
		put_end(r, item);
	}
	put_end(r, sockets);
}

/* The server. */

static bool all(ssize_t (*io)(int, void *, size_t), int fd, void *buf, size_t len)
{
	ssize_t done;

	for (; len; len -= done, buf = (char *)buf + done) {
		done = io(fd, buf, len);
		if (done <= 0)
			return false;
	}
	return true;
}

static ssize_t send_some(int fd, void *buf, size_t len)
{
	return send(fd, buf, len, MSG_NOSIGNAL);
}

static int order(const int *which)
{
	return __atomic_load_n(which, __ATOMIC_SEQ_CST);
}

/* Returns false if the server is to go. */
static bool may_speak(const struct orders *orders)
{
	while (order(&orders->silent)) {
		if (order(&orders->leave))
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}

static void serve(struct nbd *n, int sock, int image)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct orders *orders = n->orders;
	static char data[1 << 20];
	struct nbd_request request;
	uint32_t len, type;
	uint64_t from;
	int answers = 0;

	for (;;) {
		if (!may_speak(orders) ||
		    !all(read, sock, &request, sizeof(request)))
			return;
		/* it may have waited for this one since before it was told */
		if (!may_speak(orders))
			return;
		if (request.magic != htobe32(NBD_REQUEST_MAGIC))
			die("nbd server: not a request");
		type = be32toh(request.type) & 0xffff;
		from = be64toh(request.from);
		len = be32toh(request.len);
		if (type == NBD_CMD_DISC)
			return;
		if (len > sizeof(data))
			die("nbd server: too much at once");
		if (order(&orders->die_at_read) && type == NBD_CMD_READ)
			return;
		if (order(&orders->die_after) && answers++ == orders->die_after)
			return;
		if (type == NBD_CMD_READ)
			__atomic_store_n(&orders->reading, from, __ATOMIC_SEQ_CST);
		poll(NULL, 0, order(&orders->delay_ms));
		if (n->held >= 0 && order(&orders->close)) {
			close(n->held);
			n->held = -1;
		}
		if (type == NBD_CMD_WRITE &&
		    (!all(read, sock, data, len) ||
		     pwrite(image, data, len, from) != (ssize_t)len))
			return;
		if (type == NBD_CMD_READ) {
			memset(data, 0, len);
			/* the disk may be larger than the image */
			if (pread(image, data, len, from) < 0)
				return;
		}
		memcpy(reply.handle, request.handle, sizeof(reply.handle));
		if (!all(send_some, sock, &reply, sizeof(reply)) ||
		    (type == NBD_CMD_READ && !all(send_some, sock, data, len)))
			return;
	}
}

/* Returns the client's end of the connection. */
int start_server(struct nbd *n, int which, int image)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		die("socketpair: %s", strerror(errno));
	n->server[which] = spawn();
	if (!n->server[which]) {
		close(ends[1]);
		/* nothing that would keep the device, or a socket, in use */
		close(n->fd);
		serve(n, ends[0], image);
		_exit(0);
	}
	close(ends[0]);
	return ends[1];
}

void end_server(struct nbd *n, int which)
{
	if (!n->server[which])
		return;
	kill(n->server[which], SIGKILL);
	waitpid(n->server[which], NULL, 0);
	n->server[which] = 0;
}

/* Devices. */

static bool is_free(int index)
{
	char name[16], path[64];

	snprintf(name, sizeof(name), "nbd%d", index);
	snprintf(path, sizeof(path), "/sys/block/%s/pid", name);
	return disk_exists(name) && access(path, F_OK) && !disk_has_size(name);
}

/* The last one below @index that nobody has connected, or -1. */
int free_below(int index)
{
	do
		index--;
	while (index >= 0 && !is_free(index));
	return index;
}

const char *nbd_missing(void)
{
	const char *missing = diskseq_missing();

	if (missing)
		return missing;
	if (!nbd_family())
		return "no netlink family nbd: kernel without nbd";
	if (free_below(free_below(MAX_INDEX)) < 0)
		return "no two nbd devices that are free";
	return NULL;
}

int disconnect_index(int index)
{
	struct request r;

	nbd_request(&r, NBD_CMD_DISCONNECT);
	put_u32(&r, NBD_ATTR_INDEX, index);
	return send_request(&r, NULL, 0);
}

static struct nbd *owned[2];

/* Whoever waits for a server waits until that dies; clients die with the test. */
static void clean_up(void)
{
	int i, server;

	for (i = 0; i < 2; i++) {
		if (!owned[i])
			continue;
		for (server = 0; server < SERVERS; server++)
			end_server(owned[i], server);
		disconnect_index(owned[i]->index);
	}
}

static void own(struct nbd *n, const struct nbd *instead_of)
{
	int i = owned[0] == instead_of ? 0 : 1;

	if (owned[i] != instead_of)
		die("too many nbd devices");
	owned[i] = n;
}

void nbd_create(struct nbd *n, int below)
{
	n->index = free_below(below);
	snprintf(n->name, sizeof(n->name), "nbd%d", n->index);
	n->fd = -1;
	n->part = -1;
	n->held = -1;
	n->image[0] = image_create('a', 2);
	n->image[1] = image_create('b', 2);
	n->sysfs = diskseq_open_sysfs(n->name);
	n->orders = shared_memory(sizeof(*n->orders));
	n->returned = shared_memory(sizeof(*n->returned));
	monitor_open(&n->mon, n->name);
	own(n, NULL);
	clean_up_by(clean_up);
}

void nbd_begin(struct nbd *n)
{
	n->number = diskseq_read(n->sysfs);
	n->before = next_number();
	monitor_drop(&n->mon);
}

void nbd_open(struct nbd *n)
{
	n->fd = disk_open(n->name, 0, O_RDWR);
}

void nbd_close(struct nbd *n)
{
	if (n->fd >= 0)
		close(n->fd);
	n->fd = -1;
}

/* As udev does when it gets the event. */
void nbd_scan(const struct nbd *n)
{
	close(disk_open(n->name, 0, O_RDONLY));
}

/* Until the number that the test has read from sysfs is over. */
void wait_for_number(struct nbd *n, uint64_t above)
{
	int64_t end = now_ms() + limit_ms();

	while (diskseq_read(n->sysfs) <= above) {
		if (now_ms() > end)
			die("%s: no new number", n->name);
		diskseq_wait(n->sysfs, 100);
	}
}

void client_ended(struct nbd *n)
{
	if (!n->client)
		return;
	if (!ends(n->client))
		die("%s: NBD_DO_IT does not return", n->name);
	n->client = 0;
}

/* The way of the ioctls: somebody stays in NBD_DO_IT. */
static void client(struct nbd *n, int sock, uint64_t bytes, unsigned long flags,
		   const struct gate *go)
{
	int fd = disk_open(n->name, 0, O_RDWR);

	close(n->fd);
	close(n->part);
	if (ioctl(fd, NBD_SET_SOCK, (long)sock) ||
	    ioctl(fd, NBD_SET_BLKSIZE, (long)SECTOR) ||
	    ioctl(fd, NBD_SET_SIZE, (unsigned long)bytes) ||
	    ioctl(fd, NBD_SET_FLAGS, flags))
		_exit(2);
	gate_pass(go);
	*n->returned = 0;
	if (ioctl(fd, NBD_DO_IT) && errno == EBUSY)
		_exit(2);
	*n->returned = diskseq(fd);
	/* as nbd-client does */
	ioctl(fd, NBD_CLEAR_QUE);
	ioctl(fd, NBD_CLEAR_SOCK);
	_exit(0);
}

/*
 * Of all tests: a connection took no number on this kernel, so that none waits for
 * that any more. Those that are about numbers fail by what they find.
 */
static bool *no_number;

static void __attribute__((constructor)) no_number_alloc(void)
{
	no_number = shared_memory(sizeof(*no_number));
}

/* By what sysfs says: it has a server and a size. */
static bool is_connected(const struct nbd *n)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s/pid", n->name);
	return !access(path, F_OK) && disk_has_size(n->name);
}

/* Returns EBUSY if somebody still has the device open since it was connected. */
int connect_by_ioctl(struct nbd *n, int image, unsigned long flags)
{
	uint64_t number = diskseq_read(n->sysfs);
	int64_t end = now_ms() + limit_ms();
	int sock = start_server(n, 0, image);
	struct monitor mon;
	struct uevent ev;
	struct gate go;
	int ret = 0;

	monitor_open(&mon, n->name);
	gate_create(&go);
	n->client = spawn();
	if (!n->client)
		client(n, sock, IMAGE_BYTES, flags, &go);
	close(sock);
	close(go.fd[0]);
	close(go.fd[1]);
	/* the event is the last that is to be seen of it */
	while (!monitor_next(&mon, &ev, 20) || !ev.media_change ||
	       ev.diskseq <= number) {
		if (waitpid(n->client, NULL, WNOHANG)) {
			n->client = 0;
			end_server(n, 0);
			ret = EBUSY;
			break;
		}
		if (*no_number && is_connected(n))
			break;
		if (now_ms() <= end)
			continue;
		tell_where(n->client);
		if (!is_connected(n))
			die("%s: not connected", n->name);
		*no_number = true;
	}
	monitor_close(&mon);
	return ret;
}

int connect_by_netlink(struct nbd *n, int image, uint64_t flags,
		       uint64_t client_flags, int sockets)
{
	int sock[SERVERS], i, err;
	struct request r;

	for (i = 0; i < sockets; i++)
		sock[i] = start_server(n, i, image);
	nbd_request(&r, NBD_CMD_CONNECT);
	put_u32(&r, NBD_ATTR_INDEX, n->index);
	put_u64(&r, NBD_ATTR_SIZE_BYTES, IMAGE_BYTES);
	put_u64(&r, NBD_ATTR_BLOCK_SIZE_BYTES, SECTOR);
	put_u64(&r, NBD_ATTR_SERVER_FLAGS, flags);
	if (client_flags)
		put_u64(&r, NBD_ATTR_CLIENT_FLAGS, client_flags);
	put_sockets(&r, sock, sockets);
	err = send_request(&r, NULL, 0);
	for (i = 0; i < sockets; i++) {
		close(sock[i]);
		if (err)
			end_server(n, i);
	}
	return err;
}

int disconnect_by_ioctl(struct nbd *n)
{
	int fd = disk_open(n->name, 0, O_RDWR), err;

	err = ioctl(fd, NBD_DISCONNECT) ? errno : 0;
	client_ended(n);
	close(fd);
	return err;
}

void nbd_destroy(struct nbd *n)
{
	int i;

	if (!n->name[0])
		return;
	nbd_close(n);
	if (n->part >= 0)
		close(n->part);
	n->part = -1;
	for (i = 0; i < SERVERS; i++)
		end_server(n, i);
	client_ended(n);
	disconnect_index(n->index);
	/* partitions that were in use */
	nbd_scan(n);
	monitor_close(&n->mon);
	close(n->sysfs);
	close(n->image[0]);
	close(n->image[1]);
	own(NULL, n);
	n->name[0] = '\0';
}

void by_ioctl(struct nbd *n)
{
	must(connect_by_ioctl(n, n->image[0], NBD_FLAG_HAS_FLAGS), "NBD_DO_IT");
}

void by_netlink(struct nbd *n)
{
	must(connect_by_netlink(n, n->image[0], NBD_FLAG_HAS_FLAGS, 0, 1),
	     "NBD_CMD_CONNECT");
}

int by_fd(struct nbd *n, unsigned long cmd, unsigned long arg)
{
	int fd = disk_open(n->name, 0, O_RDWR), err;

	err = ioctl(fd, cmd, arg) ? errno : 0;
	close(fd);
	return err;
}

int op_clear_sock(struct nbd *n)
{
	int err = by_fd(n, NBD_CLEAR_SOCK, 0);

	client_ended(n);
	return err;
}

int op_server_dies(struct nbd *n)
{
	end_server(n, 0);
	client_ended(n);
	return 0;
}

int op_client_dies(struct nbd *n)
{
	kill(n->client, SIGKILL);
	client_ended(n);
	return 0;
}

int op_disconnect_by_netlink(struct nbd *n)
{
	return disconnect_index(n->index);
}

int op_disconnect_by_ioctl(struct nbd *n)
{
	return disconnect_by_ioctl(n);
}
