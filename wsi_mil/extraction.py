"""Stage 2 as its callers ask for it: encoders, loaded by whoever runs them, here or on each worker of a cluster."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from wsi_mil.crew import Crew
from wsi_mil.devices import default_batch, pick_device, use_cores
from wsi_mil.dispatch import asking
from wsi_mil.encoders import Encoder
from wsi_mil.extract import ExtractParams, ExtractStage, shared_stream, tiles_fingerprint
from wsi_mil.progress import Progress
from wsi_mil.remote import CacheParams
from wsi_mil.runs import Report
from wsi_mil.slides import Place
from wsi_mil.stage import Item, Output, Result, RunOptions, Stream, run_together


@dataclass(frozen=True)
class Extraction:
    """Everything that features are made with. It is sent to workers, so it names weights and holds none."""

    load: Callable[[str], list[Encoder]]
    """Loads the encoders, to a device: a function of a module, or a method, or a ``partial`` of such."""
    folders: tuple[Path, ...]
    """Where the features of each encoder go."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """How tiles are read and their stain normalised: as `ExtractParams.of` takes it."""
    device: str = "auto"
    """Where the encoders run; as ``--device`` says it."""
    batch: int = 0
    """Tiles per forward pass; 0 = what suits the device."""
    workers: int = 0
    """Threads that read; 0 = the cores that whoever runs it may use."""
    moved: Mapping[str, Place] | None = None
    """By slide_id, where slides lie that are not at their recorded path any more."""
    cache: CacheParams = field(default_factory=CacheParams)
    """Where slides from far away are staged."""
    token: str = ""
    """Of one run: a worker loads the encoders anew for each, since a file of weights may have changed."""

    def run(self, items: list[Item], options: RunOptions, loaded: list[Encoder] | None = None) -> dict[Path, Report]:
        """Extract; what became of the slides, by folder. ``loaded`` are the encoders, where they were loaded before."""
        if options.scheduler:
            return self._run_elsewhere(items, options)
        outputs, stream = self._ready(loaded or self.load(self.device))
        return run_together(outputs, items, stream, options)

    def crew(self) -> Crew:
        """What a worker is made into: it loads the encoders once."""
        use_cores()
        return Crew(*self._ready(self.load(self.device)), in_turn=True)

    def _ready(self, encoders: list[Encoder]) -> tuple[list[Output], Stream]:
        threads, batch = RunOptions(workers=self.workers).threads, self.batch or default_batch(pick_device(self.device))
        params = partial(ExtractParams.of, **self.reading)
        stages = {
            folder: ExtractStage(params(encoder), encoder, threads, batch, self.moved, self.cache)
            for folder, encoder in zip(self.folders, encoders, strict=True)
        }
        return [Output(stage, folder) for folder, stage in stages.items()], shared_stream(stages)

    def _run_elsewhere(self, items: list[Item], options: RunOptions) -> dict[Path, Report]:
        """Let workers do it. What they would record is asked of one of them, so nothing is loaded here."""
        moved = {name: place.absolute() for name, place in self.moved.items()} if self.moved else None
        folders = tuple(folder.absolute() for folder in self.folders)
        with asking(options.scheduler, self.device) as (device, ask):
            own = {"folders": folders, "moved": moved, "cache": self.cache.absolute()}
            there = replace(self, **own, device=device, token=token_hex(8))
            params = ask(there.crew, "params")
        outputs = [Output(_Described(one), folder) for one, folder in zip(params, self.folders, strict=True)]
        return run_together(outputs, items, _nowhere, replace(options, device=device), there.crew)


class _Described:
    """What the loop needs to know of a stage that runs elsewhere."""

    name, version, beside = ExtractStage.name, ExtractStage.version, ExtractStage.beside

    def __init__(self, params: ExtractParams) -> None:
        self.params = params

    def upstream(self, item: Item) -> str:
        """Fingerprint of the tiles."""
        return tiles_fingerprint(item)

    def stream(self, items: Iterator[Item], track: Progress) -> Iterator[tuple[Item, Result | Exception]]:
        """Never runs."""
        raise NotImplementedError(f"{self.name} runs on workers")


def _nowhere(*_: Any) -> Any:
    raise NotImplementedError("workers do it")
