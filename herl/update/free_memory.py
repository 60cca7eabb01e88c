"""The memory that a run may still take.

A container's limit often lies far below the machine's memory, and the system kills a process that exceeds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

GIB = 2**30
CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Names of limit, usage, and the entry of memory.stat for cached files, which the system drops if need be."""


def free_gib(device: torch.device) -> float:
    """Returns the GiB that this process can still take: of the GPU, or of the machine or its container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) / GIB
    return min([int(psutil.virtual_memory().available), *limits_left()]) / GIB


def limits_left(mount: Path = CGROUPS, own: Path = OWN) -> Iterator[int]:
    """Yields the bytes left under each memory limit of this process's control groups; none outside Linux.

    Args:
        mount: Where control groups are mounted.
        own: The file that names this process's groups. In a container it may name the host's groups, which
            are not mounted; the limit is then in the mount's root.
    """
    if not own.is_file():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mount, FILES["v2"]
        elif "memory" in controllers.split(","):
            root, names = mount / controllers, FILES["v1"]
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / names[0]).is_file():
                yield from _left(folder, *names)
            if folder == root:
                break


def _left(folder: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    most = (folder / limit).read_text(encoding="utf-8").strip()
    if most == "max":
        return
    stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    used = int((folder / usage).read_text(encoding="utf-8")) - int(stat.get(cached, 0))
    yield max(0, int(most) - used)
