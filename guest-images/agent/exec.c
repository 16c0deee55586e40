/* org.pyvmm.exec.0: commands with their streams. docs/exec.md describes the frames. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HELLO, START, STARTED, FAILED, DATA, CREDIT, SIGNAL, SIZE, EXITED, CLOSE, MOUNT, ROOT, DONE };
enum { HEADER = 8, PAYLOAD = 128 << 10, WORDS = 4096, OUT_SIZE = 64 << 10, RESERVE = 8 << 10 };

struct frame {
	uint8_t kind, stream;
	uint16_t process;
	uint32_t length;
};

struct start {
	uint16_t terminal, rows, columns, unused;
	uint32_t arguments, variables;
};

static unsigned char out[OUT_SIZE];
static struct port port = { .fd = -1, .out = out, .out_size = sizeof out };
static unsigned char in[HEADER + PAYLOAD];
static size_t in_length;

static void put(int kind, int stream, unsigned process, const void *data, uint32_t length)
{
	struct frame frame = { kind, stream, process, length };
	if (port_room(&port) < sizeof frame + length)
		return; /* exec_serve() sees to it that this does not happen */
	port_put(&port, &frame, sizeof frame);
	port_put(&port, data, length);
}

static void put_number(int kind, int stream, unsigned process, uint32_t number)
{
	put(kind, stream, process, &number, sizeof number);
}

static struct process *find(unsigned id)
{
	for (struct process *process = processes; process < processes + PROCESSES; process++)
		if (process->used && !process->captured && process->id == id)
			return process;
	return NULL;
}

static void drop(struct process *process)
{
	process_signal(process, SIGKILL);
	process_free(process);
}

static void hello(const unsigned char *token, size_t length)
{
	unsigned char answer[16 + sizeof VERSION - 1];
	for (struct process *process = processes; process < processes + PROCESSES; process++)
		if (process->used && !process->captured)
			drop(process);
	memcpy(answer, token, length);
	memcpy(answer + length, VERSION, sizeof VERSION - 1);
	put(HELLO, 0, 0, answer, length + sizeof VERSION - 1);
}

static void fail(unsigned id, int error, const char *what)
{
	unsigned char answer[68] = { error, error >> 8 };
	size_t length = strlen(what);
	memcpy(answer + 4, what, length);
	put(FAILED, 0, id, answer, 4 + length);
}

/* A START's payload: struct start, then strings: folder, user, arguments, variables. The last byte is NUL. */
static void start(unsigned id, unsigned char *data, size_t length)
{
	static char *words[WORDS + 4];
	struct command command = { .pipe = { 1, 1, 1 } };
	struct start head;
	struct process *process;
	const char *what;
	char *at = (char *)data + sizeof head, *end = (char *)data + length;
	uint32_t count = 0;

	if (length <= sizeof head || end[-1] || find(id)) {
		fail(id, EPROTO, "the request");
		return;
	}
	memcpy(&head, data, sizeof head);
	if (!head.arguments || head.arguments > WORDS || head.variables > WORDS - head.arguments) {
		fail(id, E2BIG, "the program");
		return;
	}
	command.folder = at;
	at += strlen(at) + 1;
	command.user = at < end ? at : "";
	at += strlen(command.user) + 1;
	command.arguments = words;
	for (uint32_t left = head.arguments; left && at < end; left--, at += strlen(at) + 1)
		words[count++] = at;
	words[count++] = NULL;
	command.environment = words + count;
	for (uint32_t left = head.variables; left && at < end; left--, at += strlen(at) + 1)
		words[count++] = at;
	words[count++] = NULL;
	if (count != head.arguments + head.variables + 2) {
		fail(id, EPROTO, "the request");
		return;
	}
	command.terminal = head.terminal;
	command.rows = head.rows;
	command.columns = head.columns;
	process = process_start(&command, &what);
	if (!process) {
		fail(id, errno, what);
		return;
	}
	process->id = id;
	process->credit[OUT] = process->credit[ERR] = 2 * WINDOW;
	put_number(STARTED, 0, id, process->pid);
}

/* `path`, and the folders on the way to it. One that cannot be made is told by whoever needs it. */
static void make_folder(char *path)
{
	for (char *at = path; *at; at++)
		if (*at == '/' && at > path) {
			*at = 0;
			mkdir(path, 0755);
			*at = '/';
		}
	mkdir(path, 0755);
}

/* A MOUNT's payload: flags, then strings: what, where, type, options. Without a type the folder is all that is made. */
static int do_mount(unsigned char *data, size_t length)
{
	char *words[4], *at = (char *)data + 4, *end = (char *)data + length;
	uint32_t flags;
	int folder;
	if (length <= 4 || end[-1])
		return EPROTO;
	memcpy(&flags, data, sizeof flags);
	for (int word = 0; word < 4; word++, at += strlen(at) + 1) {
		if (at >= end)
			return EPROTO;
		words[word] = at;
	}
	make_folder(words[1]);
	if (*words[2])
		return mount(words[0], words[1], words[2], flags, words[3]) ? errno : 0;
	folder = open(words[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder < 0)
		return errno;
	close(folder);
	return 0;
}

/* What is mounted at `path` becomes the root file system of the agent and of every command, as switch_root(8) does. */
static int change_root(const char *path, size_t length)
{
	if (!length || path[length - 1])
		return EPROTO;
	if (chdir(path) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		return errno;
	process_usual_path();
	return 0;
}

static void obey(const struct frame *frame, unsigned char *data)
{
	struct process *process = find(frame->process);
	uint32_t number = 0;
	if (frame->length >= sizeof number)
		memcpy(&number, data, sizeof number);
	if (frame->kind == HELLO)
		hello(data, frame->length < 16 ? frame->length : 16);
	else if (frame->kind == START)
		start(frame->process, data, frame->length);
	else if (frame->kind == MOUNT)
		put_number(DONE, 0, frame->process, do_mount(data, frame->length));
	else if (frame->kind == ROOT)
		put_number(DONE, 0, frame->process, change_root((char *)data, frame->length));
	else if (!process)
		return; /* it has just ended */
	else if (frame->kind == DATA && frame->length && process_feed(process, data, frame->length))
		drop(process); /* more than it was told that there is room for */
	else if (frame->kind == DATA && !frame->length)
		process->input_ends = 1;
	else if (frame->kind == CREDIT && (frame->stream == OUT || frame->stream == ERR))
		process->credit[frame->stream] += number & 0xffffff;
	else if (frame->kind == SIGNAL && number > 0 && number < 65)
		process_signal(process, number);
	else if (frame->kind == SIZE && process->terminal && process->fd[OUT] >= 0) {
		struct winsize size = { .ws_row = number & 0xffff, .ws_col = number >> 16 };
		ioctl(process->fd[OUT], TIOCSWINSZ, &size);
	} else if (frame->kind == CLOSE)
		drop(process);
}

/* All whole frames, as long as there is room for answers. */
static void obey_all(void)
{
	size_t at = 0;
	while (in_length - at >= HEADER && port_room(&port) >= RESERVE) {
		struct frame frame;
		memcpy(&frame, in + at, HEADER);
		if (frame.length > PAYLOAD) {
			at = in_length; /* not our protocol */
			break;
		}
		if (in_length - at < HEADER + frame.length)
			break;
		obey(&frame, in + at + HEADER);
		at += HEADER + frame.length;
	}
	memmove(in, in + at, in_length - at);
	in_length -= at;
}

static void feed(struct process *process)
{
	int open = process->fd[IN] >= 0, over = !process->input_length && process->input_ends;
	size_t done;
	if (!process->input_length && !(over && open))
		return;
	if (open && !over && !ready(process->watched[IN]))
		return;
	done = process_write(process);
	if (done)
		put_number(CREDIT, IN, process->id, done);
	if (open && process->fd[IN] < 0 && !process->input_ends)
		put(DATA, IN, process->id, NULL, 0); /* its reader has gone */
}

static void hand_out(struct process *process, int stream)
{
	static unsigned char piece[PIECE];
	size_t most = port_room(&port) - RESERVE - HEADER;
	ssize_t got;
	if (most > PIECE)
		most = PIECE;
	if (most > process->credit[stream])
		most = process->credit[stream];
	got = read(process->fd[stream], piece, most);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) { /* a terminal ends with EIO */
		got = 0;
		process_close(process, stream);
	}
	process->credit[stream] -= got;
	put(DATA, stream, process->id, piece, got);
}

void exec_ended(struct process *process)
{
	uint32_t status[2] = { WIFEXITED(process->status) ? WEXITSTATUS(process->status) : 0,
			       WIFSIGNALED(process->status) ? WTERMSIG(process->status) : 0 };
	if (!process->captured)
		put(EXITED, 0, process->id, status, sizeof status);
}

void exec_open(int fd)
{
	port.fd = fd;
}

void exec_watch(void)
{
	int room = port_room(&port) > RESERVE + HEADER;
	port.watched = watch(port.fd, (room && in_length < sizeof in ? POLLIN : 0) | (port.out_length ? POLLOUT : 0));
	for (struct process *process = processes; process < processes + PROCESSES; process++) {
		if (!process->used || process->captured)
			continue;
		process->watched[IN] = process->input_length ? watch(process->fd[IN], POLLOUT) : NULL;
		for (int stream = OUT; stream < STREAMS; stream++)
			process->watched[stream] =
				room && process->credit[stream] ? watch(process->fd[stream], POLLIN) : NULL;
	}
}

void exec_serve(void)
{
	/* All that has come, a page at a time: the command then wakes up once for it. */
	while (ready(port.watched) && in_length < sizeof in) {
		ssize_t got = read(port.fd, in + in_length, sizeof in - in_length);
		if (got <= 0)
			break;
		in_length += got;
	}
	obey_all();
	for (struct process *process = processes; process < processes + PROCESSES; process++) {
		if (!process->used || process->captured || port_room(&port) <= RESERVE + HEADER)
			continue;
		feed(process);
		for (int stream = OUT; stream < STREAMS; stream++)
			if (ready(process->watched[stream]) && port_room(&port) > RESERVE + HEADER)
				hand_out(process, stream);
		if (process->exited && process->fd[OUT] < 0 && process->fd[ERR] < 0)
			process_free(process);
	}
	port_flush(&port);
}
