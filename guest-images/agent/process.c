/* Commands: started by vfork(), so that nothing is copied, and each in a session of its own. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { VARIABLES = 1024, PATH_SIZE = 4096 };
static char usual_path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct process processes[PROCESSES];
static unsigned char inputs[PROCESSES][INPUT];
static unsigned char kept[PROCESSES][2][CAPTURE];

struct account {
	int switched;
	unsigned uid, gid;
	const char *home; /* or NULL */
};

static struct process *unused(void)
{
	struct process *oldest = NULL;
	for (struct process *process = processes; process < processes + PROCESSES; process++) {
		if (!process->used)
			return process;
		/* Nobody may ever ask how this one ended. */
		if (process->captured && process->exited && process->fd[OUT] < 0 && process->fd[ERR] < 0 && !oldest)
			oldest = process;
	}
	return oldest;
}

static const char *variable(char **list, const char *name, size_t length)
{
	for (; list && *list; list++)
		if (!strncmp(*list, name, length) && (*list)[length] == '=')
			return *list + length + 1;
	return NULL;
}

/* The given variables, HOME of another user, and those of ours that they don't name. */
static char **environment(const struct command *command, const struct account *account)
{
	static char *all[VARIABLES + 1];
	static char home[PATH_SIZE] = "HOME=";
	int count = 0;
	for (char **given = command->environment; given && *given && count < VARIABLES; given++)
		all[count++] = *given;
	all[count] = NULL;
	if (account->home && strlen(account->home) < sizeof home - 5 && !variable(all, "HOME", 4) && count < VARIABLES) {
		strcpy(home + 5, account->home);
		all[count++] = home;
		all[count] = NULL;
	}
	for (char **own = environ; !command->alone && *own && count < VARIABLES; own++) {
		const char *equals = strchr(*own, '=');
		if (equals && !variable(all, *own, equals - *own)) {
			all[count++] = *own;
			all[count] = NULL;
		}
	}
	return all;
}

void process_usual_path(void)
{
	for (char **own = environ; *own; own++)
		if (!strncmp(*own, usual_path, 5))
			*own = usual_path;
}

static int number(const char *text, unsigned *to)
{
	unsigned sum = 0;
	if (!*text)
		return 0;
	for (; *text >= '0' && *text <= '9'; text++)
		sum = sum * 10 + (*text - '0');
	*to = sum;
	return !*text;
}

/* passwd(5): name:password:uid:gid:comment:home:shell */
static int find_account(const char *user, struct account *account)
{
	static char file[64 << 10];
	char *line = file, *end, *fields[6];
	account->switched = user && *user;
	account->home = NULL;
	if (!account->switched)
		return 0;
	if (read_file("/etc/passwd", file, sizeof file) < 0)
		*file = 0;
	for (; *line; line = end) {
		end = strchr(line, '\n');
		if (end)
			*end++ = 0;
		else
			end = line + strlen(line);
		for (int field = 0; field < 6; field++) {
			fields[field] = line;
			line = strchr(line, ':');
			if (!line)
				break;
			*line++ = 0;
		}
		if (line && (!strcmp(fields[0], user) || !strcmp(fields[2], user))) {
			account->home = *fields[5] ? fields[5] : NULL;
			return number(fields[2], &account->uid) && number(fields[3], &account->gid) ? 0 : -1;
		}
	}
	account->gid = 0;
	if (!number(user, &account->uid))
		return errno = ENOENT, -1;
	account->gid = account->uid;
	return 0;
}

static void close_all(int *fds, int count)
{
	for (int at = 0; at < count; at++)
		if (fds[at] >= 0)
			close(fds[at]);
}

static int open_pipes(const struct command *command, int *ours, int *theirs)
{
	for (int stream = 0; stream < STREAMS; stream++) {
		int ends[2];
		if (!command->pipe[stream]) {
			theirs[stream] = open("/dev/null", O_RDWR | O_CLOEXEC);
			if (theirs[stream] < 0)
				return -1;
			continue;
		}
		if (pipe2(ends, O_CLOEXEC))
			return -1;
		ours[stream] = ends[stream == IN];
		theirs[stream] = ends[stream != IN];
		fcntl(ours[stream], F_SETFL, O_NONBLOCK);
	}
	return 0;
}

static int open_terminal(const struct command *command, int *ours, int *theirs)
{
	struct winsize size = { .ws_row = command->rows, .ws_col = command->columns };
	char path[32];
	int unlocked = 0, index;
	if (access("/dev/pts/ptmx", F_OK)) {
		mkdir("/dev/pts", 0755);
		mount("devpts", "/dev/pts", "devpts", 0, "mode=620,ptmxmode=666");
	}
	ours[OUT] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (ours[OUT] < 0 || ioctl(ours[OUT], TIOCSPTLCK, &unlocked) || ioctl(ours[OUT], TIOCGPTN, &index))
		return -1;
	strcpy(path, "/dev/pts/");
	for (int unit = 100000, at = strlen(path); unit; unit /= 10) {
		if (index >= unit || unit == 1 || at > 9)
			path[at++] = '0' + index / unit % 10;
		path[at] = 0;
	}
	theirs[IN] = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	ours[IN] = fcntl(ours[OUT], F_DUPFD_CLOEXEC, 3);
	if (theirs[IN] < 0 || ours[IN] < 0)
		return -1;
	theirs[OUT] = fcntl(theirs[IN], F_DUPFD_CLOEXEC, 3);
	theirs[ERR] = fcntl(theirs[IN], F_DUPFD_CLOEXEC, 3);
	ioctl(theirs[IN], TIOCSWINSZ, &size);
	return theirs[OUT] < 0 || theirs[ERR] < 0 ? -1 : 0;
}

static void run_along_path(char **arguments, char **variables)
{
	static char path[PATH_SIZE];
	const char *folders = variable(variables, "PATH", 4), *end;
	size_t name = strlen(arguments[0]);
	int denied = 0;
	if (strchr(arguments[0], '/')) {
		execve(arguments[0], arguments, variables);
		return;
	}
	if (!folders)
		folders = usual_path + 5;
	errno = ENOENT;
	for (; *folders; folders = *end ? end + 1 : end) {
		size_t length;
		end = strchr(folders, ':');
		if (!end)
			end = folders + strlen(folders);
		length = end - folders;
		if (length + 1 + name >= sizeof path)
			continue;
		memcpy(path, folders, length);
		path[length] = '/';
		memcpy(path + length + 1, arguments[0], name + 1);
		execve(path, arguments, variables);
		if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
			return;
		denied |= errno == EACCES;
	}
	/* A busybox without links for its applets goes by the first argument. It has words of its own for unknown ones. */
	if (!denied)
		execve("/bin/busybox", arguments, variables);
	errno = denied ? EACCES : ENOENT;
}

/* In the child, which shares our memory until it has its program. Returns what could not be done. */
static const char *become(const struct command *command, const struct account *account, int *theirs, char **variables)
{
	struct sigaction usual = { .sa_handler = SIG_DFL };
	sigset_t none;
	setsid();
	for (int stream = 0; stream < STREAMS; stream++)
		if (dup2(theirs[stream], stream) < 0)
			return "its streams";
	if (command->terminal)
		ioctl(0, TIOCSCTTY, 0);
	sigaction(SIGPIPE, &usual, NULL);
	memset(&none, 0, sizeof none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (command->folder && *command->folder && chdir(command->folder))
		return "its folder";
	if (account->switched && (setgroups(0, NULL) || setgid(account->gid) || setuid(account->uid)))
		return "its user";
	run_along_path(command->arguments, variables);
	return "the program";
}

/* Alone in its function: what the child does to registers must not matter. */
static __attribute__((noinline)) pid_t spawn(const struct command *command, const struct account *account, int *theirs,
					     char **variables, const char **failed, int *error)
{
	pid_t pid = vfork();
	if (!pid) {
		*failed = become(command, account, theirs, variables);
		*error = errno;
		_exit(127);
	}
	return pid;
}

struct process *process_start(const struct command *command, const char **what)
{
	int ours[STREAMS] = { -1, -1, -1 }, theirs[STREAMS] = { -1, -1, -1 };
	struct process *process = unused();
	struct account account;
	char **variables;
	const char *failed = NULL;
	int error = 0;
	pid_t pid;

	*what = "one more process";
	if (!process)
		return errno = EAGAIN, NULL;
	*what = "its user";
	if (find_account(command->user, &account))
		return NULL;
	variables = environment(command, &account);
	*what = "its streams";
	if (command->terminal ? open_terminal(command, ours, theirs) : open_pipes(command, ours, theirs)) {
		error = errno;
		close_all(ours, STREAMS);
		close_all(theirs, STREAMS);
		return errno = error, NULL;
	}
	pid = spawn(command, &account, theirs, variables, &failed, &error);
	*what = "a process";
	if (pid < 0)
		error = errno;
	close_all(theirs, STREAMS);
	if (pid < 0 || failed) {
		if (failed)
			*what = failed;
		if (pid > 0)
			waitpid(pid, NULL, 0);
		close_all(ours, STREAMS);
		return errno = error, NULL;
	}
	memset(process, 0, sizeof *process);
	process->used = 1;
	process->pid = pid;
	process->terminal = command->terminal;
	process->input = inputs[process - processes];
	process->kept[OUT] = kept[process - processes][0];
	process->kept[ERR] = kept[process - processes][1];
	memcpy(process->fd, ours, sizeof ours);
	return process;
}

void process_signal(const struct process *process, int number)
{
	if (!process->exited)
		kill(-process->pid, number);
}

void process_close(struct process *process, int stream)
{
	if (process->fd[stream] >= 0)
		close(process->fd[stream]);
	process->fd[stream] = -1;
	process->watched[stream] = NULL;
}

void process_free(struct process *process)
{
	for (int stream = 0; stream < STREAMS; stream++)
		process_close(process, stream);
	process->used = 0;
}

void process_reap(void (*ended)(struct process *))
{
	int status;
	pid_t pid;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct process *process = processes; process < processes + PROCESSES; process++)
			if (process->used && process->pid == pid && !process->exited) {
				process->exited = 1;
				process->status = status;
				process_close(process, IN);
				ended(process);
			}
}

int process_feed(struct process *process, const void *data, size_t length)
{
	size_t limit = process->captured ? INPUT : WINDOW;
	if (length > limit - process->input_length)
		return -1;
	if (process->input_at + process->input_length + length > limit) {
		memmove(process->input, process->input + process->input_at, process->input_length);
		process->input_at = 0;
	}
	memcpy(process->input + process->input_at + process->input_length, data, length);
	process->input_length += length;
	return 0;
}

size_t process_write(struct process *process)
{
	static const char end_of_file = 4; /* VEOF of a terminal */
	ssize_t done = process->input_length;
	if (process->fd[IN] >= 0 && process->input_length) {
		done = write(process->fd[IN], process->input + process->input_at, process->input_length);
		if (done < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (done < 0)
			process_close(process, IN); /* nobody reads it any more */
	}
	if (process->fd[IN] < 0)
		done = process->input_length;
	process->input_at += done;
	process->input_length -= done;
	if (!process->input_length) {
		process->input_at = 0;
		if (process->input_ends && process->fd[IN] >= 0) {
			if (process->terminal && write(process->fd[IN], &end_of_file, 1) < 0)
				return done;
			process_close(process, IN);
		}
	}
	return done;
}
