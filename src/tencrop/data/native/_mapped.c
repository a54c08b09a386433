/* A SIGBUS handler that ends the process with an error message when a page of a mapped file cannot be read.
 *
 * If a mapped file is truncated or its disk fails, no call returns an error: the memory access itself raises SIGBUS, in
 * any thread and any library, and by default the process dies without a message. The handler calls async-signal-safe
 * functions only, so its messages are formatted beforehand. It costs nothing until a page is missing.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILES 256 /* watched at the same time; SIGBUS in any other file has its default effect */
#define EXIT_CODE 2

typedef struct {
    const uint8_t *start; /* NULL: the entry is free */
    uint64_t num_bytes, offset; /* offset: of the first mapped byte in the file */
    char *path, *cut, *unreadable; /* cut, unreadable: the messages */
} Mapped;

static Mapped files[MAX_FILES];
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;
static pid_t main_process; /* set in a rank that train.py started, else 0 */
static atomic_flag has_spoken = ATOMIC_FLAG_INIT;

static void end_with(const Mapped *file, uint64_t offset)
{
    struct stat now;
    int is_cut = stat(file->path, &now) == 0 && (uint64_t)now.st_size <= offset;
    const char *message = is_cut ? file->cut : file->unreadable;
    while (atomic_flag_test_and_set(&has_spoken)) /* another thread is writing its message and will end the process */
        pause();
    if (main_process) { /* it maps the same files: let it write first, since one message is enough */
        sleep(1);
        if (getppid() != main_process)
            _exit(EXIT_CODE);
    }
    if (write(STDERR_FILENO, message, strlen(message)) < 0)
        _exit(EXIT_CODE); /* stderr is closed */
    _exit(EXIT_CODE);
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    const uint8_t *address = info->si_addr;
    (void)context;
    /* No lock: a signal handler must not take one. `start` is set last and cleared first, so an entry is complete. */
    for (int i = 0; i < MAX_FILES && info->si_code > 0; i++) {
        const Mapped *file = files + i;
        if (file->start && address >= file->start && address < file->start + file->num_bytes)
            end_with(file, file->offset + (uint64_t)(address - file->start));
    }
    sigaction(SIGBUS, &before, NULL); /* not our file: the access is repeated and reaches the previous handler */
    if (info->si_code <= 0)
        raise(number); /* sent by kill(), which does not repeat by itself */
}

/* Make SIGBUS at these bytes end the process with the message `cut` (the file was truncated) or `unreadable` on stderr.
 * Returns a number for tencrop_forget, or -1 if all entries are in use. */
int32_t tencrop_watch(const uint8_t *start, uint64_t num_bytes, uint64_t offset, const char *path, const char *cut,
                      const char *unreadable, int32_t parent)
{
    static int is_installed;
    int32_t found = -1;
    pthread_mutex_lock(&changing);
    if (!is_installed) {
        struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigemptyset(&action.sa_mask);
        is_installed = sigaction(SIGBUS, &action, &before) == 0;
    }
    main_process = parent;
    for (int32_t i = 0; i < MAX_FILES && found < 0; i++) {
        if (files[i].start)
            continue;
        files[i] = (Mapped){NULL, num_bytes, offset, strdup(path), strdup(cut), strdup(unreadable)};
        files[i].start = files[i].path && files[i].cut && files[i].unreadable ? start : NULL;
        found = i;
    }
    pthread_mutex_unlock(&changing);
    return found;
}

/* Stop watching: the bytes are no longer mapped, and their addresses may be reused. */
void tencrop_forget(int32_t number)
{
    pthread_mutex_lock(&changing);
    files[number].start = NULL;
    free(files[number].path);
    free(files[number].cut);
    free(files[number].unreadable);
    pthread_mutex_unlock(&changing);
}
