/* The guest's programs for test_vsock.py, with AF_VSOCK (vsock(7)). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { ECHO = 80, FLOOD = 81, QUIT = 82 };
static char buffer[1 << 16];

static struct sockaddr_vm address(unsigned cid, unsigned port)
{
	struct sockaddr_vm at = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
	return at;
}

static int fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static int dial(unsigned port)
{
	struct sockaddr_vm at = address(VMADDR_CID_HOST, port);
	struct timeval patience = { .tv_sec = 120 }; /* the host may be busy: Linux itself waits 2 s */
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd < 0 || setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof patience) ||
	    connect(fd, (struct sockaddr *)&at, sizeof at))
		return -errno;
	return fd;
}

static int all(int fd, const char *from, size_t left)
{
	while (left) {
		ssize_t done = write(fd, from, left);
		if (done < 0)
			return -1;
		from += done;
		left -= done;
	}
	return 0;
}

static void watch(int poller, int fd, unsigned what)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = (unsigned long)what << 32 | fd };
	epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

/* Sends back what comes; false at the end of it. */
static int echo(int fd)
{
	ssize_t got = read(fd, buffer, sizeof buffer);
	return got > 0 && !all(fd, buffer, got);
}

/* One process for all who are to be echoed, one for each who is to be flooded; until somebody connects to QUIT. Says
   "ready" when it listens. */
static int serve(void)
{
	int poller = epoll_create1(0);
	struct epoll_event event;
	signal(SIGCHLD, SIG_IGN);
	for (unsigned port = ECHO; port <= QUIT; port++) {
		struct sockaddr_vm at = address(VMADDR_CID_ANY, port);
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
		if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 128))
			return fail("listen");
		watch(poller, fd, port);
	}
	puts("ready");
	fflush(stdout);
	while (epoll_wait(poller, &event, 1, -1) == 1) {
		int fd = event.data.u64 & 0xffffffff;
		unsigned port = event.data.u64 >> 32;
		if (!port) {
			if (!echo(fd))
				close(fd);
			continue;
		}
		fd = accept(fd, NULL, NULL);
		if (fd < 0)
			return fail("accept");
		if (port == QUIT)
			return 0;
		if (port == ECHO) {
			watch(poller, fd, 0);
			continue;
		}
		if (!fork()) {
			while (!all(fd, buffer, sizeof buffer))
				;
			_exit(0);
		}
		close(fd);
	}
	return fail("epoll_wait");
}

/* Says a word, ends its output, and prints what comes until the end. */
static int ask(unsigned port, const char *word)
{
	ssize_t got;
	int fd = dial(port);
	if (fd < 0)
		return fail("connect");
	if (all(fd, word, strlen(word)) || shutdown(fd, SHUT_WR))
		return fail("write");
	while ((got = read(fd, buffer, sizeof buffer)) > 0)
		fwrite(buffer, 1, got, stdout);
	return got ? fail("read") : 0;
}

int main(int count, char **arguments)
{
	signal(SIGPIPE, SIG_IGN);
	if (count == 2 && !strcmp(arguments[1], "serve"))
		return serve();
	if (count == 4 && !strcmp(arguments[1], "ask"))
		return ask(atoi(arguments[2]), arguments[3]);
	if (count == 3 && !strcmp(arguments[1], "refused")) {
		int status = dial(atoi(arguments[2]));
		printf("%s\n", status < 0 ? strerror(-status) : "connected");
		return status == -ECONNRESET ? 0 : 1;
	}
	return 2;
}
