"""A training that is interrupted, at whatever step, ends in the same bytes as one that is not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from planted import plant, plant_cohort

from wsi_mil import checkpoint, publishing, train, workflow
from wsi_mil.errors import ArtifactCorrupt, ArtifactStale, StorageError
from wsi_mil.learning import RESUME, LearnParams, RunParams, loop
from wsi_mil.train import CHECKPOINT
from wsi_mil.train_params import TrainParams
from wsi_mil.weights import load_tensors
from wsi_mil.workflow import Folders, LabelTable

LEARN = LearnParams(epochs=4, patience=4, lr=3e-3, bags_per_step=3, max_tiles=20)
STEPS = 3  # of an epoch of 8 slides to learn from
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
EVERY_STEP = RunParams(save_every_minutes=0.0)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    plant_cohort(tmp_path, slides=10)
    return tmp_path


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Ctrl-C before so many more steps are done; -1 = never."""
    left, step = {"steps": -1}, loop._Training._step

    def until(self: loop._Training) -> None:
        if left["steps"] == 0:
            raise KeyboardInterrupt
        left["steps"] -= 1
        step(self)

    monkeypatch.setattr(loop._Training, "_step", until)
    return left


def bytes_of(root: Path, out: str, run: RunParams = EVERY_STEP, aggregator: str = "das-mil", **learn: object) -> bytes:
    """Train into a folder, as `wsimil train` does, and read the checkpoint."""
    folders, params = Folders.under(root), TrainParams(aggregator, learn=replace(LEARN, **learn))
    cohort = workflow.labelled(LabelTable(root / "labels.csv"), folders)
    run = replace(run, folder=root / out)
    trained = train.fit(cohort, folders.feats, params, folders.distances, torch.device("cpu"), run)
    return train.publish(trained, root / out, {}).read_bytes()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("run", [EVERY_STEP, RunParams()], ids=["every step", "every epoch"])
def test_interrupted_at_random_steps_it_ends_in_the_same_bytes(
    cohort: Path, interrupt: dict[str, int], seed: int, run: RunParams
) -> None:
    whole = bytes_of(cohort, "whole", run)
    assert not (cohort / "whole" / RESUME).exists()
    chance, interrupted = random.Random(seed), 0
    while True:
        # Without saves within an epoch one has to be over, or nothing is ever gained.
        interrupt["steps"] = chance.randrange(STEPS + 1, 2 * STEPS)
        try:
            again = bytes_of(cohort, "again", run)
            break
        except KeyboardInterrupt:
            interrupted += 1
            assert not (cohort / "again" / CHECKPOINT).exists()
            assert (cohort / "again" / RESUME).exists()
    assert interrupted >= 2
    assert again == whole
    tables = [(cohort / name / "history.csv").read_bytes() for name in ("whole", "again")]
    assert tables[0] == tables[1]
    assert not (cohort / "again" / RESUME).exists()


def test_two_trainings_give_the_same_bytes_and_another_seed_others(cohort: Path) -> None:
    made = [bytes_of(cohort, name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert made[0] == made[1] != made[2]


def test_it_goes_on_and_does_not_start_anew(cohort: Path, interrupt: dict[str, int]) -> None:
    interrupt["steps"] = STEPS + 1
    with pytest.raises(KeyboardInterrupt):
        bytes_of(cohort, "out")
    facts = json.loads(load_tensors(cohort / "out" / RESUME)[1]["wsi_mil_resume"])["facts"]
    assert (facts["epoch"], facts["step"], len(facts["history"])) == (1, 1, 1)
    interrupt["steps"] = 3 * STEPS - 1  # as many as are left
    bytes_of(cohort, "out")
    assert interrupt["steps"] == 0


def test_early_stopping_holds_after_an_interruption_at_the_very_end(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, object] = {"epochs": 30, "patience": 2, "lr": 0.1}
    whole = bytes_of(cohort, "whole", **settings)
    monkeypatch.setattr(train, "infer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bytes_of(cohort, "again", **settings)
    monkeypatch.undo()
    assert bytes_of(cohort, "again", **settings) == whole


def test_a_crash_while_it_is_written_down_leaves_what_was_there(
    cohort: Path, interrupt: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, opened, calls = bytes_of(cohort, "whole"), Path.open, []

    def half(self: Path, *how: Any, **more: Any) -> IO[Any]:
        if RESUME in self.name and how == ("wb",):
            calls.append(self)
            if len(calls) == 5:
                self.write_bytes(b"half")
                raise OSError(28, "No space left on device")
        return opened(self, *how, **more)

    monkeypatch.setattr(Path, "open", half)
    with pytest.raises(StorageError, match="No space"):
        bytes_of(cohort, "again")
    assert [path.name for path in (cohort / "again").iterdir()] == [RESUME]
    assert bytes_of(cohort, "again") == whole


def test_another_training_is_not_gone_on_with(cohort: Path, interrupt: dict[str, int]) -> None:
    whole = bytes_of(cohort, "whole", lr=1e-3)
    interrupt["steps"] = 2
    with pytest.raises(KeyboardInterrupt):
        bytes_of(cohort, "out")
    before = (cohort / "out" / RESUME).read_bytes()
    with pytest.raises(
        ArtifactStale, match=r"resume\.safetensors is of another training.*: lr was 0\.003, now 0\.001\. .*--overwrite"
    ) as told:
        bytes_of(cohort, "out", lr=1e-3)
    assert "\n" not in str(told.value)
    plant(cohort / "feats", "s03", positive=True, seed=99)
    with pytest.raises(ArtifactStale, match=r"interrupted: the labels, the features or the version"):
        bytes_of(cohort, "out")
    assert (cohort / "out" / RESUME).read_bytes() == before
    plant(cohort / "feats", "s03", positive=True, seed=3)
    interrupt["steps"] = -1
    assert bytes_of(cohort, "out", replace(EVERY_STEP, overwrite=True), lr=1e-3) == whole


def test_overwriting_goes_on_with_the_same_training(cohort: Path, interrupt: dict[str, int]) -> None:
    whole = bytes_of(cohort, "whole")
    interrupt["steps"] = 2 * STEPS
    with pytest.raises(KeyboardInterrupt):
        bytes_of(cohort, "out")
    interrupt["steps"] = 2 * STEPS
    assert bytes_of(cohort, "out", replace(EVERY_STEP, overwrite=True)) == whole


def test_what_is_damaged_is_refused_by_name(cohort: Path, interrupt: dict[str, int]) -> None:
    interrupt["steps"] = 2
    with pytest.raises(KeyboardInterrupt):
        bytes_of(cohort, "out")
    path = cohort / "out" / RESUME
    data = path.read_bytes()
    publishing.write_bytes(path, data[: len(data) // 2])
    with pytest.raises(ArtifactCorrupt, match=r"resume\.safetensors is damaged .*add --overwrite"):
        bytes_of(cohort, "out")


def test_a_finished_training_forgets_where_it_stood(cohort: Path, interrupt: dict[str, int]) -> None:
    folders, params = Folders.under(cohort), TrainParams("abmil", learn=LEARN)
    interrupt["steps"] = 2
    with pytest.raises(KeyboardInterrupt):
        workflow.train_model(LabelTable(cohort / "labels.csv"), folders, params, "cpu", run=EVERY_STEP)
    left = (folders.model / RESUME).read_bytes()
    interrupt["steps"] = -1
    assert workflow.train_model(LabelTable(cohort / "labels.csv"), folders, params, "cpu") is not None
    publishing.write_bytes(folders.model / RESUME, left)  # as if killed between the two
    assert workflow.train_model(LabelTable(cohort / "labels.csv"), folders, params, "cpu") is None
    assert not (folders.model / RESUME).exists()


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_bytes(cohort: Path) -> None:
    arguments = ["--bags", "feats", "--labels", "labels.csv", "--epochs", "12", "--save-every-minutes", "0"]
    command = [sys.executable, "-m", "wsi_mil", "train", *arguments, "--device", "cpu", "--out"]
    subprocess.run([*command, "whole"], cwd=cohort, env=ENVIRONMENT, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "again"], cwd=cohort, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while not (cohort / "again" / RESUME).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(0).uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cohort / "again" / CHECKPOINT).exists()
    subprocess.run([*command, "again"], cwd=cohort, env=ENVIRONMENT, check=True, capture_output=True)
    assert (cohort / "again" / CHECKPOINT).read_bytes() == (cohort / "whole" / CHECKPOINT).read_bytes()
    assert checkpoint.load(cohort / "again" / CHECKPOINT).classes == ("neg", "pos")


@pytest.mark.slow
def test_torchrun_trains_what_one_process_trains_and_one_of_them_writes(cohort: Path) -> None:
    arguments = ["--bags", "feats", "--labels", "labels.csv", "--epochs", "3", "--aggregator", "abmil"]
    arguments += ["--option", "dropout=0", "--device", "cpu", "--bags-per-step", "3", "--out"]
    alone = [sys.executable, "-m", "wsi_mil", "train", *arguments, "alone"]
    shared = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wsi_mil"]
    subprocess.run(alone, cwd=cohort, env=ENVIRONMENT, check=True, capture_output=True)
    done = subprocess.run(
        [*shared, "train", *arguments, "shared"], cwd=cohort, env=ENVIRONMENT, check=True, capture_output=True
    )
    states = [checkpoint.load(cohort / name / CHECKPOINT).state for name in ("alone", "shared")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert done.stdout.decode().count("checkpoint.safetensors") == 1


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wsi_mil"]
BY_DEVICES = [sys.executable, "-m", "wsi_mil"]


def workers_of(process: subprocess.Popen[str], mark: str) -> list[int]:
    """Processes that a process started and whose command line has a word, in the order of their start."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if mark in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize(
    ("start", "mark", "devices"),
    [(BY_DEVICES, "spawn_main", "2"), (TORCHRUN, "wsi_mil", "1")],
    ids=["devices", "torchrun"],
)
def test_a_rank_that_is_killed_ends_all_with_one_message_and_the_rerun_goes_on(
    cohort: Path, start: list[str], mark: str, devices: str, killed: int
) -> None:
    command = [*start, "train", "--epochs", "20", "--patience", "20", "--bags-per-step", "3", "--max-tiles", "20"]
    command += ["--save-every-minutes", "0", "--device", "cpu", "--devices", devices, "--out"]
    subprocess.run([*command, "whole"], cwd=cohort, env=ENVIRONMENT, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "again"], cwd=cohort, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not (cohort / "again" / RESUME).exists():
        assert process.poll() is None
        time.sleep(0.01)
    ranks = workers_of(process, mark)
    assert len(ranks) == 2
    os.kill(ranks[killed], signal.SIGKILL)
    began = time.monotonic()
    printed, told = process.communicate(timeout=120)
    assert time.monotonic() - began < 90
    assert process.returncode == 1
    said = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "type the same command to go on" in said[0]
    if start is BY_DEVICES:
        assert f"process {killed + 1} of the 2 that shared the training ended by SIGKILL" in said[0]
        assert "Traceback" not in told
    else:
        assert told.count("Traceback") == 1  # torchrun's own
        assert "Signal 9 (SIGKILL) received by PID" in told
    assert "checkpoint" not in printed
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert {path.name for path in (cohort / "again").iterdir() if not path.name.startswith(".")} == {RESUME}
    subprocess.run([*command, "again"], cwd=cohort, env=ENVIRONMENT, check=True, capture_output=True)
    assert (cohort / "again" / CHECKPOINT).read_bytes() == (cohort / "whole" / CHECKPOINT).read_bytes()
