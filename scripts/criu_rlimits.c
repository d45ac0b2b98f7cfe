/*
 * Lets CRIU read the resource limits of other users' tasks where CAP_SYS_RESOURCE is missing.
 *
 * prlimit(2) on another task needs that capability unless all the user IDs match, so a dump of
 * nginx's or postgres's workers ends with "Can't get rlimit". The same figures stand in
 * /proc/PID/limits, which root may read without it. This library is preloaded into CRIU there, and
 * only there: it answers a refused *read* from /proc, and passes everything else on untouched.
 *
 * CRIU asks through syscall(2) (criu/cr-dump.c, dump_task_rlimits), so that is what is wrapped.
 * Resources are numbered as in asm-generic/resource.h; the lines' names are those of
 * fs/proc/base.c (lnames), whose format is "%-25s %-20s %-20s".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static const char *const limit_names[] = {
	[RLIMIT_CPU] = "Max cpu time",
	[RLIMIT_FSIZE] = "Max file size",
	[RLIMIT_DATA] = "Max data size",
	[RLIMIT_STACK] = "Max stack size",
	[RLIMIT_CORE] = "Max core file size",
	[RLIMIT_RSS] = "Max resident set",
	[RLIMIT_NPROC] = "Max processes",
	[RLIMIT_NOFILE] = "Max open files",
	[RLIMIT_MEMLOCK] = "Max locked memory",
	[RLIMIT_AS] = "Max address space",
	[RLIMIT_LOCKS] = "Max file locks",
	[RLIMIT_SIGPENDING] = "Max pending signals",
	[RLIMIT_MSGQUEUE] = "Max msgqueue size",
	[RLIMIT_NICE] = "Max nice priority",
	[RLIMIT_RTPRIO] = "Max realtime priority",
	[RLIMIT_RTTIME] = "Max realtime timeout",
};

#define NAME_WIDTH 26

static long (*next_syscall)(long, long, long, long, long, long, long);

__attribute__((constructor)) static void find_next(void)
{
	*(void **)&next_syscall = dlsym(RTLD_NEXT, "syscall");
}

static rlim64_t limit_value(const char *text)
{
	return strcmp(text, "unlimited") ? strtoull(text, NULL, 10) : RLIM64_INFINITY;
}

/* Fills *limit from /proc/PID/limits; -1 if the line is not there. */
static int read_limit(int pid, unsigned int resource, struct rlimit64 *limit)
{
	char path[32], line[256], soft[32], hard[32];
	const char *name = limit_names[resource];
	int found = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/limits", pid);
	file = fopen(path, "re");
	if (!file)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)) || strlen(line) <= NAME_WIDTH)
			continue;
		if (sscanf(line + NAME_WIDTH, "%31s %31s", soft, hard) != 2)
			continue;
		limit->rlim_cur = limit_value(soft);
		limit->rlim_max = limit_value(hard);
		found = 0;
	}
	fclose(file);
	return found;
}

long syscall(long number, ...)
{
	long argument[6], result;
	va_list arguments;
	int i;

	va_start(arguments, number);
	for (i = 0; i < 6; i++)
		argument[i] = va_arg(arguments, long);
	va_end(arguments);

	if (!next_syscall)
		find_next();
	result = next_syscall(number, argument[0], argument[1], argument[2], argument[3], argument[4],
			      argument[5]);
	if (number == SYS_prlimit64 && result < 0 && errno == EPERM) {
		/* prlimit64(pid, resource, new, old): the kernel takes the first two as 32-bit. */
		int pid = (int)argument[0];
		unsigned int resource = (unsigned int)argument[1];
		struct rlimit64 *old = (struct rlimit64 *)argument[3];

		if (!argument[2] && old && resource < RLIM_NLIMITS && !read_limit(pid, resource, old))
			return 0;
		errno = EPERM;
	}
	return result;
}
