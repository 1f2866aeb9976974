// SPDX-License-Identifier: GPL-2.0
/*
 * The uevents of block devices, as they arrive at a netlink socket: the kernel's,
 * or what udev sends to those who listen to it.
 *
 * The socket's buffer is large, and losing an event (ENOBUFS) ends the test. To
 * know that nothing more comes, a synthetic event of a device that has nothing
 * to do with disks is triggered and waited for: what the kernel has raised
 * before it has arrived then.
 */
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/netlink.h>

#include "diskseq.h"

#define RECEIVE_BUFFER		(256 << 20)
#define MARKER			"/sys/devices/virtual/mem/null/uevent"

/* Groups of the socket: the kernel's events, and what udev makes of them. */
#define FROM_KERNEL		1
#define FROM_UDEV		2

/* What udev's messages begin with. */
struct udev_header {
	char prefix[8];		/* "libudev" */
	uint32_t magic;
	uint32_t size;
	uint32_t pairs;		/* where they begin */
};

static void open_socket(struct monitor *mon, const char *disk, int group)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = group };
	int size = RECEIVE_BUFFER;

	snprintf(mon->disk, sizeof(mon->disk), "%s", disk ?: "");
	mon->udev = group == FROM_UDEV;
	mon->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC,
			 NETLINK_KOBJECT_UEVENT);
	if (mon->fd < 0 ||
	    setsockopt(mon->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) ||
	    bind(mon->fd, (struct sockaddr *)&addr, sizeof(addr)))
		die("uevent socket: %s", strerror(errno));
}

/* All events of block devices, or of @disk and its partitions. */
void monitor_open(struct monitor *mon, const char *disk)
{
	open_socket(mon, disk, FROM_KERNEL);
}

/* The same as programs get them that listen to udev: after it is done with each. */
void monitor_open_udev(struct monitor *mon, const char *disk)
{
	open_socket(mon, disk, FROM_UDEV);
}

void monitor_close(struct monitor *mon)
{
	close(mon->fd);
}

static const char *value(const char *pair, const char *key)
{
	size_t len = strlen(key);

	return strncmp(pair, key, len) || pair[len] != '=' ? NULL :
	       pair + len + 1;
}

/* .../block/loop700 or .../block/loop700/loop700p1 */
static void parse_path(struct uevent *ev, const char *path)
{
	const char *name = strstr(path, "/block/");

	if (!name)
		return;
	name += strlen("/block/");
	snprintf(ev->disk, sizeof(ev->disk), "%.*s", (int)strcspn(name, "/"), name);
	snprintf(ev->device, sizeof(ev->device), "%s", strrchr(path, '/') + 1);
}

static void parse_pair(struct uevent *ev, const char *pair)
{
	const char *v;

	v = value(pair, "ACTION");
	if (v)
		snprintf(ev->action, sizeof(ev->action), "%s", v);
	v = value(pair, "DEVPATH");
	if (v)
		parse_path(ev, v);
	v = value(pair, "DISKSEQ");
	if (v) {
		if (ev->has_diskseq)
			die("an event with two DISKSEQ");
		ev->has_diskseq = true;
		ev->diskseq = strtoull(v, NULL, 10);
	}
	v = value(pair, "PARTN");
	if (v)
		ev->partno = atoi(v);
	v = value(pair, "PARTNAME");
	if (v)
		snprintf(ev->partname, sizeof(ev->partname), "%s", v);
	v = value(pair, "SEQNUM");
	if (v)
		ev->seqnum = strtoull(v, NULL, 10);
	v = value(pair, "DISK_MEDIA_CHANGE");
	if (v)
		ev->media_change = !strcmp(v, "1");
	v = value(pair, "RESIZE");
	if (v)
		ev->resize = true;
	v = value(pair, "DISK_RO");
	if (v)
		ev->ro = true;
	v = value(pair, "DISK_EJECT_REQUEST");
	if (v)
		ev->eject = true;
	v = value(pair, "SYNTH_UUID");
	if (v)
		ev->synthetic = true;
}

/* Where the pairs begin, which end with the message. */
static const char *first_pair(const struct monitor *mon, const char *buf, size_t len)
{
	struct udev_header head;

	if (!mon->udev) {
		/* "add@" and the path, which is in the pairs, too */
		if (!strchr(buf, '@'))
			die("not a uevent: '%s'", buf);
		return buf + strlen(buf) + 1;
	}
	if (len < sizeof(head) || memcmp(buf, "libudev", 8))
		die("not an event of udev's");
	memcpy(&head, buf, sizeof(head));
	return buf + head.pairs;
}

enum received {
	GOT_NOTHING,		/* in time */
	GOT_EVENT,		/* of the monitor's */
	GOT_MARK,		/* the event that carries the mark */
	GOT_OTHER,		/* any other */
	GOT_LOST,		/* what did not fit into the buffer */
};

/* Receive one message. The event that carries @mark is not the monitor's. */
static enum received receive(struct monitor *mon, struct uevent *ev,
			     const char *mark, int timeout_ms)
{
	struct pollfd pfd = { .fd = mon->fd, .events = POLLIN };
	struct sockaddr_nl addr = { };
	char buf[16384];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) - 1 };
	struct msghdr msg = {
		.msg_name = &addr,
		.msg_namelen = sizeof(addr),
		.msg_iov = &iov,
		.msg_iovlen = 1,
	};
	const char *pair, *uuid;
	bool from_user;
	ssize_t len;
	int ret;

	ret = poll(&pfd, 1, timeout_ms);
	if (ret < 0 && errno != EINTR)
		die("poll: %s", strerror(errno));
	if (ret < 0)
		return GOT_OTHER;
	if (!ret)
		return GOT_NOTHING;
	len = recvmsg(mon->fd, &msg, 0);
	if (len < 0 && errno == ENOBUFS)
		return GOT_LOST;
	if (len < 0 || (msg.msg_flags & MSG_TRUNC))
		die("uevent socket: %s", strerror(errno));
	/* only the kernel has no port */
	from_user = addr.nl_pid;
	if (from_user != mon->udev)
		return GOT_OTHER;
	buf[len] = '\0';
	memset(ev, 0, sizeof(*ev));
	for (pair = first_pair(mon, buf, len); pair < buf + len;
	     pair += strlen(pair) + 1) {
		uuid = value(pair, "SYNTH_UUID");
		if (mark && uuid && !strcmp(uuid, mark))
			return GOT_MARK;
		parse_pair(ev, pair);
	}
	if (!ev->disk[0] || (mon->disk[0] && strcmp(mon->disk, ev->disk)))
		return GOT_OTHER;
	return GOT_EVENT;
}

static enum received receive_all(struct monitor *mon, struct uevent *ev,
				 const char *mark, int timeout_ms)
{
	enum received got = receive(mon, ev, mark, timeout_ms);

	if (got == GOT_LOST)
		die("the test lost events (ENOBUFS)");
	return got;
}

/* The next event of the monitor's; false if none comes within @timeout_ms. */
bool monitor_next(struct monitor *mon, struct uevent *ev, int timeout_ms)
{
	int64_t end = now_ms() + timeout_ms, left;
	enum received got;

	do {
		left = end - now_ms();
		got = receive_all(mon, ev, NULL, left > 0 ? left : 0);
	} while (got == GOT_OTHER || (got == GOT_NOTHING && left > 0));
	return got == GOT_EVENT;
}

/*
 * For who may lose events: the next one that is there already. Returns 1 for an
 * event, 0 if there is none and -1 if some were lost here.
 */
int monitor_next_lossy(struct monitor *mon, struct uevent *ev)
{
	enum received got;

	do
		got = receive(mon, ev, NULL, 0);
	while (got == GOT_OTHER);
	return got == GOT_LOST ? -1 : got == GOT_EVENT;
}

/* A name for the end of what will have been raised by then. */
const char *mark_new(void)
{
	static char uuid[40];
	static unsigned int count;

	snprintf(uuid, sizeof(uuid), "%08x-0000-4000-8000-%012x",
		 (unsigned int)getpid(), ++count);
	return uuid;
}

void mark_raise(const char *mark)
{
	char buf[64];
	int fd, len = snprintf(buf, sizeof(buf), "change %s", mark);

	fd = open(MARKER, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, buf, len) != len)
		die(MARKER ": %s", strerror(errno));
	close(fd);
}

/* Mark the end of what has been raised up to now. */
const char *mark_now(void)
{
	const char *mark = mark_new();

	mark_raise(mark);
	return mark;
}

/* The next event before @mark, or false. */
bool monitor_next_before(struct monitor *mon, struct uevent *ev, const char *mark)
{
	int64_t end = now_ms() + limit_ms();
	enum received got;

	do {
		got = receive_all(mon, ev, mark, 1000);
		if (now_ms() > end)
			die("the uevent that marks the end did not come");
	} while (got != GOT_EVENT && got != GOT_MARK);
	return got == GOT_EVENT;
}

/* Wait for an event of a disk with a number greater than @above, before @mark. */
bool monitor_next_number(struct monitor *mon, struct uevent *ev, uint64_t above,
			 const char *mark)
{
	while (monitor_next_before(mon, ev, mark))
		if (!ev->partno && ev->diskseq > above)
			return true;
	return false;
}

/* Forget what has come so far. Returns how many events that were. */
size_t monitor_drop(struct monitor *mon)
{
	const char *mark = mark_now();
	struct uevent ev;
	size_t count = 0;

	while (monitor_next_before(mon, &ev, mark))
		count++;
	return count;
}

/* A synthetic uevent of a disk or a partition. */
void trigger(const char *dev, const char *action)
{
	char path[64];
	int err;

	snprintf(path, sizeof(path), "/sys/class/block/%s/uevent", dev);
	err = file_write(path, action);
	if (err)
		die("%s: %s", path, strerror(err));
}

static void read_some(int fd, off_t offset)
{
	char buf[BUFSIZ];

	if (pread(fd, buf, sizeof(buf), offset) < 0 && errno != EIO)
		die("read: %s", strerror(errno));
}

/* Look at what is there, if it can be opened, and at what may be at the end. */
void look_at(const char *disk, int partno)
{
	char path[48];
	off_t end;
	int fd;

	if (partno)
		snprintf(path, sizeof(path), "/dev/%sp%d", disk, partno);
	else
		snprintf(path, sizeof(path), "/dev/%s", disk);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return;
	read_some(fd, 0);
	end = lseek(fd, 0, SEEK_END);
	if (end > BUFSIZ)
		read_some(fd, end - BUFSIZ);
	close(fd);
}

/* A program that looks at what there is an event for, as udev does. */
pid_t spawn_opener(const char *disk)
{
	struct monitor mon;
	struct gate ready;
	struct uevent ev;
	pid_t pid;

	gate_create(&ready);
	pid = spawn();
	if (!pid) {
		monitor_open(&mon, disk);
		gate_pass(&ready);
		for (;;) {
			if (!monitor_next(&mon, &ev, limit_ms()))
				continue;
			look_at(ev.disk, 0);
			if (ev.partno)
				look_at(ev.disk, ev.partno);
		}
	}
	close(ready.fd[1]);
	gate_wait(&ready);
	close(ready.fd[0]);
	return pid;
}

void end_child(pid_t pid)
{
	/* one that has ended by itself has failed */
	if (waitpid(pid, NULL, WNOHANG))
		die("a child failed");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* Wait until a number greater than @above is told of, or @mark, and look. */
void look_at_number(struct monitor *mon, const char *disk, uint64_t above,
		    const char *mark, struct sighting *found)
{
	char path[48];
	struct uevent ev;
	int fd;

	found->announced = monitor_next_number(mon, &ev, above, mark);
	if (!found->announced)
		return;
	found->number = ev.diskseq;
	found->by_sysfs = diskseq_sysfs(disk);
	snprintf(path, sizeof(path), "/dev/%s", disk);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	found->by_ioctl = diskseq(fd);
	found->bytes = disk_bytes(fd);
	if (found->bytes &&
	    pread(fd, found->content, SECTOR, LOOKED_AT * SECTOR) != SECTOR)
		found->error = errno;
	close(fd);
}

/* The announcements so far. The first is to be of the number after @before. */
void count_announced(struct monitor *mon, uint64_t before, struct announced *a)
{
	const char *mark = mark_now();
	struct uevent ev;

	memset(a, 0, sizeof(*a));
	a->last = before;
	while (monitor_next_before(mon, &ev, mark)) {
		if (ev.partno) {
			a->parts++;
			continue;
		}
		if (!ev.media_change) {
			a->others++;
			continue;
		}
		a->count++;
		a->not_next += ev.diskseq != a->last + 1;
		a->last = ev.diskseq;
	}
}

void script_add(struct script *s, const char *fmt, ...)
{
	va_list args;
	int len;

	if (s->len)
		s->len += snprintf(s->text + s->len, sizeof(s->text) - s->len, ", ");
	va_start(args, fmt);
	len = vsnprintf(s->text + s->len, sizeof(s->text) - s->len, fmt, args);
	va_end(args);
	s->len += len;
	if (s->len + 3 > sizeof(s->text))
		die("more events than a script takes");
}

/* Is it what the last entry tells, of the partition that follows? */
static bool continues(const struct script *s, const struct uevent *ev)
{
	const struct uevent *last = &s->event;

	return s->last && ev->partno == s->last + 1 &&
	       !strcmp(ev->action, last->action) &&
	       ev->has_diskseq == last->has_diskseq &&
	       ev->diskseq == last->diskseq &&
	       ev->media_change == last->media_change &&
	       ev->resize == last->resize && ev->eject == last->eject &&
	       ev->ro == last->ro && ev->synthetic == last->synthetic;
}

/*
 * The number is told relative to @base, with what kind of change the event says
 * to be.
 */
void script_event(struct script *s, const struct uevent *ev, uint64_t base)
{
	char what[24] = "disk", number[24] = "?";

	if (continues(s, ev)) {
		s->len = s->entry;
		snprintf(what, sizeof(what), "p%d-%d", s->first, ev->partno);
	} else if (ev->partno) {
		s->first = ev->partno;
		snprintf(what, sizeof(what), "p%d", ev->partno);
	}
	s->event = *ev;
	s->last = ev->partno;
	s->entry = s->len;
	if (ev->has_diskseq)
		snprintf(number, sizeof(number), "%+lld",
			 (long long)(ev->diskseq - base));
	script_add(s, "%s %s %s%s%s%s%s", ev->action, what, number,
		   ev->media_change ? " media" : ev->resize ? " resize" : "",
		   ev->eject ? " eject" : "", ev->ro ? " ro" : "",
		   ev->synthetic ? " synthetic" : "");
}

/* The same @action for the partitions 1 to @count. */
void script_parts(struct script *s, const char *action, int count, int relative)
{
	if (count == 1)
		script_add(s, "%s p1 %+d", action, relative);
	else if (count)
		script_add(s, "%s p1-%d %+d", action, count, relative);
}

static const char *collect(struct monitor *mon, uint64_t base, bool disks)
{
	static struct script s;
	const char *mark = mark_now();
	struct uevent ev;

	memset(&s, 0, sizeof(s));
	while (monitor_next_before(mon, &ev, mark))
		if (disks || ev.partno)
			script_event(&s, &ev, base);
	return s.text;
}

/* All events of the monitor's up to now, as text. */
const char *events(struct monitor *mon, uint64_t base)
{
	return collect(mon, base, true);
}

/* Of what events() has returned: some drivers say so, some only on newer kernels. */
const char *without_resize(const char *events)
{
	static char text[sizeof(((struct script *)0)->text)];
	const char *word;
	size_t len = 0;

	while ((word = strstr(events, " resize"))) {
		memcpy(text + len, events, word - events);
		len += word - events;
		events = word + strlen(" resize");
	}
	strcpy(text + len, events);
	return text;
}

/* The same for those of partitions alone. */
const char *part_events(struct monitor *mon, uint64_t base)
{
	return collect(mon, base, false);
}
