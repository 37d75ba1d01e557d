"""The system calls that a box refuses, as a filter for `bwrap --seccomp`, built by libseccomp.

Namespaces keep a sample from the outside; this keeps it to one process whose memory counts. What it refuses: other
processes, memory that no limit counts (memfd, System V and POSIX message queues and shared memory), sockets,
namespaces and mounts, other processes' memory, locks and watches on files that others use, and the large kernel
interfaces that no Python program needs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile

REFUSED = [
    *("fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"),
    *("memfd_create", "memfd_secret", "shmget", "msgget", "semget", "mq_open"),
    "socket",
    *("unshare", "setns", "chroot", "pivot_root", "mount", "umount2", "mount_setattr", "open_tree", "move_mount"),
    *("fsopen", "fsmount", "fsconfig", "fspick", "name_to_handle_at", "open_by_handle_at", "fanotify_init"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open", "userfaultfd"),
    *("keyctl", "add_key", "request_key", "flock", "inotify_init", "inotify_init1"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"),
]
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_CLONE_THREAD, _MASKED_EQUAL = 0x00010000, 7


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def refusals() -> bytes:
    """The compiled filter for this machine's architecture; system calls of another one kill the process.

    Raises:
        OSError: no libseccomp, or one that cannot make the filter.
    """
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))
    no_thread = _Comparison(0, _MASKED_EQUAL, _CLONE_THREAD, 0)
    _refuse(library, context, "clone", errno.EPERM, no_thread)
    _refuse(library, context, "clone3", errno.ENOSYS)  # its flags lie in memory; glibc then uses clone
    for name in REFUSED:
        _refuse(library, context, name, errno.EPERM)
    with tempfile.TemporaryFile() as file:
        result = library.seccomp_export_bpf(context, ctypes.c_int(file.fileno()))
        library.seccomp_release(context)
        if result < 0:
            raise OSError(-result, f"seccomp_export_bpf: {os.strerror(-result)}")
        file.seek(0)
        return file.read()


def _refuse(library: ctypes.CDLL, context: ctypes.c_void_p, name: str, error: int, *when: _Comparison) -> None:
    """One rule; one for a call that this architecture lacks is no rule.

    Raises:
        OSError: this libseccomp does not know the name, or could not add the rule.
    """
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:
        raise OSError(errno.ENOSYS, f"libseccomp is too old to know the system call {name}")
    comparisons = (_Comparison * max(1, len(when)))(*when)
    result = library.seccomp_rule_add_array(
        context, ctypes.c_uint32(_ERRNO | error), ctypes.c_int(number), ctypes.c_uint(len(when)), comparisons
    )
    if result < 0:
        raise OSError(-result, f"seccomp rule for {name}: {os.strerror(-result)}")
