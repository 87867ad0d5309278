/*
 * floor ROOT PROGRAM: what the kernel alone takes for the job of the pipeline. All eight namespaces,
 * 65536 ids from $FIRST_ID on, ROOT as the root with /proc, /dev and /tmp, PROGRAM in it, and its end.
 * One program, no child but PROGRAM, nothing checked twice, no word about what went wrong but its line.
 *
 * Root writes the maps; anybody else has newuidmap(1) and newgidmap(1) do it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(call) do { if ((call) < 0) { perror("floor: " #call); _exit(125); } } while (0)

static void map(pid_t pid, const char *file, const char *helper, const char *first)
{
	char path[64], text[64];
	int fd, status;

	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	snprintf(text, sizeof text, "%d", pid);
	if (geteuid() != 0) {
		if (vfork() == 0) {
			execl(helper, helper, text, "0", first, "65536", (char *)0);
			_exit(127);
		}
		MUST(wait(&status));
		MUST(status ? -1 : 0);
		return;
	}
	snprintf(text, sizeof text, "0 %s 65536", first);
	MUST(fd = open(path, O_WRONLY | O_CLOEXEC));
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

static void inside(const char *root)
{
	static const char *const nodes[] = { "null", "zero", "full", "random", "urandom", "tty" };
	static const char *const links[][2] = {
		{ "pts/ptmx", "dev/ptmx" }, { "/proc/self/fd", "dev/fd" }, { "/proc/self/fd/0", "dev/stdin" },
		{ "/proc/self/fd/1", "dev/stdout" }, { "/proc/self/fd/2", "dev/stderr" },
	};
	char from[32], to[32];

	MUST(syscall(SYS_setresgid, 0, 0, 0));
	MUST(syscall(SYS_setresuid, 0, 0, 0));
	MUST(mount(0, "/", 0, MS_REC | MS_SLAVE, 0));
	MUST(mount(root, root, 0, MS_BIND | MS_REC, 0));
	MUST(chdir(root));
	MUST(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755"));
	MUST(mkdir("dev/pts", 0755));
	MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"));
	MUST(mkdir("dev/shm", 0755));
	MUST(mount("tmpfs", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"));
	for (size_t n = 0; n < sizeof nodes / sizeof *nodes; n++) {
		snprintf(from, sizeof from, "/dev/%s", nodes[n]);
		snprintf(to, sizeof to, "dev/%s", nodes[n]);
		MUST(mknod(to, S_IFREG | 0644, 0));
		MUST(mount(from, to, 0, MS_BIND, 0));
	}
	for (size_t n = 0; n < sizeof links / sizeof *links; n++)
		MUST(symlink(links[n][0], links[n][1]));
	MUST(mount("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"));
	MUST(syscall(SYS_pivot_root, ".", "."));
	MUST(umount2(".", MNT_DETACH));
	MUST(chdir("/"));
}

int main(int argc, char **argv)
{
	struct clone_args args = {
		.flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
			| CLONE_NEWCGROUP | CLONE_NEWTIME,
		.exit_signal = SIGCHLD,
	};
	const char *first = getenv("FIRST_ID");
	int ready[2], status;
	pid_t pid;
	char byte;

	if (argc < 3 || !first)
		return 125;
	MUST(pipe2(ready, O_CLOEXEC));
	MUST(pid = syscall(SYS_clone3, &args, sizeof args));
	if (pid == 0) {
		MUST(read(ready[0], &byte, 1));
		inside(argv[1]);
		execv(argv[2], argv + 2);
		_exit(127);
	}
	map(pid, "uid_map", "/usr/bin/newuidmap", first);
	map(pid, "gid_map", "/usr/bin/newgidmap", first);
	MUST(write(ready[1], "", 1));
	MUST(waitpid(pid, &status, 0));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
