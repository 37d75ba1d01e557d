"""What of the file system a sample sees: Python's own library, read-only, and an empty folder."""

from __future__ import annotations

import os
import sys

import kernel

WORKSPACE = "/workspace"  # of the new root


def library_paths() -> list[str]:
    """What this interpreter needs to import its standard library; no path lies below another."""
    wanted = [
        os.path.dirname(os.__file__),
        os.path.join(sys.base_prefix, "lib"),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"),
        *("/etc/ld.so.cache", "/dev/null", "/dev/urandom"),
    ]
    paths = sorted({path for path in wanted if os.path.exists(path)})
    return [path for path in paths if not any(path.startswith(other + "/") for other in paths)]


def enter_new_root(folder: str, paths: list[str], owner: int, disk_mib: int) -> None:
    """A root of nothing but `paths`, read-only, and WORKSPACE, an empty disk in memory that belongs to `owner`.

    `folder` is an empty directory to build it on. Needs a mount namespace of our own and its privileges.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("none", folder, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
    for path in paths:
        target = folder + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.make_read_only(target)
    workspace = folder + WORKSPACE
    os.mkdir(workspace)
    options = f"size={disk_mib}m,nr_inodes=4096,mode=700,uid={owner}"
    kernel.mount("none", workspace, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    kernel.mount("none", folder, None, kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID)
    kernel.enter_root(folder)


def stored_bytes(folder: str) -> int:
    """Size of all files below `folder`."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:  # gone meanwhile
                continue
    return total
