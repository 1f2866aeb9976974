/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of nbd share: generic netlink, servers, devices, and the ways in
 * which a connection begins and ends.
 */
#ifndef NBD_DEV_H
#define NBD_DEV_H

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <linux/netlink.h>

#include "diskseq.h"

#ifndef NBD_FLAG_CAN_MULTI_CONN
#define NBD_FLAG_CAN_MULTI_CONN		0x100
#endif
#ifndef NBD_CFLAG_DISCONNECT_ON_CLOSE
#define NBD_CFLAG_DISCONNECT_ON_CLOSE	0x2
#endif

/* nbd0 and so on, as many as a module can be told to make */
#define MAX_INDEX			64
#define SERVERS				2

/* What a server does besides serving. */
struct orders {
	int die_at_read;	/* without an answer */
	int die_after;		/* so many answers, if it is not 0 */
	int silent;		/* as long as it is set: takes no request */
	int leave;		/* even if it is silent */
	int delay_ms;		/* before each answer */
	int close;		/* first what the server alone has open */
	uint64_t reading;	/* where, it says: from the last request on */
};

struct nbd {
	int index;
	char name[16];		/* nbd15 */
	int image[2];		/* what is connected to first, and then */
	int sysfs;
	struct monitor mon;
	uint64_t before;	/* of the counter, so that the next is one more */
	uint64_t number;	/* of the disk at that time */
	pid_t server[SERVERS];
	pid_t client;		/* who is in NBD_DO_IT */
	struct orders *orders;	/* shared with the servers */
	uint64_t *returned;	/* number when NBD_DO_IT returned, shared */
	int fd;			/* the disk, if the test has it open */
	int part;		/* a partition that is in use */
	int held;		/* what a server gets to close, see orders */
};

/* Generic netlink */

struct request {
	struct nlmsghdr head;
	struct genlmsghdr genl;
	char attrs[512];
};

void request_init(struct request *r, int type, int cmd, int version);
void put_u32(struct request *r, int type, uint32_t value);
void put_u64(struct request *r, int type, uint64_t value);
void put_sockets(struct request *r, const int *sock, int count);
int send_request(const struct request *r, char *answer, size_t size);
int nbd_family(void);
void nbd_request(struct request *r, int cmd);

/* Servers */

int start_server(struct nbd *n, int which, int image);
void end_server(struct nbd *n, int which);

/* Devices */

int free_below(int index);
const char *nbd_missing(void);
int disconnect_index(int index);
void nbd_create(struct nbd *n, int below);
void nbd_begin(struct nbd *n);
void nbd_open(struct nbd *n);
void nbd_close(struct nbd *n);
void nbd_scan(const struct nbd *n);
void wait_for_number(struct nbd *n, uint64_t above);
void client_ended(struct nbd *n);
int connect_by_ioctl(struct nbd *n, int image, unsigned long flags);
int connect_by_netlink(struct nbd *n, int image, uint64_t flags,
		       uint64_t client_flags, int sockets);
int disconnect_by_ioctl(struct nbd *n);
void nbd_destroy(struct nbd *n);

/* Connections. What begins with "op" returns the errno. */

void by_ioctl(struct nbd *n);
void by_netlink(struct nbd *n);
int by_fd(struct nbd *n, unsigned long cmd, unsigned long arg);
int op_clear_sock(struct nbd *n);
int op_server_dies(struct nbd *n);
int op_client_dies(struct nbd *n);
int op_disconnect_by_netlink(struct nbd *n);
int op_disconnect_by_ioctl(struct nbd *n);

#endif /* NBD_DEV_H */
