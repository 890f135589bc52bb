"""Commands as children that can be killed: one process imports torch once, and forks a child for each command.

Run as a script this is that process: it reads a request per line of stdin and answers with a line of stdout, both JSON.
A child runs ``wsi_mil.__main__`` as ``python -m wsi_mil`` does, to the end of its interpreter, with the sabotage that
it was asked for (`sabotage`).
"""

import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_POLL_S = 0.005
_LONGEST_S = 300.0
_OF_A_GPU = ("cuda", "triton_kernels", "triton_pairs", "fused_kernels", "fused")
_LATE = ("lightning_fabric", "torch._dynamo", "typer._adapters", "matplotlib.pyplot", "scipy.stats", "sklearn.metrics")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "NO_COLOR": "1"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit status; a negative signal where that killed it."""
    out: str
    err: str
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Child:
    """A command that runs."""

    pid: int
    log: Path


class Parent:
    """The process that forks. A context manager; used by one thread."""

    def __init__(self, logs: Path, home: Path) -> None:
        """Start it: it imports everything, which takes seconds."""
        self._logs, self._count = logs, 0
        environment = {**os.environ, **_ENVIRONMENT, "WSIMIL_HOME": str(home)}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> "Parent":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, words: tuple[str, ...], folder: Path, sabotage: dict[str, Any] | None = None) -> Child:
        """Start ``wsimil`` with these words in a folder."""
        self._count += 1
        log = self._logs / f"{self._count:04d}"
        for name in ("out", "err"):  # a child may be killed before it opens them
            Path(f"{log}.{name}").touch()
        request = {"words": words, "folder": str(folder), "sabotage": sabotage or {}, "log": str(log)}
        return Child(self._ask(request)["pid"], log)

    def wait(self, child: Child, kill_after_s: float = _LONGEST_S) -> Ended:
        """Wait for a command to end, and kill it if it takes longer than that."""
        told = self._ask({"wait": child.pid, "kill_after_s": kill_after_s})
        out, err = (Path(f"{child.log}.{name}").read_text(encoding="utf-8") for name in ("out", "err"))
        return Ended(told["code"], out, err, told["seconds"])

    def run(
        self,
        words: tuple[str, ...],
        folder: Path,
        sabotage: dict[str, Any] | None = None,
        kill_after_s: float = _LONGEST_S,
    ) -> Ended:
        """Run a command to its end, whichever that is."""
        return self.wait(self.start(words, folder, sabotage), kill_after_s)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the forking process has ended with {self._process.wait()}"
        return json.loads(line)


def _import_everything() -> None:
    import wsi_mil

    for module in pkgutil.walk_packages(wsi_mil.__path__, "wsi_mil."):
        if not module.name.endswith(("__main__", *_OF_A_GPU)):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)


def _compile() -> None:
    """Let numba load its kernels, by looking at a slide."""
    from wsi_mil.slides import open_slide, write_pyramid

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slide.tif")
        write_pyramid(path, np.full((600, 600, 3), 200, np.uint8), 1.0)
        with open_slide(path) as slide:
            slide.thumbnail(16.0)


def _serve() -> dict[str, Any]:
    """Answer requests; return, in a child, what it is to do."""
    began: dict[int, float] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid = request["wait"]
            code = _code(pid, began[pid] + request["kill_after_s"])
            answer: dict[str, Any] = {"code": code, "seconds": time.monotonic() - began.pop(pid)}
        else:
            pid = os.fork()
            if not pid:
                return request
            began[pid] = time.monotonic()
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    sys.exit(0)


def _code(pid: int, until: float) -> int:
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _become(request: dict[str, Any]) -> None:
    """Be the command from here on."""
    import sabotage

    os.setsid()
    for name, number in (("/dev/null", 0), (f"{request['log']}.out", 1), (f"{request['log']}.err", 2)):
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(request["folder"])
    sys.argv = ["wsimil", *request["words"]]
    sabotage.apply(request["sabotage"])


if __name__ == "__main__":
    _import_everything()
    _compile()
    gc.freeze()  # what is never looked at again is never copied
    _become(_serve())
    from wsi_mil.cli import main

    main()
