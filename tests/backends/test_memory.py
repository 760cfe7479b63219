"""The memory that is left: of the machine, of the groups around this process, and of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r1quant.backends import memory
from r1quant.backends.memory import free_bytes

CPU = torch.device("cpu")
MACHINE = 8_000_000 * 1024


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available; control groups are to be written into this folder."""
    (tmp_path / "meminfo").write_text(
        "MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total: 0\n", "ascii"
    )
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MOUNT", tmp_path / "mount")
    return tmp_path


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, "ascii")


def test_without_groups_it_is_the_machines(machine: Path) -> None:
    assert free_bytes(CPU) == MACHINE
    (machine / "cgroup").write_text("0::/gone\nnonsense\n", "ascii")
    assert free_bytes(CPU) == MACHINE
    (machine / "meminfo").unlink()
    assert free_bytes(CPU) > 1 << 20


@pytest.mark.parametrize("name", ["/", "/a/b", "/of/the/machine/outside"])
def test_the_second_version(machine: Path, name: str) -> None:
    (machine / "cgroup").write_text(f"0::{name}\n", "ascii")
    mount = machine / "mount"
    group(mount, {"memory.max": "5000000\n", "memory.current": "4000000\n", "memory.stat": "anon 1\nactive_file 300\n"})
    assert free_bytes(CPU) == 1_000_300
    group(mount, {"memory.max": "max\n"})
    assert free_bytes(CPU) == MACHINE
    group(mount, {"memory.max": "5\n", "memory.stat": "not numbers"})
    assert free_bytes(CPU) == 0


def test_the_narrowest_group_decides(machine: Path) -> None:
    (machine / "cgroup").write_text("0::/a/b\n", "ascii")
    for name, limit in (("a", 700), ("a/b", 900)):
        group(machine / "mount" / name, {"memory.max": str(limit), "memory.current": "100"})
    assert free_bytes(CPU) == 600


def test_the_first_version(machine: Path) -> None:
    (machine / "cgroup").write_text("5:devices:/x\n4:cpu,memory:/x\n0::/\n", "ascii")
    stat = "inactive_file 9\ntotal_inactive_file 20\ntotal_active_file 3\n"
    group(
        machine / "mount" / "memory" / "x",
        {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "900", "memory.stat": stat},
    )
    assert free_bytes(CPU) == 123


def test_of_a_gpu_what_torch_holds_back_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [3000]
    monkeypatch.setattr(torch.cuda, "empty_cache", held.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000 - sum(held), 10_000))
    assert free_bytes(torch.device("cuda")) == 10_000
