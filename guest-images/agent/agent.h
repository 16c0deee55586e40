/* What the parts of the agent share. All memory is static; nothing blocks but poll(). */
#ifndef AGENT_H
#define AGENT_H

#include <poll.h>
#include <stddef.h>
#include <sys/types.h>

#define VERSION "pyvmm 1"

enum {
	PROCESSES = 8,
	WINDOW = 32 << 10,   /* bytes of input that a streamed command may be sent ahead; of output, twice that */
	PIECE = 16 << 10,    /* bytes of output in one frame */
	INPUT = 768 << 10,   /* bytes of input that guest-exec takes */
	CAPTURE = 512 << 10, /* bytes of each output that guest-exec keeps */
};

/* --- A port to the host: what waits to be written, and its place in the call of poll() */

struct port {
	int fd;
	unsigned char *out;
	size_t out_at, out_length, out_size;
	struct pollfd *watched;
};

size_t port_room(const struct port *port);
void port_put(struct port *port, const void *data, size_t length); /* at most port_room() bytes */
void port_flush(struct port *port);

/* The place for `fd` in the next call of poll(); NULL, as for no fd, is never ready. */
struct pollfd *watch(int fd, short events);
int ready(const struct pollfd *watched);

/* --- Commands */

enum { IN, OUT, ERR, STREAMS };

struct process {
	int used;
	int captured; /* by guest-exec; the others are streamed */
	unsigned id;  /* the host's number for a streamed one */
	pid_t pid;
	int exited, status; /* status is wait()'s */
	int terminal;
	int fd[STREAMS]; /* our ends; -1 is closed */
	struct pollfd *watched[STREAMS];
	unsigned credit[STREAMS];
	unsigned char *input;
	size_t input_at, input_length;
	int input_ends;
	unsigned char *kept[STREAMS];
	size_t kept_length[STREAMS];
	int truncated[STREAMS];
};

struct command {
	char **arguments;   /* the first is the program, looked for along PATH if it has no slash */
	char **environment; /* beside our own; `alone` means instead */
	int alone;
	const char *folder; /* to start in, or NULL */
	const char *user;   /* a name of /etc/passwd or a number, or NULL */
	int terminal;
	unsigned short rows, columns;
	int pipe[STREAMS]; /* which streams have a pipe; the others are /dev/null */
};

extern struct process processes[PROCESSES];

/* Starts `command`. Returns it, or NULL with errno and, in *what, what could not be done. */
struct process *process_start(const struct command *command, const char **what);
/* From now on commands are looked for where distributions have them. */
void process_usual_path(void);
void process_signal(const struct process *process, int number);
void process_close(struct process *process, int stream);
void process_free(struct process *process);
void process_reap(void (*ended)(struct process *));

/* Adds bytes to the input; -1 if there is no room for them. Writes what fits into the pipe; returns how much. */
int process_feed(struct process *process, const void *data, size_t length);
size_t process_write(struct process *process);

/* --- The two protocols: call watch, wait, serve */

void exec_open(int fd);
void exec_watch(void);
void exec_serve(void);
void exec_ended(struct process *process);

void qga_open(int fd);
void qga_watch(void);
void qga_serve(void);

int read_file(const char *path, char *to, size_t size); /* bytes, NUL behind them; or -1 */

#endif
