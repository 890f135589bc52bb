"""The process that reads damaged files. It forks: a child that crashes or hangs is told of, and another goes on.

Lines of JSON on standard output tell what became of each input; campaign.py puts them together.
"""

import argparse
import json
import logging
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from readers import READERS, Reader

from wsi_mil import store
from wsi_mil.errors import WsiMilError

MOST_BYTES = 1 << 30
"""Of address space that reading may take, beyond what the process had: less than the lies in headers promise."""
_HANGS_CPU_S, _HANGS_S = 20, 600
"""Seconds of work, or of waiting, after which an input counts as one that never ends."""


def main() -> None:
    """Read the inputs that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", default="0")
    parser.add_argument("--show", action="store_true", help="tell where errors that are not ours come from")
    parser.add_argument("wanted", nargs="+", help="reader:first:end")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for text in asked.wanted:
        name, first, end = text.split(":")
        with TemporaryDirectory() as folder:
            supervise(name, asked.seed, range(int(first), int(end)), Path(folder), asked.show)


def supervise(name: str, seed: str, inputs: range, folder: Path, show: bool) -> None:
    """Have children read the inputs, each going on behind the one at which the last child died."""
    while inputs:
        sys.stdout.flush()
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            os.close(receiver)
            try:
                with os.fdopen(sender, "w") as pipe:
                    for told in read_all(name, seed, inputs, folder / str(inputs.start), show):
                        print(json.dumps(told), file=pipe, flush=True)
            except BaseException:  # noqa: BLE001 - of a child that must not go on as its parent
                traceback.print_exc()
                os._exit(1)  # here, so that only the parent takes its folder away
            os._exit(0)
        os.close(sender)
        begun: dict[str, Any] = {"reader": name, "input": inputs.start}
        with os.fdopen(receiver) as pipe:
            for told in map(json.loads, pipe):
                begun = told
                if "outcome" in told:
                    print(json.dumps(told), flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            print(json.dumps({**begun, "outcome": "died", "error": _how(code), "seconds": 0, "mb": 0}), flush=True)
        inputs = range(begun["input"] + 1, inputs.stop) if code else range(0)


def _how(code: int) -> str:
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return "does not end"
    return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process left with {code}"


def read_all(name: str, seed: str, inputs: range, folder: Path, show: bool = False) -> Iterator[dict[str, Any]]:
    """Tell of each input that it begins, and how it ended."""
    folder.mkdir()
    reader = READERS[name]
    paths = reader.make(folder)
    valid = [path.read_bytes() for path in paths]
    _outcome(reader, paths[0], show)  # so that what is loaded once is no part of the first input's memory
    resource.setrlimit(resource.RLIMIT_AS, (_kb("VmSize") * 1024 + MOST_BYTES, resource.RLIM_INFINITY))
    for index in inputs:
        signal.setitimer(signal.ITIMER_PROF, _HANGS_CPU_S)  # these signals end the process, wherever it is
        signal.alarm(_HANGS_S)
        rng = random.Random(f"{name} {seed} {index}")
        which = rng.randrange(len(paths))
        yield {"reader": name, "input": index}
        reader.write(rng, paths[which], valid[which], valid)
        store._verified.clear()
        yield {"reader": name, "input": index, **_outcome(reader, paths[which], show)}
        paths[which].write_bytes(valid[which])


def _outcome(reader: Reader, path: Path, show: bool) -> dict[str, Any]:
    """How reading ended, in how many seconds of work, and how much memory it took at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, started = _kb("VmRSS"), time.process_time()
    try:
        reader.read(path)
        told = {"outcome": "read"}
    except WsiMilError as error:
        told = {"outcome": "refused", "error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001 - what is looked for
        where = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in where if "/wsi_mil/" in frame.filename]
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        told = {"outcome": "crash", "error": f"{type(error).__name__} at {at}", "said": str(error)[:300]}
        if show:
            traceback.print_exc()
    return told | {"seconds": time.process_time() - started, "mb": max(0, _kb("VmHWM") - before) / 1024}


def _kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
