/*
 * pairs ROUNDS <COMMANDS: runs each line of standard input in turn, round after round, and prints the
 * microseconds that each took, a round a line. What is compared has so the same weather.
 *
 * A line is words, which are executed; one that begins with "sh: " is given to a shell that runs all
 * the time. A % in it is the number of the round, from 0. A command that fails ends this.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* A shell that answers each line with its status. */
static int to_shell, from_shell;

static void start_shell(void)
{
	int in[2], out[2];

	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		err(1, "pipe");
	if (fork() == 0) {
		dup2(in[0], 0);
		dup2(out[1], 3);
		execlp("sh", "sh", (char *)0);
		err(1, "sh");
	}
	close(in[0]), close(out[1]);
	to_shell = in[1], from_shell = out[0];
}

static int in_shell(const char *command)
{
	char answer[16] = "";

	dprintf(to_shell, "{ %s\n} 3>&- </dev/null; echo $? >&3\n", command);
	if (read(from_shell, answer, sizeof answer - 1) <= 0)
		errx(1, "the shell has ended");
	return atoi(answer);
}

static int run(char *line)
{
	static posix_spawn_file_actions_t quiet;
	char *words[256], *word;
	int many = 0, status;
	pid_t pid;

	if (!to_shell) {
		start_shell();
		posix_spawn_file_actions_init(&quiet);
		posix_spawn_file_actions_addopen(&quiet, 0, "/dev/null", O_RDONLY, 0);
		posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
	}
	if (strncmp(line, "sh: ", 4) == 0)
		return in_shell(line + 4);
	for (word = strtok(line, " "); word && many < 255; word = strtok(0, " "))
		words[many++] = word;
	words[many] = 0;
	if (posix_spawnp(&pid, words[0], &quiet, 0, words, environ))
		err(1, "%s", words[0]);
	waitpid(pid, &status, 0);
	return status;
}

int main(int argc, char **argv)
{
	static char lines[32][4096];
	int rounds, count = 0;

	if (argc != 2 || (rounds = atoi(argv[1])) < 1)
		errx(2, "usage: pairs ROUNDS <COMMANDS");
	while (count < 32 && fgets(lines[count], sizeof lines[0], stdin))
		lines[count][strcspn(lines[count], "\n")] = 0, count++;
	/* Round 0 fills the caches of all. */
	for (int round = 0; round <= rounds; round++) {
		for (int n = 0; n < count; n++) {
			char line[4200], *number = strchr(lines[n], '%');
			double begin;

			if (number)
				snprintf(line, sizeof line, "%.*s%d%s", (int)(number - lines[n]), lines[n], round, number + 1);
			else
				strcpy(line, lines[n]);
			begin = now();
			if (run(line))
				errx(1, "%s: failed", lines[n]);
			if (round)
				printf("%.1f%c", now() - begin, n + 1 < count ? ' ' : '\n');
		}
	}
	return 0;
}
