/* org.qemu.guest_agent.0: the JSON protocol of QEMU's guest agent (its interop/qemu-ga-ref), a request on each line. */
#define _GNU_SOURCE
#include "agent.h"
#include "json.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	REQUEST = 1 << 20,
	REPLY = (CAPTURE * 2 / 3 + 1) * 4 + 4096,
	FILES = 16,
	WORDS = 1024,
	READ_MOST = 512 << 10, /* less than INPUT */
	FROZEN = 32,
};

static char request[REQUEST];
static size_t request_length;
static int too_long;
static unsigned char reply[REPLY];
static struct port port = { .fd = -1, .out = reply, .out_size = sizeof reply };
static struct json_document document;
static const struct json *arguments;
static int files[FILES]; /* one more than the descriptor; 0 is free */
static int frozen[FROZEN], frozen_count;
static unsigned char scratch[INPUT];
static const char *command_name;

/* --- What is answered */

static void text(const char *data)
{
	port_put(&port, data, strlen(data));
}

static void quoted(const char *data)
{
	static const char digits[] = "0123456789abcdef";
	text("\"");
	for (; *data; data++) {
		unsigned char letter = *data;
		char escape[7] = { '\\', 'u', '0', '0', digits[letter >> 4], digits[letter & 15], 0 };
		if (letter < 0x20 || letter == 0x7f)
			text(escape);
		else {
			if (letter == '"' || letter == '\\')
				text("\\");
			port_put(&port, &letter, 1);
		}
	}
	text("\"");
}

static void integer(long long number)
{
	char digits[24], *at = digits + sizeof digits;
	unsigned long long left = number < 0 ? 0 - (unsigned long long)number : (unsigned long long)number;
	*--at = 0;
	do
		*--at = '0' + left % 10;
	while (left /= 10);
	if (number < 0)
		*--at = '-';
	text(at);
}

static void member(const char *name, long long number)
{
	quoted(name);
	text(": ");
	integer(number);
}

static void base64(const unsigned char *data, size_t length)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	text("\"");
	for (size_t at = 0; at < length; at += 3) {
		unsigned three = data[at] << 16 | (at + 1 < length ? data[at + 1] << 8 : 0) |
				 (at + 2 < length ? data[at + 2] : 0);
		char four[4] = { letters[three >> 18], letters[three >> 12 & 63],
				 at + 1 < length ? letters[three >> 6 & 63] : '=',
				 at + 2 < length ? letters[three & 63] : '=' };
		port_put(&port, four, 4);
	}
	text("\"");
}

static void fail2(const char *class, const char *what, const char *more)
{
	char cut[200];
	size_t length = strlen(more);
	if (length >= sizeof cut)
		length = sizeof cut - 1;
	memcpy(cut, more, length);
	cut[length] = 0;
	text("{\"error\": {\"class\": ");
	quoted(class);
	text(", \"desc\": ");
	/* Both are ours or were checked to be text; they become one string. */
	static char whole[512];
	size_t first = strlen(what);
	memcpy(whole, what, first);
	memcpy(whole + first, cut, length + 1);
	quoted(whole);
	text("}}\n");
}

static void fail(const char *what, const char *more)
{
	fail2("GenericError", what, more);
}

static void fail_errno(const char *what)
{
	fail(what, strerror(errno));
}

static void done(void)
{
	text("{\"return\": {}}\n");
}

/* --- What is asked. Each says itself what is wrong. */

static const char *wanted_string(const char *name, int needed)
{
	const struct json *found = json_member(&document, arguments, name);
	if (found && found->type == JSON_STRING)
		return found->text;
	if (found || needed)
		fail("expected a string: ", name);
	return NULL;
}

static int wanted_integer(const char *name, long long *to)
{
	const struct json *found = json_member(&document, arguments, name);
	if (found && found->type == JSON_INTEGER) {
		*to = found->integer;
		return 1;
	}
	fail("expected an integer: ", name);
	return 0;
}

static int is_true(const char *name)
{
	const struct json *found = json_member(&document, arguments, name);
	return found && found->type == JSON_TRUE;
}

static int present(const char *name)
{
	return json_member(&document, arguments, name) != NULL;
}

/* Decodes RFC 4648 into scratch; -1 if it is none, or does not fit. */
static ssize_t decoded(const char *name)
{
	const struct json *found = json_member(&document, arguments, name);
	size_t length = 0;
	unsigned bits = 0, sum = 0, padding = 0;
	if (!found || found->type != JSON_STRING)
		return -1;
	for (size_t at = 0; at < found->length; at++) {
		int letter = found->text[at], six;
		if (letter >= 'A' && letter <= 'Z')
			six = letter - 'A';
		else if (letter >= 'a' && letter <= 'z')
			six = letter - 'a' + 26;
		else if (letter >= '0' && letter <= '9')
			six = letter - '0' + 52;
		else if (letter == '+' || letter == '/')
			six = letter == '+' ? 62 : 63;
		else if (letter == '=' && ++padding <= 2)
			continue;
		else
			return -1;
		if (padding || length == sizeof scratch)
			return -1;
		sum = sum << 6 | six;
		bits += 6;
		if (bits >= 8) {
			bits -= 8;
			scratch[length++] = sum >> bits;
		}
	}
	return found->length % 4 ? -1 : (ssize_t)length;
}

/* --- The commands */

static void ping(void)
{
	done();
}

static void sync_with(void)
{
	long long id;
	if (!wanted_integer("id", &id))
		return;
	text("{\"return\": ");
	integer(id);
	text("}\n");
}

static void sync_delimited(void)
{
	text("\xff");
	sync_with();
}

static void start(void)
{
	static char *words[WORDS + 4];
	const struct json *list, *each;
	struct command command = { .pipe = { 0, 0, 0 } };
	struct process *process;
	const char *path = wanted_string("path", 1), *what;
	ssize_t input = 0;
	int count = 0;

	if (!path)
		return;
	words[count++] = (char *)path;
	command.arguments = words;
	for (int variables = 0; variables < 2; variables++) {
		const char *name = variables ? "env" : "arg";
		list = json_member(&document, arguments, name);
		if (list && list->type != JSON_ARRAY) {
			fail("expected a list of strings: ", name);
			return;
		}
		if (variables) {
			command.environment = words + count;
			command.alone = list != NULL;
		}
		for (each = json_first(&document, list); each; each = json_next(&document, each)) {
			if (each->type != JSON_STRING || count > WORDS) {
				fail(each->type != JSON_STRING ? "expected a list of strings: " : "too many: ", name);
				return;
			}
			words[count++] = (char *)each->text;
		}
		words[count++] = NULL;
	}
	if (present("input-data") && (input = decoded("input-data")) < 0) {
		fail("not base64, or too much: ", "input-data");
		return;
	}
	command.pipe[IN] = present("input-data");
	command.pipe[OUT] = command.pipe[ERR] = is_true("capture-output");
	process = process_start(&command, &what);
	if (!process) {
		static char line[64 + 1];
		size_t length = strlen(what);
		memcpy(line, what, length);
		memcpy(line + length, ": ", 3);
		fail_errno(line);
		return;
	}
	process->captured = 1;
	process_feed(process, scratch, input);
	process->input_ends = 1;
	process_write(process);
	text("{\"return\": {");
	member("pid", process->pid);
	text("}}\n");
}

static void output(const struct process *process, int stream, const char *name, const char *cut)
{
	if (!process->kept_length[stream])
		return;
	text(", ");
	quoted(name);
	text(": ");
	base64(process->kept[stream], process->kept_length[stream]);
	if (process->truncated[stream]) {
		text(", ");
		quoted(cut);
		text(": true");
	}
}

static void status(void)
{
	long long pid;
	if (!wanted_integer("pid", &pid))
		return;
	for (struct process *process = processes; process < processes + PROCESSES; process++) {
		if (!process->used || !process->captured || process->pid != pid)
			continue;
		if (!process->exited || process->fd[OUT] >= 0 || process->fd[ERR] >= 0) {
			text("{\"return\": {\"exited\": false}}\n");
			return;
		}
		text("{\"return\": {\"exited\": true, ");
		if (WIFEXITED(process->status))
			member("exitcode", WEXITSTATUS(process->status));
		else
			member("signal", WTERMSIG(process->status));
		output(process, OUT, "out-data", "out-truncated");
		output(process, ERR, "err-data", "err-truncated");
		text("}}\n");
		process_free(process);
		return;
	}
	fail("there is no such process: ", "pid");
}

static void file_open(void)
{
	static const struct { const char *mode; int flags; } modes[] = {
		{ "r", O_RDONLY }, { "w", O_WRONLY | O_CREAT | O_TRUNC }, { "a", O_WRONLY | O_CREAT | O_APPEND },
		{ "r+", O_RDWR }, { "w+", O_RDWR | O_CREAT | O_TRUNC }, { "a+", O_RDWR | O_CREAT | O_APPEND },
	};
	const char *path = wanted_string("path", 1), *mode;
	char plain[4] = "r";
	int flags = -1, slot = 0, fd;
	if (!path)
		return;
	mode = present("mode") ? wanted_string("mode", 0) : plain;
	if (!mode)
		return;
	size_t length = 0;
	for (; *mode && length < sizeof plain - 1; mode++)
		if (*mode != 'b') /* means nothing here */
			plain[length++] = *mode;
	plain[length] = 0;
	for (size_t index = 0; index < sizeof modes / sizeof *modes; index++)
		if (!*mode && !strcmp(modes[index].mode, plain))
			flags = modes[index].flags;
	while (slot < FILES && files[slot])
		slot++;
	if (flags < 0 || slot == FILES) {
		fail(flags < 0 ? "expected r, w, a, r+, w+ or a+: " : "too many open files: ", flags < 0 ? "mode" : path);
		return;
	}
	fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
	if (fd < 0) {
		fail_errno("cannot open the file: ");
		return;
	}
	files[slot] = fd + 1;
	text("{\"return\": ");
	integer(slot + 1);
	text("}\n");
}

static int handle(int *slot)
{
	long long number;
	if (!wanted_integer("handle", &number))
		return -1;
	if (number < 1 || number > FILES || !files[number - 1]) {
		fail("there is no such file: ", "handle");
		return -1;
	}
	*slot = number - 1;
	return files[number - 1] - 1;
}

static void file_close(void)
{
	int slot, fd = handle(&slot);
	if (fd < 0)
		return;
	files[slot] = 0;
	if (close(fd))
		fail_errno("closing the file: ");
	else
		done();
}

static void file_read(void)
{
	long long count = 4096;
	int slot, fd = handle(&slot);
	ssize_t got;
	if (fd < 0 || (present("count") && !wanted_integer("count", &count)))
		return;
	if (count < 0) {
		fail("expected 0 or more: ", "count");
		return;
	}
	got = read(fd, scratch, count < READ_MOST ? count : READ_MOST);
	if (got < 0) {
		fail_errno("reading the file: ");
		return;
	}
	text("{\"return\": {");
	member("count", got);
	text(", \"buf-b64\": ");
	base64(scratch, got);
	text(got || !count ? ", \"eof\": false}}\n" : ", \"eof\": true}}\n");
}

static void file_write(void)
{
	long long count;
	int slot, fd = handle(&slot);
	ssize_t length, put;
	if (fd < 0)
		return;
	length = decoded("buf-b64");
	count = length;
	if (length < 0) {
		fail("not base64, or too much: ", "buf-b64");
		return;
	}
	if (present("count") && !wanted_integer("count", &count))
		return;
	if (count < 0 || count > length) {
		fail("expected 0 up to the length of buf-b64: ", "count");
		return;
	}
	put = write(fd, scratch, count);
	if (put < 0) {
		fail_errno("writing the file: ");
		return;
	}
	text("{\"return\": {");
	member("count", put);
	text(", \"eof\": false}}\n");
}

static void file_seek(void)
{
	static const char *const names[] = { "set", "cur", "end" };
	const struct json *found = json_member(&document, arguments, "whence");
	long long offset;
	int slot, fd = handle(&slot), whence = -1;
	off_t position;
	if (fd < 0 || !wanted_integer("offset", &offset))
		return;
	for (int index = 0; found && index < 3; index++)
		if (found->type == JSON_INTEGER ? found->integer == index :
		    found->type == JSON_STRING && !strcmp(found->text, names[index]))
			whence = index;
	if (whence < 0) {
		fail("expected set, cur or end: ", "whence");
		return;
	}
	position = lseek(fd, offset, whence);
	if (position < 0) {
		fail_errno("seeking in the file: ");
		return;
	}
	text("{\"return\": {");
	member("position", position);
	text(", \"eof\": false}}\n");
}

static void file_flush(void)
{
	int slot, fd = handle(&slot);
	if (fd < 0)
		return;
	if (fsync(fd) && errno != EINVAL)
		fail_errno("flushing the file: ");
	else
		done();
}

static void get_time(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	text("{\"return\": ");
	integer(now.tv_sec * 1000000000LL + now.tv_nsec);
	text("}\n");
}

static void set_time(void)
{
	long long time;
	struct timespec now;
	if (!wanted_integer("time", &time))
		return;
	if (time < 0) {
		fail("expected nanoseconds since 1970: ", "time");
		return;
	}
	now.tv_sec = time / 1000000000;
	now.tv_nsec = time % 1000000000;
	if (clock_settime(CLOCK_REALTIME, &now))
		fail_errno("setting the time: ");
	else
		done();
}

static void count_frozen(void)
{
	text("{\"return\": ");
	integer(frozen_count);
	text("}\n");
}

static void thaw(void)
{
	for (int index = 0; index < frozen_count; index++) {
		ioctl(frozen[index], FITHAW, 0);
		close(frozen[index]);
	}
	count_frozen();
	frozen_count = 0;
}

static void freeze(void)
{
	static char mounts[16 << 10];
	char *line = mounts, *end;
	if (frozen_count) {
		fail("frozen already", "");
		return;
	}
	if (read_file("/proc/mounts", mounts, sizeof mounts) < 0) {
		fail_errno("/proc/mounts: ");
		return;
	}
	for (; *line && frozen_count < FROZEN; line = end) {
		char *folder = strchr(line, ' '), *after = folder ? strchr(folder + 1, ' ') : NULL;
		int fd;
		end = strchr(line, '\n');
		end = end ? end + 1 : line + strlen(line);
		if (!after || after > end || strncmp(line, "/dev/", 5))
			continue;
		*after = 0;
		fd = open(folder + 1, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!ioctl(fd, FIFREEZE, 0)) {
			frozen[frozen_count++] = fd;
		} else {
			int known = errno == EOPNOTSUPP || errno == EBUSY || errno == EROFS;
			close(fd);
			if (!known) {
				fail_errno("freezing: ");
				return;
			}
		}
	}
	count_frozen();
}

static void freeze_status(void)
{
	text(frozen_count ? "{\"return\": \"frozen\"}\n" : "{\"return\": \"thawed\"}\n");
}

/* As the system's own program does it, where there is one with an init behind it; else at once. No answer. */
static void shut_down(void)
{
	static const struct { const char *mode; char *option; int how; } modes[] = {
		{ "powerdown", "-P", RB_POWER_OFF }, { "reboot", "-r", RB_AUTOBOOT }, { "halt", "-H", RB_HALT_SYSTEM },
	};
	const char *mode = present("mode") ? wanted_string("mode", 0) : "powerdown", *what;
	if (!mode)
		return;
	for (size_t index = 0; index < sizeof modes / sizeof *modes; index++) {
		char *words[] = { "/sbin/shutdown", modes[index].option, "now", NULL };
		struct command command = { .arguments = words };
		struct process *process;
		if (strcmp(mode, modes[index].mode))
			continue;
		/* As process 1 there is no init beside us that a shutdown could ask. */
		process = getpid() == 1 ? NULL : process_start(&command, &what);
		if (process) {
			process->captured = 1;
			return;
		}
		sync();
		if (reboot(modes[index].how))
			fail_errno("shutting down: ");
		return;
	}
	fail("expected powerdown, reboot or halt: ", "mode");
}

static void address4(const char *name, int socket)
{
	struct ifreq asked;
	unsigned char *four;
	unsigned mask;
	memset(&asked, 0, sizeof asked);
	memcpy(asked.ifr_name, name, strlen(name));
	if (ioctl(socket, SIOCGIFADDR, &asked))
		return;
	four = (unsigned char *)&((struct sockaddr_in *)&asked.ifr_addr)->sin_addr;
	text(", \"ip-addresses\": [{\"ip-address-type\": \"ipv4\", \"ip-address\": \"");
	for (int index = 0; index < 4; index++) {
		if (index)
			text(".");
		integer(four[index]);
	}
	text("\", ");
	mask = ioctl(socket, SIOCGIFNETMASK, &asked) ? 0 :
	       __builtin_bswap32(((struct sockaddr_in *)&asked.ifr_netmask)->sin_addr.s_addr);
	for (int bits = 32; bits >= 0; bits--)
		if (bits == 0 || mask << (bits - 1) == 0x80000000u) {
			/* the lowest bit that is set is number 32 - prefix */
			member("prefix", bits);
			break;
		}
	text("}]");
}

static void interfaces(void)
{
	static char listing[16 << 10];
	int folder = open("/sys/class/net", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int asking = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), first = 1;
	ssize_t length;
	text("{\"return\": [");
	while (folder >= 0 && (length = getdents64(folder, listing, sizeof listing)) > 0)
		for (ssize_t at = 0; at < length; at += ((struct dirent64 *)(listing + at))->d_reclen) {
			const char *name = ((struct dirent64 *)(listing + at))->d_name;
			struct ifreq asked;
			if (*name == '.' || strlen(name) >= sizeof asked.ifr_name || port_room(&port) < 4096)
				continue;
			text(first ? "{\"name\": " : ", {\"name\": ");
			first = 0;
			quoted(name);
			memset(&asked, 0, sizeof asked);
			memcpy(asked.ifr_name, name, strlen(name));
			if (asking >= 0 && !ioctl(asking, SIOCGIFHWADDR, &asked)) {
				text(", \"hardware-address\": \"");
				for (int index = 0; index < 6; index++) {
					static const char digits[] = "0123456789abcdef";
					unsigned char byte = asked.ifr_hwaddr.sa_data[index];
					char pair[4] = { ':', digits[byte >> 4], digits[byte & 15], 0 };
					text(pair + !index);
				}
				text("\"");
			}
			if (asking >= 0)
				address4(name, asking);
			text("}");
		}
	text("]}\n");
	if (folder >= 0)
		close(folder);
	if (asking >= 0)
		close(asking);
}

static void system_name(void)
{
	struct utsname name;
	uname(&name);
	text("{\"return\": {\"kernel-release\": ");
	quoted(name.release);
	text(", \"kernel-version\": ");
	quoted(name.version);
	text(", \"machine\": ");
	quoted(name.machine);
	text("}}\n");
}

static void info(void);

static const struct { const char *name; void (*obey)(void); } commands[] = {
	{ "guest-sync", sync_with },
	{ "guest-sync-delimited", sync_delimited },
	{ "guest-ping", ping },
	{ "guest-info", info },
	{ "guest-exec", start },
	{ "guest-exec-status", status },
	{ "guest-file-open", file_open },
	{ "guest-file-close", file_close },
	{ "guest-file-read", file_read },
	{ "guest-file-write", file_write },
	{ "guest-file-seek", file_seek },
	{ "guest-file-flush", file_flush },
	{ "guest-get-time", get_time },
	{ "guest-set-time", set_time },
	{ "guest-fsfreeze-status", freeze_status },
	{ "guest-fsfreeze-freeze", freeze },
	{ "guest-fsfreeze-thaw", thaw },
	{ "guest-shutdown", shut_down },
	{ "guest-network-get-interfaces", interfaces },
	{ "guest-get-osinfo", system_name },
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void info(void)
{
	text("{\"return\": {\"version\": \"" VERSION "\", \"supported_commands\": [");
	for (int index = 0; index < COMMANDS; index++) {
		text(index ? ", {\"enabled\": true, \"name\": " : "{\"enabled\": true, \"name\": ");
		quoted(commands[index].name);
		text(", \"success-response\": true}");
	}
	text("]}}\n");
}

static void obey(char *line, size_t length)
{
	const char *wrong = json_parse(&document, line, length);
	const struct json *execute;
	if (wrong) {
		fail("not understood: ", wrong);
		return;
	}
	execute = json_member(&document, document.nodes, "execute");
	arguments = json_member(&document, document.nodes, "arguments");
	if (!execute || execute->type != JSON_STRING || (arguments && arguments->type != JSON_OBJECT)) {
		fail("expected an object with execute and arguments", "");
		return;
	}
	for (int index = 0; index < COMMANDS; index++)
		if (!strcmp(commands[index].name, execute->text)) {
			command_name = commands[index].name;
			commands[index].obey();
			return;
		}
	fail2("CommandNotFound", "unknown command ", execute->text);
}

/* One line at a time: the answer of one goes before the next is looked at. */
static void obey_line(void)
{
	char *newline, *reset = NULL;
	size_t length;
	/* 0xff is in no JSON: what is before it is the rest of what somebody else had to say. */
	for (size_t at = 0; at < request_length; at++)
		if ((unsigned char)request[at] == 0xff)
			reset = request + at;
	if (reset) {
		request_length -= reset + 1 - request;
		memmove(request, reset + 1, request_length);
		too_long = 0;
	}
	while (!port.out_length && (newline = memchr(request, '\n', request_length))) {
		int blank = 1;
		length = newline - request;
		for (size_t at = 0; at < length; at++)
			blank &= !!memchr(" \t\r", request[at], 3);
		if (too_long)
			fail("the request is too long", "");
		else if (!blank)
			obey(request, length);
		too_long = 0;
		request_length -= length + 1;
		memmove(request, newline + 1, request_length);
		port_flush(&port);
	}
	if (request_length == sizeof request) {
		too_long = 1;
		request_length = 0;
	}
}

static void keep(struct process *process, int stream)
{
	size_t room = CAPTURE - process->kept_length[stream];
	static unsigned char rest[4096];
	ssize_t got = room ? read(process->fd[stream], process->kept[stream] + process->kept_length[stream], room) :
			     read(process->fd[stream], rest, sizeof rest);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0)
		process_close(process, stream);
	else if (room)
		process->kept_length[stream] += got;
	else
		process->truncated[stream] = 1;
}

void qga_open(int fd)
{
	port.fd = fd;
}

void qga_watch(void)
{
	port.watched = watch(port.fd, port.out_length ? POLLOUT : POLLIN);
	for (struct process *process = processes; process < processes + PROCESSES; process++) {
		if (!process->used || !process->captured)
			continue;
		process->watched[IN] = process->input_length ? watch(process->fd[IN], POLLOUT) : NULL;
		for (int stream = OUT; stream < STREAMS; stream++)
			process->watched[stream] = watch(process->fd[stream], POLLIN);
	}
}

void qga_serve(void)
{
	for (struct process *process = processes; process < processes + PROCESSES; process++) {
		if (!process->used || !process->captured)
			continue;
		if (ready(process->watched[IN]))
			process_write(process);
		for (int stream = OUT; stream < STREAMS; stream++)
			if (ready(process->watched[stream]))
				keep(process, stream);
	}
	port_flush(&port);
	if (!port.out_length && ready(port.watched)) {
		ssize_t got = read(port.fd, request + request_length, sizeof request - request_length);
		if (got > 0)
			request_length += got;
	}
	obey_line();
}
