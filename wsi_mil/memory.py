"""Memory that this process may still fill, as Linux tells it: the machine's, and what control groups leave of it."""

from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_V1, _V2 = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)


def available_memory() -> int:
    """Bytes: what the machine has free, or what the tightest control group leaves, if that is less."""
    lines = (line.partition(":") for line in (PROC / "meminfo").read_text().splitlines())
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in lines}
    return min([kilobytes["MemAvailable"] * 1024, *_left_by_groups()])


def peak_memory() -> int:
    """Bytes that this process has filled at most."""
    lines = (line.partition(":") for line in (PROC / "self" / "status").read_text().splitlines())
    return next(int(rest.split()[0]) * 1024 for name, _, rest in lines if name == "VmHWM")


def _left_by_groups() -> Iterator[int]:
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (CGROUPS / "memory", _V1) if controllers else (CGROUPS, _V2)
        # In a container the path may be the host's, of which only the root is there to see.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _left_by(folder, *names)


def _left_by(folder: Path, limit: str, used: str, files: str) -> Iterator[int]:
    """What the limit of a group leaves, if it has one; what files fill there can be had back."""
    if not (folder / limit).exists() or not (most := (folder / limit).read_text().strip()).isdigit():
        return
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    yield max(0, int(most) - int((folder / used).read_text()) + int(stat.get(files, 0)))
