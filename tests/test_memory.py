"""What Linux says of the memory that a process may fill."""

from pathlib import Path

import pytest

from wsi_mil import memory

GIB = 1 << 30


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a kernel: 8 GiB are free on the machine."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    told(tmp_path / "proc/meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\nHugePages_Total: 0\n")
    return tmp_path


def told(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limit(folder: Path, most: str, used: int, files: int = 0, version: int = 2) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    told(folder / names[0], f"{most}\n")
    told(folder / names[1], f"{used}\n")
    told(folder / "memory.stat", f"anon 1\n{'inactive_file' if version == 2 else 'total_inactive_file'} {files}\n")


def test_without_limits_it_is_what_the_machine_has_free(kernel: Path) -> None:
    told(kernel / "proc/self/cgroup", "0::/\n")
    assert memory.available_memory() == 8 * GIB
    limit(kernel / "cgroup", "max", 0)
    assert memory.available_memory() == 8 * GIB


def test_the_tightest_group_counts_and_files_can_be_had_back(kernel: Path) -> None:
    told(kernel / "proc/self/cgroup", "0::/job/step\n")
    limit(kernel / "cgroup/job", str(6 * GIB), 4 * GIB, files=GIB)
    limit(kernel / "cgroup/job/step", "max", 0)
    assert memory.available_memory() == 3 * GIB
    limit(kernel / "cgroup/job/step", str(5 * GIB), 4 * GIB)
    assert memory.available_memory() == GIB
    limit(kernel / "cgroup/job/step", str(5 * GIB), 6 * GIB)
    assert memory.available_memory() == 0


def test_version_1_and_a_path_of_the_host_count_too(kernel: Path) -> None:
    told(kernel / "proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/\n")
    limit(kernel / "cgroup/memory", str(2 * GIB), GIB, version=1)
    assert memory.available_memory() == GIB


def test_this_machine_says_something() -> None:
    assert memory.available_memory() > 1 << 20
    assert 1 << 20 < memory.peak_memory() < 1 << 45
