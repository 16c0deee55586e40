/* The guest's programs for test_share.py: what programs do to files, in the directory that they are given. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define STEP(name, good) printf("step %s %d\n", name, (good) ? 0 : errno ? errno : 255), fflush(stdout), errno = 0

static int same(const char *path, const char *text)
{
	char buffer[100] = "";
	int fd = open(path, O_RDONLY);
	int length = fd < 0 ? -1 : read(fd, buffer, sizeof buffer - 1);

	close(fd);
	return length == (int)strlen(text) && !strcmp(buffer, text);
}

static int files(void)
{
	struct stat status;
	struct statvfs volume;
	struct timespec times[2] = { { 5, 6 }, { 7, 8 } };
	char buffer[100] = "";
	int fd, other, at, left;

	fd = open("file", O_RDWR | O_CREAT | O_EXCL, 0640);
	STEP("create", fd >= 0 && !fstat(fd, &status) && (status.st_mode & 07777) == 0640);
	STEP("write", write(fd, "0123456789", 10) == 10 && pread(fd, buffer, 100, 5) == 5 && !memcmp(buffer, "56789", 5));
	STEP("truncate", !ftruncate(fd, 4) && !fstat(fd, &status) && status.st_size == 4);
	STEP("fsync", !fsync(fd) && !fdatasync(fd));
	/* Whole seconds: Linux 6.1 gives a 9p file system no finer s_time_gran, so its client rounds. */
	STEP("times", !futimens(fd, times) && !fstat(fd, &status) && status.st_mtim.tv_sec == 7);
	STEP("mmap", *(char *)mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == '0');
	other = open("file", O_WRONLY | O_APPEND);
	STEP("append", write(other, "abc", 3) == 3 && same("file", "0123abc"));
	close(other);
	STEP("chmod", !fchmod(fd, 04711) && !fstat(fd, &status) && (status.st_mode & 07777) == 04711);
	STEP("link", !link("file", "linked") && !stat("linked", &status) && status.st_nlink == 2);
	STEP("symlink", !symlink("linked", "symbolic") && same("symbolic", "0123abc"));
	STEP("rename over", close(open("victim", O_RDWR | O_CREAT, 0600)) == 0 && !rename("linked", "victim") && same("victim", "0123abc"));
	STEP("unlink", !unlink("file") && !unlink("victim") && !fstat(fd, &status) && status.st_nlink == 0);
	STEP("unlinked", pwrite(fd, "gone", 4, 0) == 4 && pread(fd, buffer, 4, 0) == 4 && !memcmp(buffer, "gone", 4));
	close(fd);
	STEP("dangling", open("symbolic", O_RDONLY) < 0 && errno == ENOENT && (errno = 0, !unlink("symbolic")));
	fd = open("attributed", O_RDWR | O_CREAT, 0644);
	STEP("xattr", !fsetxattr(fd, "user.guest", "value", 5, 0) && getxattr("attributed", "user.host", buffer, 100) < 0);
	STEP("no xattr", !fsetxattr(fd, "user.other", "x", 1, 0) && !fremovexattr(fd, "user.other") && flistxattr(fd, buffer, 100) == 11);
	close(fd);
	STEP("mkdir", !mkdir("many", 0755) && !mkdir("many/deep", 0755) && !rmdir("many/deep"));
	for (at = 0; at < 20; at++) {
		snprintf(buffer, sizeof buffer, "many/%d", at);
		close(open(buffer, O_RDWR | O_CREAT, 0644));
	}
	DIR *folder = opendir("many");
	left = 0;
	for (struct dirent *entry; (entry = readdir(folder));)
		if (entry->d_name[0] != '.' && ++left)
			unlinkat(dirfd(folder), entry->d_name, 0);
	STEP("remove while reading", left == 20);
	STEP("fsync directory", !fsync(dirfd(folder)));
	closedir(folder);
	STEP("rmdir", !rmdir("many"));
	STEP("statvfs", !statvfs(".", &volume) && volume.f_blocks);
	STEP("way out", open("out/secret", O_RDONLY) < 0 && open("up/secret", O_RDONLY) < 0);
	errno = 0;
	return 0;
}

static int lock(int fd, int command, int kind, int start, int length)
{
	struct flock asked = { .l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
	int done = fcntl(fd, command, &asked);

	return command == F_GETLK ? asked.l_type : done;
}

static int locks(void)
{
	int held = open("held", O_RDWR), mine = open("mine", O_RDWR | O_CREAT, 0644);

	STEP("held", lock(held, F_SETLK, F_WRLCK, 0, 10) < 0 && errno == EAGAIN);
	STEP("seen", lock(held, F_GETLK, F_WRLCK, 0, 10) != F_UNLCK);
	STEP("beside", !lock(held, F_SETLK, F_WRLCK, 10, 10));
	STEP("mine", !lock(mine, F_SETLK, F_WRLCK, 3, 4));
	close(open("locked", O_RDWR | O_CREAT, 0644)); /* the host looks, and lets go of what it holds */
	STEP("waited", !lock(held, F_SETLKW, F_WRLCK, 0, 10));
	STEP("unlocked", !lock(mine, F_SETLK, F_UNLCK, 0, 0));
	close(open("over", O_RDWR | O_CREAT, 0644));
	while (access("seen", F_OK))
		usleep(50000);
	return 0;
}

int main(int count, char **words)
{
	if (count < 3 || chdir(words[2]))
		return 1;
	return strcmp(words[1], "locks") ? files() : locks();
}
