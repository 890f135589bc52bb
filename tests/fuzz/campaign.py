"""The campaign: damaged files for every reader, each reader in a process of its own; what goes wrong, as a table.

    python tests/fuzz/campaign.py --inputs 2000 [--seed 0] [reader ...]

An input is found again by its reader, the seed and its number: worker.py --show --seed 0 reader:17:18.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MOST_SECONDS, MOST_MB = 5.0, 700.0
"""Of work, and of memory: what one small file may cost."""


@dataclass
class Told:
    """What became of the inputs of one reader."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    most_seconds: float = 0.0
    most_mb: float = 0.0
    findings: dict[str, list[int]] = field(default_factory=dict)
    """By what went wrong, the inputs."""
    said: dict[str, str] = field(default_factory=dict)
    """What the first error of each kind said."""

    def take(self, told: dict[str, Any]) -> None:
        """Take note of one input."""
        self.inputs += 1
        self.seconds += told["seconds"]
        self.most_seconds, self.most_mb = max(self.most_seconds, told["seconds"]), max(self.most_mb, told["mb"])
        match told["outcome"]:
            case "read":
                self.read += 1
            case "refused":
                self.refused += 1
            case _:
                self.find(told["error"], told["input"], told.get("said", ""))
        if told["seconds"] > MOST_SECONDS:
            self.find(f"took more than {MOST_SECONDS:g} s", told["input"])
        if told["mb"] > MOST_MB:
            self.find(f"took more than {MOST_MB:g} MB", told["input"])

    def find(self, what: str, index: int, said: str = "") -> None:
        """Take note of what went wrong."""
        self.said.setdefault(what, said)
        self.findings.setdefault(what, []).append(index)


def campaign(readers: Sequence[str], inputs: Mapping[str, int], seed: str = "0") -> dict[str, Told]:
    """Damage so many files for each reader, and tell what became of them."""
    found = {name: Told() for name in readers}
    with TemporaryDirectory() as home:
        places = map(str, (ROOT, HERE.parent, HERE, ROOT / "examples"))
        env = os.environ | {"PYTHONPATH": os.pathsep.join(places), "WSIMIL_HOME": home, "TMPDIR": home}
        env |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        command = [sys.executable, str(HERE / "worker.py"), "--seed", seed]
        command += [f"{name}:0:{inputs[name]}" for name in readers]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}  # codecs chatter there
        with subprocess.Popen(command, env=env, text=True, **pipes) as process:
            for line in process.stdout or ():
                told = json.loads(line)
                found[told["reader"]].take(told)
    if process.returncode:
        raise RuntimeError(f"the worker ended with {process.returncode}: run {' '.join(command)}")
    return found


def table(found: dict[str, Told]) -> str:
    """What became of the inputs, in a row per reader."""
    lines = [f"{'reader':20} inputs    read refused  crashes  CPU s  worst s  worst MB"]
    lines += [
        f"{name:20} {one.inputs:6} {one.read:7} {one.refused:7} {sum(map(len, one.findings.values())):8} "
        f"{one.seconds:6.1f} {one.most_seconds:8.2f} {one.most_mb:9.0f}"
        for name, one in found.items()
    ]
    for name, one in found.items():
        for what, at in one.findings.items():
            lines.append(f"{name}: {what} ({one.said[what]}): {len(at)} inputs: {', '.join(map(str, at[:5]))}")
    return "\n".join(lines)


def main() -> int:
    """Run it, and print the table."""
    sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]
    from readers import READERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("readers", nargs="*", default=list(READERS))
    asked = parser.parse_args()
    started = time.monotonic()
    found = campaign(asked.readers, dict.fromkeys(asked.readers, asked.inputs), asked.seed)
    print(table(found))
    print(f"{time.monotonic() - started:.0f} s in all")
    return int(any(one.findings for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
