"""Landlock: this process and its children can open only what they are allowed to (Linux 5.13 and newer)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from kernel import system_call

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the numbers are the same on every architecture
_VERSION_FLAG, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights on files there are; from 5 on, 16
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_TCP = 0b11  # bind and connect, from 4 on
_SCOPED = 0b11  # abstract sockets and signals, from 6 on


def version() -> int:
    """The kernel's Landlock ABI; 0 where it has none."""
    try:
        return system_call(_CREATE, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: str) -> int:
    """Read and execute below `readable`, everything below `writable`, nothing else; no TCP, no signals to outside.

    Returns the ABI, which says what of it the kernel knows: TCP from 4 on, signals from 6 on. Needs no_new_privs.
    """
    abi = version()
    every = (1 << _RIGHTS_OF_ABI.get(abi, 16)) - 1
    handled = (ctypes.c_uint64 * 3)(every, _TCP if abi >= 4 else 0, _SCOPED if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = system_call(_CREATE, "landlock", ctypes.byref(handled), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in readable:
            _allow(ruleset, path, (_EXECUTE | _READ_FILE | _READ_DIR) & every)
        _allow(ruleset, writable, every & ~_EXECUTE)
        _allow(ruleset, "/dev/null", (_READ_FILE | _WRITE_FILE) & every)
        system_call(_RESTRICT, "landlock", ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return abi


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _allow(ruleset: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(rights if os.path.isdir(path) else rights & _ON_FILES, handle)
        arguments = (ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
        system_call(_ADD_RULE, "landlock", *arguments)
    finally:
        os.close(handle)
