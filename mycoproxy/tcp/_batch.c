/*
 * Runs a vector of system calls on one descriptor.
 *
 * Called from Python through ctypes one system call costs ten times what the kernel takes for it.
 * Reading all options of a socket is a hundred of them; here they are one call. What each
 * operation is, and where its operands lie, is laid out by batch.py, whose ctypes structure is the
 * twin of this one.
 */
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARGUMENTS 5

struct operation {
	long number;		     /* system call; the descriptor is its first argument */
	long arguments[ARGUMENTS];   /* those that follow */
	unsigned int offsets;	     /* bit i: argument i is an offset into memory */
	unsigned int must;	     /* stop if it fails */
};

/*
 * Puts the result of operation i, or -errno, into results[i]. Returns the index of the operation
 * that stopped it, or count.
 */
int batch_run(int fd, const struct operation *operations, int count, char *memory, long *results)
{
	for (int i = 0; i < count; i++) {
		const struct operation *op = &operations[i];
		long a[ARGUMENTS];

		for (int k = 0; k < ARGUMENTS; k++)
			a[k] = op->arguments[k] + (op->offsets >> k & 1 ? (long)memory : 0);
		long result = syscall(op->number, fd, a[0], a[1], a[2], a[3], a[4]);
		results[i] = result == -1 ? -errno : result;
		if (result == -1 && op->must)
			return i;
	}
	return count;
}
