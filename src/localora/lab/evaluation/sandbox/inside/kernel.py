"""The system calls that Python's standard library lacks (Linux, glibc).

Like every file of this folder it is imported by the supervisor alone, which runs without site-packages.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 0x1, 0x2, 0x4, 0x20
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000  # the number is the same on every architecture

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_PR_SET_CHILD_SUBREAPER = 36
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """`name` of the C library.

    Raises:
        OSError: it failed, or the library lacks it.
    """
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(f"the C library has no {name}")
    result = int(function(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def system_call(number: int, name: str, *arguments: Any) -> int:
    """A system call by number; pointers and 64-bit values must be ctypes objects. Raises OSError."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def unshare(flags: int) -> None:
    """New namespaces for this process, and (process ids) for its children."""
    call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def make_read_only(target: str) -> None:
    """The mount at `target` and all below it: no writing, no set-user-id programs."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)
    arguments = (ctypes.c_int(_AT_FDCWD), os.fsencode(target), ctypes.c_uint(_AT_RECURSIVE))
    system_call(_MOUNT_SETATTR, "mount_setattr", *arguments, ctypes.byref(attributes), ctypes.c_size_t(32))


def enter_root(folder: str) -> None:
    """`folder`, a mount point, becomes "/"; the old root is let go."""
    os.chdir(folder)
    call("pivot_root", b".", b".")
    call("umount2", b".", ctypes.c_int(_MNT_DETACH))
    os.chdir("/")


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Descendants whose parent ended become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forbid_inspection() -> None:
    """No other process of this user can trace this one or read its memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def drop_privileges_for_good() -> None:
    """No capabilities, now or later, and no set-user-id programs."""
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # not that many, or no right to drop: then there is none to gain either
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    call("prctl", ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero)
