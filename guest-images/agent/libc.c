/* The few functions of libc that the agent uses, so that it is 30 KB and not 800: each start of a guest unpacks it.
   It also keeps the agent free of SSE registers, which some KVM loses (docs/emulation.md). Left out of hosted builds. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIGNALS 8 /* bytes of the kernel's sigset_t */

char **environ;
static int error;

int *__errno_location(void)
{
	return &error;
}

int main(int argc, char **argv);

__attribute__((used, noreturn)) static void begin(long *stack)
{
	environ = (char **)(stack + 1 + *stack + 1);
	_exit(main(*stack, (char **)(stack + 1)));
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");

static long system_call(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = 0;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result >= 0 || result < -4095)
		return result;
	error = -result;
	return -1;
}

#define CALL(number, a, b, c, d, e) system_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

/* The child's calls would overwrite the return address on the stack that both have: it waits in a register. */
__asm__(".globl vfork\nvfork: pop %rdx\n mov $58, %eax\n syscall\n push %rdx\n"
	"test %eax, %eax\n jns 1f\n neg %eax\n mov %eax, error(%rip)\n mov $-1, %eax\n1: ret\n");

void _exit(int status)
{
	for (;;)
		CALL(SYS_exit_group, status, 0, 0, 0, 0);
}

ssize_t read(int fd, void *to, size_t length) { return CALL(SYS_read, fd, to, length, 0, 0); }
ssize_t write(int fd, const void *from, size_t length) { return CALL(SYS_write, fd, from, length, 0, 0); }
int close(int fd) { return CALL(SYS_close, fd, 0, 0, 0, 0); }
off_t lseek(int fd, off_t offset, int whence) { return CALL(SYS_lseek, fd, offset, whence, 0, 0); }
int fsync(int fd) { return CALL(SYS_fsync, fd, 0, 0, 0, 0); }
void sync(void) { CALL(SYS_sync, 0, 0, 0, 0, 0); }
int dup2(int from, int to) { return CALL(SYS_dup2, from, to, 0, 0, 0); }
int pipe2(int ends[2], int flags) { return CALL(SYS_pipe2, ends, flags, 0, 0, 0); }
int access(const char *path, int mode) { return CALL(SYS_access, path, mode, 0, 0, 0); }
int mkdir(const char *path, mode_t mode) { return CALL(SYS_mkdir, path, mode, 0, 0, 0); }
int chdir(const char *path) { return CALL(SYS_chdir, path, 0, 0, 0, 0); }
int chroot(const char *path) { return CALL(SYS_chroot, path, 0, 0, 0, 0); }
pid_t setsid(void) { return CALL(SYS_setsid, 0, 0, 0, 0, 0); }
pid_t getpid(void) { return CALL(SYS_getpid, 0, 0, 0, 0, 0); }
int setuid(uid_t uid) { return CALL(SYS_setuid, uid, 0, 0, 0, 0); }
int setgid(gid_t gid) { return CALL(SYS_setgid, gid, 0, 0, 0, 0); }
int setgroups(size_t count, const gid_t *list) { return CALL(SYS_setgroups, count, list, 0, 0, 0); }
int kill(pid_t pid, int number) { return CALL(SYS_kill, pid, number, 0, 0, 0); }
int uname(struct utsname *name) { return CALL(SYS_uname, name, 0, 0, 0, 0); }
int poll(struct pollfd *fds, nfds_t count, int timeout) { return CALL(SYS_poll, fds, count, timeout, 0, 0); }
int socket(int family, int type, int protocol) { return CALL(SYS_socket, family, type, protocol, 0, 0); }
ssize_t getdents64(int fd, void *to, size_t size) { return CALL(SYS_getdents64, fd, to, size, 0, 0); }
int clock_gettime(clockid_t clock, struct timespec *to) { return CALL(SYS_clock_gettime, clock, to, 0, 0, 0); }
int clock_settime(clockid_t clock, const struct timespec *to) { return CALL(SYS_clock_settime, clock, to, 0, 0, 0); }
pid_t waitpid(pid_t pid, int *status, int options) { return CALL(SYS_wait4, pid, status, options, 0, 0); }
int execve(const char *path, char *const *argv, char *const *env) { return CALL(SYS_execve, path, argv, env, 0, 0); }

int reboot(int how)
{
	return CALL(SYS_reboot, 0xfee1dead, 672274793, how, 0, 0); /* LINUX_REBOOT_MAGIC1 and 2 */
}

int mount(const char *what, const char *where, const char *type, unsigned long flags, const void *data)
{
	return CALL(SYS_mount, what, where, type, flags, data);
}

int open(const char *path, int flags, ...)
{
	va_list more;
	mode_t mode;
	va_start(more, flags);
	mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
	va_end(more);
	return CALL(SYS_open, path, flags, mode, 0, 0);
}

int fcntl(int fd, int what, ...)
{
	va_list more;
	long argument;
	va_start(more, what);
	argument = va_arg(more, long);
	va_end(more);
	return CALL(SYS_fcntl, fd, what, argument, 0, 0);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	void *argument;
	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	return CALL(SYS_ioctl, fd, request, argument, 0, 0);
}

int sigemptyset(sigset_t *set)
{
	memset(set, 0, sizeof *set);
	return 0;
}

int sigaddset(sigset_t *set, int number)
{
	set->__val[0] |= 1ul << (number - 1);
	return 0;
}

int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
	return CALL(SYS_rt_sigprocmask, how, set, old, SIGNALS, 0);
}

int signalfd(int fd, const sigset_t *set, int flags)
{
	return CALL(SYS_signalfd4, fd, set, SIGNALS, flags, 0);
}

/* For SIG_DFL and SIG_IGN: a handler would need a way back. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
	struct {
		void (*handler)(int);
		unsigned long flags;
		void (*restorer)(void);
		unsigned long mask;
	} asked = { action->sa_handler, 0, 0, 0 };
	(void)old;
	return CALL(SYS_rt_sigaction, number, &asked, 0, SIGNALS, 0);
}

char *strerror(int number)
{
	static const struct { int number; char *text; } known[] = {
		{ EPERM, "Operation not permitted" }, { ENOENT, "No such file or directory" },
		{ EIO, "Input/output error" }, { E2BIG, "Argument list too long" },
		{ ENOEXEC, "Exec format error" }, { EAGAIN, "Resource temporarily unavailable" },
		{ ENOMEM, "Cannot allocate memory" }, { EACCES, "Permission denied" },
		{ EBUSY, "Device or resource busy" }, { EEXIST, "File exists" },
		{ ENOTDIR, "Not a directory" }, { EISDIR, "Is a directory" },
		{ EINVAL, "Invalid argument" }, { EMFILE, "Too many open files" },
		{ ETXTBSY, "Text file busy" }, { EFBIG, "File too large" },
		{ ENOSPC, "No space left on device" }, { EROFS, "Read-only file system" },
		{ ELOOP, "Too many levels of symbolic links" }, { ENAMETOOLONG, "File name too long" },
	};
	static char other[] = "error 000";
	for (size_t index = 0; index < sizeof known / sizeof *known; index++)
		if (known[index].number == number)
			return known[index].text;
	for (int digit = 8; digit > 5; digit--, number /= 10)
		other[digit] = '0' + number % 10;
	return other;
}

/* The microcode's copy: fast where it matters, and one instruction to an emulator. */
void *memcpy(void *to, const void *from, size_t length)
{
	void *start = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
	return start;
}

void *memmove(void *to, const void *from, size_t length)
{
	char *last = (char *)to + length - 1;
	const char *from_last = (const char *)from + length - 1;
	if ((char *)to <= (const char *)from || (char *)to >= (const char *)from + length)
		return memcpy(to, from, length);
	__asm__ volatile("std; rep movsb; cld" : "+D"(last), "+S"(from_last), "+c"(length) : : "memory");
	return to;
}

void *memset(void *to, int value, size_t length)
{
	void *start = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
	return start;
}

int memcmp(const void *one, const void *other, size_t length)
{
	const unsigned char *a = one, *b = other;
	for (; length; length--, a++, b++)
		if (*a != *b)
			return *a - *b;
	return 0;
}

void *memchr(const void *from, int value, size_t length)
{
	const unsigned char *at = from;
	for (; length; length--, at++)
		if (*at == (unsigned char)value)
			return (void *)at;
	return NULL;
}

size_t strlen(const char *text)
{
	const char *at = text;
	while (*at)
		at++;
	return at - text;
}

int strncmp(const char *one, const char *other, size_t length)
{
	for (; length && *one && *one == *other; length--, one++, other++)
		;
	return length ? (unsigned char)*one - (unsigned char)*other : 0;
}

int strcmp(const char *one, const char *other)
{
	return strncmp(one, other, (size_t)-1);
}

char *strchr(const char *text, int letter)
{
	for (;; text++) {
		if (*text == (char)letter)
			return (char *)text;
		if (!*text)
			return NULL;
	}
}

char *strcpy(char *to, const char *from)
{
	memcpy(to, from, strlen(from) + 1);
	return to;
}
