"""The fault campaign: whatever happens to a command, what lies there is whole, and the next run ends as if nothing had.

Run it by ``pytest tests/faults -m slow -n 0``; a table of what was injected and survived stands at the end. Moments are
drawn from a seed, ``WSIMIL_FAULT_SEED``.
"""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
from children import Ended
from pipeline import PIPELINE, SLIDES, STEPS, Reference, Step, leftovers, made

pytestmark = pytest.mark.slow
KILLS = 13  # of each of eight commands
Record = Callable[[str, object], None]
each_step = pytest.mark.parametrize("step", PIPELINE, ids=lambda step: step.name)


@pytest.fixture
def record(record_property: Record) -> Callable[[str], None]:
    """Take note of a fault of some kind."""
    return lambda kind: record_property("fault", kind)


OF_A_RUN = ("index.html", "summary.json", "predictions.csv", "predictions.json", "report.html")


def require_whole(reference: Reference, step: Step, folder: Path, failures: bool = True) -> None:
    """Whatever can be seen is what an undisturbed run makes, or is about to be gone on with.

    Where slides have failed, what tells of the whole run tells of the failures, too.
    """
    told = ("resume.safetensors", "summary.csv", *(OF_A_RUN if failures else ()))  # of these each state is whole
    known = reference.known[step.name].files
    for name, data in made(folder, step).items():
        if not name.endswith(told):
            assert name in known, f"{name} is no file of an undisturbed run"
            assert data == known[name], f"{name} is not as in an undisturbed run"


def require_equal(reference: Reference, step: Step, folder: Path) -> None:
    """All is as in an undisturbed run, and nothing is left over."""
    found, known = made(folder, step), reference.known[step.name].files
    assert sorted(found) == sorted(known)
    assert [name for name in known if found[name] != known[name]] == []
    assert leftovers(folder) == []


def require_clear(ended: Ended, *words: str, codes: tuple[int, ...] = (1,)) -> None:
    """The command ended by itself, without a traceback, and what it says names these."""
    assert ended.code in codes, ended.err
    assert "Traceback" not in ended.err, ended.err
    told = [line for line in ended.err.splitlines() if line.startswith(("error:", "failed:"))]
    assert told, ended.err
    assert len([line for line in told if line.startswith("error:")]) <= 1
    for word in words:
        assert any(word in line for line in told), f"{word!r} is not in: {told}"


def require_recovery(reference: Reference, step: Step, folder: Path, *more: str) -> None:
    """The same command, now undisturbed, ends as if nothing had happened."""
    ended = reference.run(step, folder, *more)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    require_equal(reference, step, folder)


@each_step
def test_killed_at_random_moments(
    reference: Reference, step: Step, seed: int, tmp_path: Path, record: Callable[[str], None]
) -> None:
    """Several times in one folder, by the clock and at steps of publication in turn, until it is through."""
    draw, known = random.Random(f"{seed} {step.name}"), reference.known[step.name]
    killed, started = 0, 0
    folder = reference.working_copy(step, tmp_path / "0")
    while killed < KILLS and started < 4 * KILLS:
        started += 1
        if killed % 2:
            at, after = draw.randrange(known.steps), draw.random() < 0.5
            ended = reference.run(step, folder, die={"at": at, "after": after})
        else:
            ended = reference.run(step, folder, kill_after_s=draw.uniform(0, known.seconds))
        assert "Traceback" not in ended.err
        if ended.was_killed:
            record(f"SIGKILL, {'at a step of publication' if killed % 2 else 'at a moment'}")
            killed += 1
            require_whole(reference, step, folder, failures=False)
        else:
            assert ended.code == 0, ended.err
            require_equal(reference, step, folder)
            shutil.rmtree(folder)
            folder = reference.working_copy(step, tmp_path / str(started))
    assert killed == KILLS
    require_recovery(reference, step, folder)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of so many bytes at a place; yield what makes it large enough."""
    place.mkdir(parents=True, exist_ok=True)
    options = ["-o", f"size={size}"]
    if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", place], check=False, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here: the injected error stands for it")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", place], check=True) and None
    finally:
        subprocess.run(["umount", place], check=True)


@each_step
def test_the_disk_is_full(reference: Reference, step: Step, tmp_path: Path, record: Callable[[str], None]) -> None:
    folder = reference.working_copy(step, tmp_path / "there")
    (top,) = step.makes
    size = sum(path.stat().st_size for path in (reference.folder / top).rglob("*") if path.is_file())
    with small_disk(folder / top, max(4096, size // 2)) as enlarge:
        record("disk full (tmpfs)")
        require_clear(reference.run(step, folder), "No space left", "make room")
        require_whole(reference, step, folder)
        enlarge()
        require_recovery(reference, step, folder)


@each_step
def test_there_is_no_room_from_some_step_on(
    reference: Reference, step: Step, seed: int, tmp_path: Path, record: Callable[[str], None]
) -> None:
    folder = reference.working_copy(step, tmp_path / "there")
    at = random.Random(f"{seed} room {step.name}").randrange(reference.known[step.name].steps - 4)
    record("disk full (injected)")
    require_clear(reference.run(step, folder, fill_disk={"at": at}), "No space left", codes=(1, 2))
    require_whole(reference, step, folder)
    require_recovery(reference, step, folder)


@pytest.mark.parametrize("name", ["extract", "train"])
def test_no_file_may_be_longer(reference: Reference, name: str, tmp_path: Path, record: Callable[[str], None]) -> None:
    step = STEPS[name]
    folder = reference.working_copy(step, tmp_path / "there")
    record("quota (RLIMIT_FSIZE)")
    require_clear(reference.run(step, folder, limit_files={"most": 4096}), "File too large", "make room")
    require_whole(reference, step, folder)
    require_recovery(reference, step, folder)


@each_step
def test_the_output_is_read_only(
    reference: Reference, step: Step, tmp_path: Path, record: Callable[[str], None]
) -> None:
    folder = reference.working_copy(step, tmp_path / "there")
    (top,) = step.makes
    (folder / top).mkdir()
    (folder / top).chmod(0o555)
    record("read-only output")
    require_clear(reference.run(step, folder, obey_permissions={}), top, "ermission denied", codes=(1, 2))
    (folder / top).chmod(0o755)
    require_recovery(reference, step, folder)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("tile", "{cohort}/slides/s3.tif"),
        ("extract", "{cohort}/slides/s3.tif"),
        ("extract", "tiles/s3.h5"),
        ("distances", "feats/s3.h5"),
        ("train", "feats/s3.h5"),
        ("evaluate", "model/checkpoint.safetensors"),
        ("predict", "model/checkpoint.safetensors"),
    ],
)
def test_reading_is_not_allowed(
    reference: Reference, name: str, path: str, tmp_path: Path, record: Callable[[str], None]
) -> None:
    step = STEPS[name]
    folder = reference.working_copy(step, tmp_path / "there")
    place = folder / path.format(cohort=reference.folder)
    place.chmod(0)
    try:
        record("permission denied")
        require_clear(reference.run(step, folder, obey_permissions={}), place.name, "ermission denied")
        require_whole(reference, step, folder)
    finally:
        place.chmod(0o644)
    require_recovery(reference, step, folder)


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Put a file back as it was, whatever happens to it."""
    data = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["vanished before", "vanished while read", "truncated before", "truncated while read"])
@pytest.mark.parametrize("name", ["tile", "extract"])
def test_a_slide_is_lost(
    reference: Reference, name: str, how: str, tmp_path: Path, record: Callable[[str], None]
) -> None:
    step, slide = STEPS[name], reference.folder / "slides" / "s3.tif"
    folder = reference.working_copy(step, tmp_path / "there")
    keep = None if how.startswith("vanished") else slide.stat().st_size // 3
    with kept(slide):
        record(f"slide {how}")
        harm = {"path": str(slide), "after_reads": 1 if how.endswith("before") else 3, "keep": keep}
        if how.endswith("read"):
            ended = reference.run(step, folder, harm_while_read=harm)
        else:
            slide.unlink()
            if keep:
                shutil.copy(reference.folder / "slides" / "s2.tif", slide)
                with slide.open("r+b") as file:
                    file.truncate(keep)
            ended = reference.run(step, folder)
        if how != "vanished while read" and (name, how) != ("tile", "vanished before"):  # an open file stays whole
            require_clear(ended, "s3", codes=(1,))
        assert "Traceback" not in ended.err
        assert len(list((folder / step.makes[0]).glob("s*.h5"))) in {SLIDES - 1, SLIDES}
        require_whole(reference, step, folder)
    require_recovery(reference, step, folder)


def truncate(path: Path) -> None:
    """Lose the second half of a file."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip a bit of what the file is about: in the middle of its largest array, or nine tenths down."""
    data = bytearray(path.read_bytes())
    place = len(data) * 9 // 10
    if path.suffix == ".h5":
        with h5py.File(path, "r") as file:
            largest = max((file[name] for name in file), key=lambda one: one.nbytes)
            place = largest.id.get_offset() + largest.nbytes // 2
    data[place] ^= 0x10
    path.write_bytes(data)


harms = pytest.mark.parametrize("harm", [truncate, flip])


@harms
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("extract", "tiles/s2.h5"),
        ("distances", "feats/s2.h5"),
        ("train", "feats/s2.h5"),
        ("train", "distances/s2.h5"),
        ("crossval", "feats/s2.h5"),
        ("evaluate", "feats/s2.h5"),
        ("evaluate", "model/checkpoint.safetensors"),
        ("predict", "model/checkpoint.safetensors"),
        ("explain", "model/checkpoint.safetensors"),
    ],
)
def test_what_is_read_is_damaged(
    reference: Reference,
    name: str,
    file: str,
    harm: Callable[[Path], None],
    tmp_path: Path,
    record: Callable[[str], None],
) -> None:
    step = STEPS[name]
    folder = reference.working_copy(step, tmp_path / "there")
    harm(folder / file)
    record(f"artifact {'truncated' if harm is truncate else 'bit-flipped'}")
    ended = reference.run(step, folder)
    if (file, harm) != ("distances/s2.h5", truncate):  # train makes that one again without asking
        require_clear(ended, Path(file).name, "again")
        require_whole(reference, step, folder)
        shutil.copy(reference.folder / file, folder / file)
    require_recovery(reference, step, folder)


@harms
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tile", "tiles/s2.h5"),
        ("extract", "feats/s2.h5"),
        ("distances", "distances/s2.h5"),
        ("train", "model/checkpoint.safetensors"),
    ],
)
def test_what_is_damaged_is_made_again(
    reference: Reference,
    name: str,
    file: str,
    harm: Callable[[Path], None],
    tmp_path: Path,
    record: Callable[[str], None],
) -> None:
    step = STEPS[name]
    folder = reference.working_copy(step, tmp_path / "there")
    shutil.copytree(reference.folder / step.makes[0], folder / step.makes[0])
    harm(folder / file)
    record(f"artifact {'truncated' if harm is truncate else 'bit-flipped'}")
    require_recovery(reference, step, folder, "--overwrite")


@pytest.mark.parametrize("cache", ["tiles", "feats"])
def test_a_cache_is_damaged(reference: Reference, cache: str, tmp_path: Path, record: Callable[[str], None]) -> None:
    step = STEPS["predict"]
    folder = reference.working_copy(step, tmp_path / "there")
    shutil.copytree(reference.folder / "predictions", folder / "predictions")
    flip(folder / "predictions" / "cache" / cache / "n0.h5")
    record("cache bit-flipped")
    ended = reference.run(step, folder)
    if ended.code:
        require_clear(ended, "n0", "--overwrite")
    require_recovery(reference, step, folder, "--overwrite")


@pytest.mark.parametrize("cache", ["cache/tiles", "cache/feats"])
def test_a_cache_is_full(reference: Reference, cache: str, tmp_path: Path, record: Callable[[str], None]) -> None:
    step = STEPS["predict"]
    folder = reference.working_copy(step, tmp_path / "there")
    with small_disk(folder / "predictions" / cache, 8192) as enlarge:
        record("cache full (tmpfs)")
        require_clear(reference.run(step, folder), "No space left", "make room")
        enlarge()
        require_recovery(reference, step, folder)


def test_the_cache_of_weights_is_full(reference: Reference, tmp_path: Path, record: Callable[[str], None]) -> None:
    target = tmp_path / "weights" / "copy.safetensors"
    words = ("weights", "convert", str(reference.folder / "model" / "checkpoint.safetensors"), str(target))
    with small_disk(target.parent, 4096) as enlarge:
        record("cache full (tmpfs)")
        require_clear(reference.parent.run(words, tmp_path), target.name, "No space left", "make room")
        assert not target.exists()
        enlarge()
        assert reference.parent.run(words, tmp_path).code == 0
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "clock", [{"shift_clock": {"days": -9000}}, {"shift_clock": {"days": 9000}}, {"swing_clock": {"seconds": 5e6}}]
)
@pytest.mark.parametrize("name", ["extract", "train", "predict"])
def test_the_clock_is_wrong(
    reference: Reference, name: str, clock: dict[str, dict], tmp_path: Path, record: Callable[[str], None]
) -> None:
    step = STEPS[name]
    folder = reference.working_copy(step, tmp_path / "there")
    record("clock jumps")
    ended = reference.run(step, folder, **clock)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    require_equal(reference, step, folder)
    require_recovery(reference, step, folder)


def test_the_latest_failure_is_told_though_the_clock_went_back(
    reference: Reference, tmp_path: Path, record: Callable[[str], None]
) -> None:
    step, slide = STEPS["extract"], reference.folder / "slides" / "s3.tif"
    folder = reference.working_copy(step, tmp_path / "there")
    with kept(slide):
        record("clock jumps")
        slide.unlink()
        reference.run(step, folder, shift_clock={"days": 30})
        first = (folder / "feats" / "summary.csv").read_text()
        slide.write_bytes(b"no slide")
        reference.run(step, folder)
        second = (folder / "feats" / "summary.csv").read_text()
    told = [[line for line in text.splitlines() if line.startswith("s3,")] for text in (first, second)]
    assert told[0] != told[1]
    require_recovery(reference, step, folder)


@each_step
def test_two_runs_at_once(reference: Reference, step: Step, tmp_path: Path, record: Callable[[str], None]) -> None:
    folder = reference.working_copy(step, tmp_path / "there")
    record("two runs at once")
    children = [reference.parent.start(step.typed(reference.folder), folder) for _ in range(2)]
    for ended in [reference.parent.wait(child) for child in children]:
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err
    require_equal(reference, step, folder)
    require_recovery(reference, step, folder)


@pytest.mark.parametrize(
    ("maker", "more", "reader"),
    [
        ("tile", ("--tile-um", "200", "--overwrite"), "extract"),
        ("train", ("--seed", "1", "--overwrite"), "evaluate"),
        ("train", ("--seed", "1", "--overwrite"), "predict"),
        ("extract", ("--reader", "openslide", "--overwrite"), "train"),
        ("extract", ("--reader", "openslide", "--overwrite"), "crossval"),
    ],
)
def test_what_it_was_made_from_has_changed(
    reference: Reference, maker: str, more: tuple[str, ...], reader: str, tmp_path: Path, record: Callable[[str], None]
) -> None:
    """Refused with the choice; with ``--overwrite``, and from the old input once more, as it was."""
    step, before = STEPS[reader], STEPS[maker]
    folder = reference.working_copy(step, tmp_path / "there")
    for name in step.makes:
        shutil.copytree(reference.folder / name, folder / name)
    changed = reference.working_copy(before, tmp_path / "changed")
    assert reference.run(before, changed, *more).code == 0
    for name in before.makes:
        shutil.rmtree(folder / name)
        shutil.copytree(changed / name, folder / name)
    record("stale fingerprint")
    require_clear(reference.run(step, folder), "--overwrite")
    assert made(folder, step) == reference.known[step.name].files
    assert reference.run(step, folder, "--overwrite").code == 0
    assert made(folder, step) != reference.known[step.name].files
    for name in before.makes:
        shutil.rmtree(folder / name)
        shutil.copytree(reference.folder / name, folder / name)
    require_recovery(reference, step, folder, "--overwrite")
