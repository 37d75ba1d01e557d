"""The supervisor: one sample, contained, watched, cleared away. Run as `python -I -S FOLDER`, its job on stdin.

    supervisor                  outside; keeps the time, kills
      first process             number 1 of the new process-id namespace: when it ends, the kernel kills all in it
        worker                  limits, no privileges, no files; says "ready" on the status pipe; then runs the sample

Without namespaces (a container's root that may not make them) there is no first process; then the sample's user id,
which nobody else has, says what to kill.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

import files
import kernel
import landlock
from judge import judge

FINISHED, OUT_OF_TIME, OUT_OF_DISK, BROKEN = 0, 3, 4, 5  # exit codes of the supervisor
Job = dict[str, Any]


def main() -> NoReturn:
    job: Job = json.loads(sys.stdin.buffer.read())
    sys.path.pop(0)
    status, token, verdict = job["status"], job["token"], os.dup(1)
    try:
        if job["namespaces"]:
            _enter_namespaces(job["user_namespace"])
        else:
            kernel.adopt_orphans()
        child = os.fork()
    except BaseException as error:
        _fail(status, error)
    if child == 0:
        try:
            if job["namespaces"]:
                _first_process(job, status, token, verdict)
            _worker(job, status, token, verdict)
        except BaseException as error:
            _fail(status, error)
    for descriptor in (0, 1, status, token, verdict):
        os.close(descriptor)
    code = _watch(job, child)
    if not job["namespaces"]:
        _kill_user(job["uid"])
    os._exit(code)


def _enter_namespaces(user: bool) -> None:
    uid, gid = os.getuid(), os.getgid()
    flags = kernel.NEW_MOUNTS | kernel.NEW_PIDS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_UTS
    kernel.unshare(flags | (kernel.NEW_USER if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _first_process(job: Job, status: int, token: int, verdict: int) -> NoReturn:
    kernel.die_with_parent()
    kernel.forbid_inspection()
    files.enter_new_root(job["folder"], files.library_paths(), job["uid"] or 0, job["disk_mib"])
    worker = os.fork()
    if worker == 0:
        _worker({**job, "folder": files.WORKSPACE}, status, token, verdict)
    for descriptor in (0, 1, 2, status, token, verdict):
        os.close(descriptor)
    while os.wait()[0] != worker:  # orphans end up here
        pass
    os._exit(0)


def _worker(job: Job, status: int, token: int, verdict: int) -> None:
    """Does not return."""
    try:
        os.setsid()
        os.umask(0o077)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        kept = {0, 1, 2, status, token, verdict}
        for descriptor in range(max(kept | {null}) + 64):
            if descriptor not in kept:
                _close(descriptor)
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(HOME=job["folder"], TMPDIR=job["folder"], PATH="")
        _limit(job)
        if job["uid"] is not None:
            os.setgroups([])
            os.setresgid(job["uid"], job["uid"], job["uid"])
            os.setresuid(job["uid"], job["uid"], job["uid"])
        kernel.drop_privileges_for_good()
        abi = landlock.restrict(files.library_paths(), job["folder"]) if landlock.version() else 0
        os.write(status, json.dumps({"ready": True, "landlock": abi}).encode())
        os.close(status)
    except BaseException as error:
        _fail(status, error)
    judge(job["program"], job["tests"], token, verdict)


def _limit(job: Job) -> None:
    """Both the soft and the hard limit, of this process and of each of its children."""
    limits = {
        resource.RLIMIT_AS: job["memory_mib"] << 20,
        resource.RLIMIT_CPU: job["seconds"],
        resource.RLIMIT_FSIZE: job["file_mib"] << 20,
        resource.RLIMIT_NOFILE: job["open_files"],
        resource.RLIMIT_NPROC: job["processes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much is an OSError, not the end


def _watch(job: Job, child: int) -> int:
    """Wait for the child, within the time and (where the folder is a real one) the disk it has; kill it beyond."""
    deadline, code, looked = time.monotonic() + job["seconds"], BROKEN, 0.0
    while True:
        pid, result = os.waitpid(child, os.WNOHANG)
        if pid:
            return FINISHED if os.WIFEXITED(result) else BROKEN
        now = time.monotonic()
        if now > deadline:
            code = OUT_OF_TIME
            break
        if not job["namespaces"] and now > looked + 0.1:
            looked = now
            if files.stored_bytes(job["folder"]) > job["disk_mib"] << 20:
                code = OUT_OF_DISK
                break
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)  # of a namespace's first process: returns when all of the namespace are gone
    return code


def _kill_user(uid: int) -> None:
    """Kill every process of the sample's user, and wait until they are gone.

    One kill(-1) by a process of that user reaches exactly those, and leaves no gap: a fork of a process that is being
    killed fails. Only its return value says nothing, since it counts the processes it had no right to kill. The sample
    can kill the killer, which is then sent again. The killed, whoever their parent was, end as our children.
    """
    for _ in range(1000):
        killer = os.fork()
        if killer == 0:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
            os._exit(0)
        if os.waitpid(killer, 0)[1] == 0:
            break
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


def _fail(status: int, error: BaseException) -> NoReturn:
    os.write(status, json.dumps({"ready": False, "error": f"{type(error).__name__}: {error}"}).encode())
    os._exit(BROKEN)


main()
