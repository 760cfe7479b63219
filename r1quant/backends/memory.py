"""How much memory can still be had: of a GPU, or of this machine and the control groups that this process is in.

It does not know what the memory is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

MEMINFO = Path("/proc/meminfo")
GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# The limit, what is used, and the caches of files that are counted as used but can be had; see cgroups(7).
SECOND = ("memory.max", "memory.current", ("inactive_file", "active_file"))
FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def free_bytes(device: torch.device) -> int:
    """Memory that can be had: of the device, or of this machine and its control groups, where the caches of files count
    as free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what freed tensors had, torch keeps, and the driver counts as used
        return int(torch.cuda.mem_get_info(device)[0])
    return max(0, min([_of_machine(), *_of_groups()]))


def _of_machine() -> int:
    fields = _fields(MEMINFO)
    if "MemAvailable" in fields:
        return fields["MemAvailable"] * 1024
    return int(psutil.virtual_memory().available)


def _of_groups() -> Iterator[int]:
    """What each group that has a limit leaves: those that this process is in, and those around them."""
    lines = []
    with suppress(OSError):
        lines = GROUPS.read_text("utf-8", "replace").splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if not controllers:
            yield from _left(MOUNT, name, SECOND)
        elif "memory" in controllers.split(","):
            yield from _left(MOUNT / "memory", name, FIRST)


def _left(mount: Path, name: str, files: tuple[str, str, tuple[str, ...]]) -> Iterator[int]:
    """In a container the name may be that of the machine outside, where there is no such folder; the mount is ours."""
    limit, usage, caches = files
    inner = mount / name.strip("/")
    for folder in (inner, *inner.parents):
        with suppress(OSError, ValueError):  # `max` is no number: there is no limit
            stat = _fields(folder / "memory.stat")
            cached = sum(stat.get(cache, 0) for cache in caches)
            yield int((folder / limit).read_text("ascii")) - int((folder / usage).read_text("ascii")) + cached
        if folder == mount:
            return


def _fields(path: Path) -> dict[str, int]:
    """Lines such as `name 5` or `name: 5 kB`; none if the file cannot be read."""
    found = {}
    with suppress(OSError):
        for line in path.read_text("ascii", "replace").splitlines():
            words = line.split()
            if len(words) > 1 and words[1].isdecimal():
                found[words[0].rstrip(":")] = int(words[1])
    return found
