/* pyvmm-agent: runs commands and moves files in a guest, for the host at the other end of two virtio-serial ports. */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS "/sys/class/virtio-ports"
#define QGA "org.qemu.guest_agent.0"
#define EXEC "org.pyvmm.exec.0"

enum {
	WATCHED = 3 + PROCESSES * STREAMS,
	LOOK_AGAIN = 50,       /* milliseconds */
	PATIENCE = 10 * 1000,  /* milliseconds until a guest without our ports is left alone */
	NOBODY_THERE = 100,    /* milliseconds between two looks whether the host has opened a port */
};

static struct pollfd polled[WATCHED];
static int polled_count;

struct pollfd *watch(int fd, short events)
{
	if (fd < 0 || polled_count == WATCHED)
		return NULL;
	polled[polled_count] = (struct pollfd){ .fd = fd, .events = events };
	return &polled[polled_count++];
}

int ready(const struct pollfd *watched)
{
	return watched && watched->revents;
}

size_t port_room(const struct port *port)
{
	return port->out_size - port->out_length;
}

void port_put(struct port *port, const void *data, size_t length)
{
	if (!length || length > port_room(port))
		return;
	if (port->out_at + port->out_length + length > port->out_size) {
		memmove(port->out, port->out + port->out_at, port->out_length);
		port->out_at = 0;
	}
	memcpy(port->out + port->out_at + port->out_length, data, length);
	port->out_length += length;
}

void port_flush(struct port *port)
{
	while (port->out_length) {
		ssize_t done = write(port->fd, port->out + port->out_at, port->out_length);
		if (done <= 0)
			return;
		port->out_at += done;
		port->out_length -= done;
	}
	port->out_at = 0;
}

int read_file(const char *path, char *to, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got;
	size_t length = 0;
	if (fd < 0)
		return -1;
	while (length < size - 1 && (got = read(fd, to + length, size - 1 - length)) > 0)
		length += got;
	to[length] = 0;
	close(fd);
	return length;
}

/* The descriptor of the port called `wanted`, or -1. */
static int find_port(const char *wanted)
{
	static char listing[4096];
	char path[64 + 256 + 8], name[128];
	int folder = open(PORTS, O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = -1;
	ssize_t length;
	while (found < 0 && folder >= 0 && (length = getdents64(folder, listing, sizeof listing)) > 0)
		for (ssize_t at = 0; at < length; at += ((struct dirent64 *)(listing + at))->d_reclen) {
			const char *entry = ((struct dirent64 *)(listing + at))->d_name;
			size_t end = strlen(entry);
			if (*entry == '.' || end > 64)
				continue;
			strcpy(path, PORTS "/");
			memcpy(path + strlen(PORTS) + 1, entry, end + 1);
			memcpy(path + strlen(PORTS) + 1 + end, "/name", 6);
			if (read_file(path, name, sizeof name) <= 0)
				continue;
			if (strncmp(name, wanted, strlen(wanted)) || name[strlen(wanted)] != '\n')
				continue;
			strcpy(path, "/dev/");
			memcpy(path + 5, entry, end + 1);
			found = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
			break;
		}
	if (folder >= 0)
		close(folder);
	return found;
}

/* For tests: a path, or the number of an open descriptor. */
static int open_given(const char *given)
{
	int fd = 0;
	if (*given >= '0' && *given <= '9') {
		for (; *given; given++)
			fd = fd * 10 + (*given - '0');
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
		return fd;
	}
	return *given == '-' ? -1 : open(given, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
}

static void wait_for_ports(int *qga, int *exec)
{
	for (int waited = 0;; waited += LOOK_AGAIN) {
		/* The one that is ours alone first: who sees the other opened can tell by it who we are. */
		*exec = find_port(EXEC);
		*qga = find_port(QGA);
		if (*qga >= 0 || *exec >= 0 || (waited >= PATIENCE && getpid() != 1))
			return;
		poll(NULL, 0, LOOK_AGAIN);
	}
}

/* Which gives it its address too. What else there is of a network is no affair of ours. */
static void start_loopback(void)
{
	struct ifreq asked = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int inet = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (inet >= 0) {
		ioctl(inet, SIOCSIFFLAGS, &asked);
		close(inet);
	}
}

int main(int argc, char **argv)
{
	struct sigaction ignored = { .sa_handler = SIG_IGN };
	sigset_t child;
	int qga, exec, children, null;

	do
		null = open("/dev/null", O_RDWR); /* so that 0, 1 and 2 are never anything of ours */
	while (null >= 0 && null < 3);
	close(null);
	if (argc == 3) {
		qga = open_given(argv[1]);
		exec = open_given(argv[2]);
	} else {
		wait_for_ports(&qga, &exec);
	}
	if (qga < 0 && exec < 0)
		return 1;
	if (getpid() == 1)
		start_loopback(); /* nobody else will */
	sigaction(SIGPIPE, &ignored, NULL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	qga_open(qga);
	exec_open(exec);
	for (;;) {
		struct signalfd_siginfo news;
		struct pollfd *reaper;
		int absent = 0, more = 0;
		polled_count = 0;
		reaper = watch(children, POLLIN);
		qga_watch();
		exec_watch();
		if (poll(polled, polled_count, -1) < 0)
			continue;
		for (int index = 0; index < polled_count; index++) {
			int port = polled[index].fd == qga || polled[index].fd == exec;
			int gone = port && polled[index].revents & (POLLHUP | POLLERR);
			absent |= gone;
			more |= gone ? polled[index].revents & POLLIN : polled[index].revents;
		}
		if (absent && argc == 3)
			return 0; /* a test is over */
		if (absent && !more)
			poll(NULL, 0, NOBODY_THERE);
		/* Output first, so that it is there before the news that its command has ended. */
		qga_serve();
		exec_serve();
		if (ready(reaper)) {
			while (read(children, &news, sizeof news) > 0)
				;
			process_reap(exec_ended);
		}
	}
}
