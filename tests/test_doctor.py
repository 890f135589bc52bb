import errno
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from wsi_mil import executors, memory, screen, workflow
from wsi_mil.cli import app
from wsi_mil.doctor import FAIL, OK, WARN, Check, Finding, check, examine, hub, machine, packages, reading
from wsi_mil.doctor.examining import everything
from wsi_mil.doctor.round_trip import round_trip
from wsi_mil.encoders import _timm
from wsi_mil.errors import SlideUnreadable
from wsi_mil.progress import console, silent
from wsi_mil.slides import probing

STAGES = ["paint", "tile", "extract", "distances", "train", "predict", "explain"]
GIB = 1 << 30
Usage = namedtuple("Usage", "total used free")


def of(name: str) -> Finding:
    """What the doctor finds of one thing."""
    return check(next(one for one in everything() if one.name == name))


def test_a_check_that_dies_of_anything_is_told_and_the_others_go_on() -> None:
    def dies() -> Finding:
        raise ZeroDivisionError("two\nlines")

    checks = [Check("a", "bad", dies, "mend it"), Check("a", "good", lambda: Finding(OK, "fine"))]
    bad, good = examine(checks)
    assert (bad.status, bad.name, bad.told, bad.remedy) == (FAIL, "bad", "ZeroDivisionError: two lines", "mend it")
    assert (good.status, good.group, good.name, good.told) == (OK, "a", "good", "fine")
    assert good.seconds >= 0


def test_everything_is_looked_at_once_and_says_what_to_do_where_it_fails() -> None:
    names = [(one.group, one.name) for one in everything()]
    assert len(set(names)) == len(names)
    assert {group for group, _ in names} == {"versions", "devices", "readers", "codecs", "places", "hub", "extras"}
    assert all(one.remedy for one in everything())


@pytest.mark.parametrize("name", ["python", "wsi_mil", "torch", "timm", "openslide-python", "imagecodecs", "h5py"])
def test_versions_that_fit_are_ok(name: str) -> None:
    found = of(name)
    assert (found.status, found.remedy) == (OK, "")
    assert found.told[0].isdigit()


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_PYTHON", (99, 0))
    assert of("python").status == FAIL


def test_a_package_that_is_old_missing_or_broken_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_wanted", lambda: {"h5py": ">=99"})
    found = of("h5py")
    assert (found.status, found.remedy) == (FAIL, "pip install 'h5py>=99'")

    def broken(name: str) -> object:
        raise OSError("libhdf5.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    found = of("h5py")
    assert found.status == FAIL
    assert "libhdf5.so" in found.told
    assert "pip install" in found.remedy


def test_versions_are_compared_with_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["h5py>=3.12", "numba>=0.61 ; extra == 'fast'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    assert packages._wanted() == {"h5py": ">=3.12"}
    assert [packages._fits(version, ">=3.12") for version in ("3.11", "3.12", "4.0rc1")] == [False, True, True]

    def none(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", none)
    assert packages._wanted() == {}


def test_a_torchvision_of_another_torch_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def trap(name: str, package: str | None = None) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", trap)
    found = of("torchvision")
    assert found.status == WARN
    assert "operator torchvision::nms does not exist" in found.told
    assert "were not built for each other" in found.told
    assert "from one index" in found.remedy

    def uncured() -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(_timm, "import_timm", uncured)  # where wsimil cannot go around it, it does not work
    assert of("timm").status == FAIL
    assert "torchvision::nms" in of("timm").told
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(RuntimeError("other")))
    assert of("torchvision").status == FAIL


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(executors, "available_cores", lambda: 3)
    assert (of("CPU").status, of("CPU").told.split(",")[0]) == (OK, "3 of 64 cores")
    monkeypatch.setattr(executors, "available_cores", lambda: 1)
    assert of("CPU").status == WARN


def test_little_memory_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 9 * GIB)
    assert (of("memory").status, of("memory").told[:7]) == (OK, "9.0 GiB")
    monkeypatch.setattr(memory, "available_memory", lambda: 1 * GIB)
    assert of("memory").status == WARN
    monkeypatch.setattr(memory, "PROC", Path("/nowhere"))
    monkeypatch.undo()
    monkeypatch.setattr(memory, "PROC", Path("/nowhere"))
    assert (of("memory").status, "Linux" in of("memory").remedy) == (FAIL, True)


def test_gpus_are_named_and_one_that_torch_does_not_see_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "none")
    assert (of("CUDA").status, of("CUDA").told[:4]) == (OK, "none")
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path)
    assert of("CUDA").status == WARN
    assert "sees no GPU" in of("CUDA").told
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="Some GPU", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert of("CUDA").told.startswith("Some GPU, 80 GiB")
    for there, told in ((True, "not used"), (False, "none")):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        assert (of("MPS").status, told in of("MPS").told) == (OK, True)


@pytest.mark.parametrize("name", ["OpenSlide", "direct", "image"])
def test_readers_read_a_slide_or_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(name).status == OK

    def unreadable(*args: object) -> object:
        raise SlideUnreadable("no library reads it")

    monkeypatch.setattr("wsi_mil.slides.open_slide", unreadable)
    assert (of(name).status, of(name).told) == (FAIL, "no library reads it")


def test_a_reader_that_reads_wrong_pixels_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from wsi_mil.slides.base import Slide

    monkeypatch.setattr(Slide, "read", lambda *args: np.zeros((512, 512, 3), np.uint8))
    assert (of("image").status, "wrong" in of("image").told) == (FAIL, True)


@pytest.mark.parametrize("name", reading.CODECS)
def test_codecs_decode_a_tile_or_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(name).status == OK
    good = probing._codecs()[name]

    def broken(data: bytes) -> np.ndarray:
        raise RuntimeError("not available")

    monkeypatch.setattr(probing, "_codecs", lambda: {name: (good[0], broken)})
    assert (of(name).status, "not available" in of(name).told) == (FAIL, True)
    monkeypatch.setattr(probing, "_codecs", lambda: {name: (good[0], lambda data: bytes(32 * 32 * 3))})
    assert (of(name).status, "wrong" in of(name).told) == (FAIL, True)


def test_the_cache_folder_is_told_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("WSIMIL_HOME", str(home))
    assert (of("cache folder").status, "will be made" in of("cache folder").told) == (OK, True)
    home.mkdir()
    (home / "weights").write_bytes(bytes(11_000_000))
    assert of("cache folder").told.endswith("1 files, 0.01 GiB")

    def denied(dir: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    for name, option in (("cache folder", "WSIMIL_HOME"), ("working folder", "--out"), ("temporary folder", "TMPDIR")):
        assert (of(name).status, option in of(name).remedy) == (WARN, True)
    home.joinpath("weights").unlink()
    home.rmdir()
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert (of("cache folder").status, "cannot be made" in of("cache folder").told) == (WARN, True)


@pytest.mark.parametrize(("free", "status"), [(100 * GIB, OK), (5 * GIB, WARN), (1 << 20, FAIL)])
@pytest.mark.parametrize("name", ["disk of the cache", "disk of the working folder", "disk of the temporary folder"])
def test_free_disk_is_told(name: str, free: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    assert of(name).status == status
    assert ("make room" in of(name).remedy) == (status != OK)


def test_a_token_is_noticed_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    assert (of("token").status, of("token").told) == (OK, "there")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert (of("token").status, "hf auth login" in of("token").remedy) == (OK, True)


def test_no_network_is_told_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (of("network").status, "offline" in of("network").told) == (OK, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_ask", lambda seconds: None)
    assert (of("network").status, "answers" in of("network").told) == (OK, True)
    monkeypatch.setattr(hub, "_ask", lambda seconds: OSError("Name or service not known"))
    assert (of("network").status, "Name or service" in of("network").told) == (WARN, True)
    assert "wsimil weights add" in of("network").remedy
    monkeypatch.setattr(hub, "_ask", lambda seconds: time.sleep(5))
    start = time.monotonic()
    found = hub._network(0.05)
    assert (found.status, "does not answer" in found.told) == (WARN, True)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("extra", packages.EXTRAS, ids=lambda extra: extra.module)
def test_extras_tell_what_they_bring(extra: packages.Extra, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = of(extra.module)
    assert (found.status, found.remedy) == (OK, extra.install)
    assert f"would bring {extra.brings}" in found.told
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2")
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {extra.module: ["called-otherwise"]})
    assert of(extra.module).told == f"1.2: {extra.brings}"
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    assert of(extra.module).told == f"installed: {extra.brings}"

    def broken(name: str) -> object:
        raise ImportError("LLVM is another")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert (of(extra.module).status, "LLVM is another" in of(extra.module).told) == (WARN, True)


def test_tiny_slides_go_through_every_stage_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = list(round_trip())
    assert [(one.name, one.status) for one in found] == [(name, OK) for name in STAGES], found
    assert all(" s" in one.told for one in found)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_after_a_stage_that_fails_the_others_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_mil.synthetic.make_cohort", lambda *args: None)
    report = SimpleNamespace(failed={"slide-000": SlideUnreadable("the disk is gone")})
    monkeypatch.setattr(workflow, "tile", lambda *args: report)
    found = list(round_trip())
    assert [one.status for one in found] == [OK, FAIL, *[WARN] * 5]
    assert "slide-000: the disk is gone" in found[1].told
    assert found[2].told == "not tried, since tile failed"


def test_silence_ends() -> None:
    with silent():
        assert console.quiet
        assert not logging.getLogger("wsi_mil").isEnabledFor(logging.ERROR)
    with pytest.raises(OSError, match="gone"):
        _silently(OSError("gone"))
    assert not console.quiet
    assert logging.getLogger("wsi_mil").isEnabledFor(logging.ERROR)


def _silently(error: Exception) -> None:
    with silent():
        raise error


FOUND = [
    Finding(OK, "1.0", "", "versions", "a", 0.1),
    Finding(WARN, "[odd]", "mend it", "hub", "b", 0.2),
    Finding(FAIL, "gone", "find it", "hub", "c", 0.3),
]


@pytest.mark.parametrize(("found", "code"), [(FOUND, 1), (FOUND[:2], 0)])
def test_only_a_failure_leaves_with_1_and_json_is_valid(
    found: list[Finding], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_mil.doctor.examine", lambda: iter(found))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"]) == (code, not code)
    assert [one["name"] for one in told["findings"]] == [one.name for one in found]
    assert told["findings"][1] == {
        "status": "warn", "told": "[odd]", "remedy": "mend it", "group": "hub", "name": "b", "seconds": 0.2,
    }  # fmt: skip
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == code
    assert "warn  hub: b: [odd] -> mend it" in done.stdout
    assert done.stdout.splitlines()[-1] == f"1 ok, 1 warn, {code} FAIL"


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    screen.show_findings(FOUND[:2], as_json=False)
    printed = capsys.readouterr().out
    assert "┏" in printed
    assert "[odd]" in printed
    assert "mend it" in printed


def test_the_doctor_comes_where_libraries_do_not_load() -> None:
    code = (
        "import builtins, sys\n"
        "real = builtins.__import__\n"
        "def broken(name, *args, **kwargs):\n"
        "    if name.partition('.')[0] in ('torch', 'h5py', 'openslide', 'numpy'):\n"
        "        raise OSError(f'{name}: a library of it is gone')\n"
        "    return real(name, *args, **kwargs)\n"
        "builtins.__import__ = broken\n"
        "from wsi_mil.doctor import check\n"
        "from wsi_mil.doctor.examining import everything\n"
        "for asked in everything():\n"
        "    if asked.group != 'hub':\n"
        "        found = check(asked)\n"
        "        print(found.status, found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = set(done.stdout.splitlines())
    assert {"ok python", "ok CPU", "FAIL OpenSlide", "FAIL CUDA", "ok working folder"} <= lines, done.stdout


def test_a_full_disk_is_noticed_though_an_empty_file_can_be_made_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of("working folder").status == OK

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    found = of("working folder")
    assert (found.status, "No space left" in found.told, "--out" in found.remedy) == (WARN, True, True)


def test_without_a_temporary_folder_all_else_is_looked_at_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    for name in ("temporary folder", "disk of the temporary folder"):
        assert (of(name).status, "TMPDIR" in of(name).remedy) == (FAIL, True)
    (found,) = round_trip()
    assert (found.status, found.group, "TMPDIR" in found.remedy) == (FAIL, "round trip", True)
    assert "No usable temporary directory" in found.told


@pytest.mark.parametrize("error", [ValueError("Unknown scheme for proxy URL"), OSError("gone"), KeyError("x")])
def test_whatever_the_network_ends_in_is_told_and_not_waited_for(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ends)
    found = of("network")
    assert (found.status, str(error) in found.told) == (WARN, True)
    assert found.seconds < 4
