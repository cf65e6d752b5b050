// process.c: other processes: started, looked at, stopped; and locks that live as long as the process
// that holds them, so that a kill leaves none behind.
#include "../core.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

// The lock belongs to the open file, not to the process: whoever inherits the descriptor holds it too.
int weft_lock_take(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        weft_fail(WEFT_EIO, "opening the lock %s: %s", path, strerror(errno));
        return -2;
    }
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return fd;
    int why = errno;
    close(fd);
    if (why == EAGAIN || why == EACCES) return -1;
    weft_fail(WEFT_EIO, "locking %s: %s", path, strerror(why));
    return -2;
}

void weft_lock_drop(int fd) {
    if (fd >= 0) close(fd);
}

int64_t weft_process_start(const char *const *words, const char *output, int keep) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    pid_t pid = 0;
    int code = posix_spawn_file_actions_init(&actions);
    if (code == 0 && (code = posix_spawnattr_init(&attributes)) != 0) posix_spawn_file_actions_destroy(&actions);
    if (code != 0) {
        weft_fail(WEFT_ENOMEM, "starting %s: %s", words[0], strerror(code));
        return 0;
    }
    // a group of its own: the terminal's Ctrl-C is the parent's to pass on, once
    code = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    if (code == 0) code = posix_spawnattr_setpgroup(&attributes, 0);
    if (code == 0) code = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (code == 0) code = posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (code == 0) code = posix_spawn_file_actions_adddup2(&actions, 1, 2);
    // onto itself: the child's copy stays open over exec
    if (code == 0 && keep >= 0) code = posix_spawn_file_actions_adddup2(&actions, keep, keep);
    if (code == 0) code = posix_spawnp(&pid, words[0], &actions, &attributes, (char *const *)words, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (code == 0) return (int64_t)pid;
    weft_fail(WEFT_EIO, "starting %s: %s", words[0], strerror(code));
    return 0;
}

int weft_process_poll(int64_t pid) {
    int status = 0;
    pid_t got = waitpid((pid_t)pid, &status, WNOHANG);
    if (got == 0 || (got < 0 && errno == EINTR)) return -1;
    if (got < 0) return 255;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

weft_status weft_process_stop(int64_t pid) {
    if (pid <= 1) return weft_fail(WEFT_EINVAL, "%lld is no process of ours", (long long)pid);
    if (kill((pid_t)pid, SIGTERM) == 0 || errno == ESRCH) return WEFT_OK;
    return weft_fail(WEFT_EIO, "stopping process %lld: %s", (long long)pid, strerror(errno));
}

void weft_sleep(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}
