/* Ends the process with a sentence where a mapped file cannot be read any more. Called by mapped.py.
 *
 * A page that lies behind the end of a file, or that its disk does not give, is no error that a call returns: the
 * access itself raises SIGBUS, in whatever thread and library, whose default is to end the process without a word.
 * Everything that the handler calls is async-signal-safe, and its sentences are written beforehand. It costs nothing
 * until a page is missing.
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

#define MAX_FILES 256 /* of one process at once; SIGBUS in one beyond them ends it as ever */
#define EXIT_CODE 2

typedef struct {
    const uint8_t *start; /* NULL: free */
    uint64_t num_bytes, offset; /* offset: of the first byte, in the file */
    char *path, *cut, *unreadable; /* the last two: what is said */
} Mapped;

static Mapped files[MAX_FILES];
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;
static pid_t main_process; /* of a rank that train.py started, else 0 */
static atomic_flag has_spoken = ATOMIC_FLAG_INIT;

static void end_with(const Mapped *file, uint64_t offset)
{
    struct stat now;
    int is_cut = stat(file->path, &now) == 0 && (uint64_t)now.st_size <= offset;
    const char *message = is_cut ? file->cut : file->unreadable;
    while (atomic_flag_test_and_set(&has_spoken)) /* another thread speaks, and ends this one */
        pause();
    if (main_process) { /* maps the same files: it speaks first, and one sentence is enough */
        sleep(1);
        if (getppid() != main_process)
            _exit(EXIT_CODE);
    }
    if (write(STDERR_FILENO, message, strlen(message)) < 0)
        _exit(EXIT_CODE); /* nobody to tell */
    _exit(EXIT_CODE);
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    const uint8_t *address = info->si_addr;
    (void)context;
    for (int i = 0; i < MAX_FILES && info->si_code > 0; i++) {
        const Mapped *file = files + i;
        if (file->start && address >= file->start && address < file->start + file->num_bytes)
            end_with(file, file->offset + (uint64_t)(address - file->start));
    }
    sigaction(SIGBUS, &before, NULL); /* of something else: for whoever handled it before, when it comes again */
    if (info->si_code <= 0)
        raise(number); /* sent by a process, it comes once */
}

/* From now on SIGBUS at these bytes ends the process with `cut` (the file has become shorter) or `unreadable` on stderr.
 * Returns what tencrop_forget takes, or -1 where there is no room. */
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

/* The bytes are mapped no more. */
void tencrop_forget(int32_t number)
{
    pthread_mutex_lock(&changing);
    files[number].start = NULL;
    free(files[number].path);
    free(files[number].cut);
    free(files[number].unreadable);
    pthread_mutex_unlock(&changing);
}
