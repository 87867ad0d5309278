/*
 * steps FILE COMMAND [ARGUMENT...]: counts what COMMAND does, and its children, each until it
 * executes another program: instructions in user space, CPUIDs among them (each traps under a
 * hypervisor), system calls, and page faults. Adds a line with these four numbers and the command's
 * name to FILE. Standard input and output are COMMAND's, so that it can be a stage of a pipeline.
 *
 * By single steps, one ptrace(2) stop for each instruction, since machines in a cloud have no
 * counters: a thousand times slower than COMMAND is. x86_64 only.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static long instructions, cpuids, calls, faults;

/* The page faults of a process that still runs: field 10 and 12 of proc_pid_stat(5). */
static long faults_of(pid_t pid)
{
	char path[64], text[1024] = "", *after;
	long minor = 0, major = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	if (!(file = fopen(path, "r")))
		return 0;
	if (fgets(text, sizeof text, file) && (after = strrchr(text, ')')))
		sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %*u %ld %*u %ld", &minor, &major);
	fclose(file);
	return minor + major;
}

/* Counts the instruction that is to be stepped over. Answers whether it is an execve(2). */
static int look(pid_t pid)
{
	long at = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), 0);
	long code = ptrace(PTRACE_PEEKTEXT, pid, at, 0), number;

	instructions++;
	if ((code & 0xffff) == 0xa20f)
		cpuids++;
	if ((code & 0xffff) != 0x050f)
		return 0;
	calls++;
	number = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rax), 0);
	return number == SYS_execve || number == SYS_execveat;
}

int main(int argc, char **argv)
{
	static struct { pid_t pid; long faults; } execs[64];
	const long options = PTRACE_O_TRACEEXEC | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE
		| PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL;
	int state, status = 0;
	cpu_set_t here;
	pid_t first, pid;
	FILE *out;

	/* On one processor with what it steps through: each stop would wake up the other one. */
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	sched_setaffinity(0, sizeof here, &here);
	if (argc < 3)
		errx(2, "usage: steps FILE COMMAND [ARGUMENT...]");
	if ((first = fork()) == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execvp(argv[2], argv + 2);
		err(127, "%s", argv[2]);
	}
	/* Whoever reads the pipe is to see its end when COMMAND has gone, and not when this has. */
	waitpid(first, &state, 0);
	ptrace(PTRACE_SETOPTIONS, first, 0, options);
	ptrace(PTRACE_CONT, first, 0, 0);
	do {
		waitpid(first, &state, 0);
		if (state >> 8 != (SIGTRAP | PTRACE_EVENT_EXEC << 8))
			ptrace(PTRACE_CONT, first, 0, WSTOPSIG(state));
	} while (WIFSTOPPED(state) && state >> 8 != (SIGTRAP | PTRACE_EVENT_EXEC << 8));
	close(0), close(1);
	faults = -faults_of(first);
	if (WIFSTOPPED(state))
		ptrace(PTRACE_SINGLESTEP, first, 0, 0);

	while ((pid = waitpid(-1, &state, __WALL)) > 0 || errno == EINTR) {
		int event, signal, n = pid % 64;

		if (!WIFSTOPPED(state)) {
			if (pid == first)
				status = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
			continue;
		}
		event = state >> 16, signal = WSTOPSIG(state);
		if (event == PTRACE_EVENT_EXEC) {
			faults += execs[n].pid == pid ? execs[n].faults : 0;
			ptrace(PTRACE_DETACH, pid, 0, 0);
			continue;
		}
		if (event == PTRACE_EVENT_EXIT)
			faults += faults_of(pid);
		/* A new child begins with a stop of its own. */
		if (event || signal == SIGTRAP || signal == SIGSTOP)
			signal = 0;
		if (event != PTRACE_EVENT_EXIT && look(pid))
			execs[n].pid = pid, execs[n].faults = faults_of(pid);
		ptrace(PTRACE_SINGLESTEP, pid, 0, signal);
	}
	if (!(out = fopen(argv[1], "a")))
		err(1, "%s", argv[1]);
	fprintf(out, "%ld %ld %ld %ld %s\n", instructions, cpuids, calls, faults, argv[2]);
	return fclose(out) ? 1 : status;
}
