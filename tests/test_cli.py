import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_mil import (
    __version__,
    arguments_together,
    cli,
    cli_demo,
    cli_doctor,
    cli_interop,
    cli_models,
    cli_predict,
    cli_tile,
    cli_weights,
    cutting,
)
from wsi_mil.encoders import EncoderSpec, table
from wsi_mil.encoding import Encoding
from wsi_mil.errors import OptionError
from wsi_mil.evaluation import CrossvalParams
from wsi_mil.explain import LookOptions
from wsi_mil.learning import LearnParams, RunParams
from wsi_mil.metrics import Resampling
from wsi_mil.predict import PredictOptions
from wsi_mil.slides import resolution
from wsi_mil.stage import RunOptions
from wsi_mil.tiling import TileParams

COMMANDS = ["tile", "extract", "distances", "run", "encoders"]
OF_ANSWERS = ["predict", "explain"]
OF_MODELS = ["train", "crossval", "evaluate", "compare"]
OF_INTEROP = ["import", "export", "inspect"]
OF_DEMO = ["demo", "synthetic"]
OF_DOCTOR = ["doctor"]
OF_WEIGHTS = ["add", "list", "path", "convert"]


def call(*arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.mark.parametrize(("command", "option"), [("train", "--aggregator"), ("explain", "--occlusions")])
def test_help_loads_nothing_heavy(command: str, option: str) -> None:
    heavy = "torch", "numpy", "h5py", "openslide", "timm", "pandas", "skimage", "scipy", "sklearn", "tifffile"
    code = (
        "import sys; from wsi_mil.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        f"sys.exit(','.join(name for name in {heavy!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert option in done.stdout


@pytest.mark.parametrize("command", [*COMMANDS, *OF_ANSWERS, *OF_MODELS, *OF_INTEROP, *OF_DEMO, *OF_DOCTOR])
def test_every_command_has_help_with_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    printed = capsys.readouterr().out
    assert "--help" in printed
    defaults = {"tile": "224", "extract": "tiles", "distances": "8", "train": "das-mil", "predict": "predictions"}
    defaults |= {"explain": "16"}
    defaults |= {"crossval": "crossval", "evaluate": "evaluation", "compare": "comparison"}
    assert command not in defaults or f"[default: {defaults[command]}]" in printed


@pytest.mark.parametrize("command", OF_WEIGHTS)
def test_commands_of_a_group_have_help_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("weights", command, "--help") == 0
    assert f"weights {command}" in capsys.readouterr().out


def test_no_command_is_forgotten() -> None:
    groups = (
        (cli_interop.app, OF_INTEROP),
        (cli_demo.app, OF_DEMO),
        (cli_doctor.app, OF_DOCTOR),
        (cli_weights.app, OF_WEIGHTS),
        (cli_models.app, OF_MODELS),
        (cli_predict.app, OF_ANSWERS),
    )
    for app, commands in ((cli.app, COMMANDS), *groups):
        assert {info.name or getattr(info.callback, "__name__", "") for info in app.registered_commands} == set(
            commands
        )


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def _default(command: object, name: str) -> object:
    return inspect.signature(command).parameters[name].default


def test_defaults_are_those_of_the_parameters() -> None:
    """The command line repeats defaults, because taking them from the modules would load those for --help."""
    learn = {field.name: field.default for field in dataclasses.fields(LearnParams)}
    learn |= {name: getattr(RunParams(), name) for name in ("devices", "save_every_minutes", "overwrite")}
    for name in learn:
        assert _default(cli_models.train, name) == learn[name], name
    crossval = {field.name: field.default for field in dataclasses.fields(CrossvalParams)}
    crossval |= {name: value for name, value in learn.items() if name not in ("devices", "save_every_minutes")}
    crossval["resamples"] = Resampling(0).resamples
    for name in crossval.keys() - {"train", "aggregators"}:
        assert _default(cli_models.crossval, name) == crossval[name], name
    tile = {field.name: field.default for field in dataclasses.fields(TileParams)}
    tile |= {"overlap": tile.pop("overlap_px"), "holes": tile.pop("holes_mm2")}
    for name in tile.keys() - {"tile_px", "tile_um", "include", "exclude"}:
        assert _default(cli_tile.tile, name) == tile[name], name
    assert arguments_together.tile_params(None, None, None) == TileParams()
    assert arguments_together.tile_params(256, None, 0.5).tile_um == 128.0
    looks = {field.name: field.default for field in dataclasses.fields(LookOptions)}
    for name in looks:
        assert _default(cli_predict.explain, name) == looks[name], name
    encoding = {field.name: field.default for field in dataclasses.fields(Encoding)}
    for name in ("device", "batch", "precision", "allow_mpp_mismatch"):
        assert _default(cli.extract, name) == encoding[name], name


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_mil.encoders.list_encoders", interrupted)
    assert call("encoders") == 130  # typer turns Ctrl-C within a command into an exit of its own
    assert "type the same command to go on" in capsys.readouterr().err

    monkeypatch.setattr(cli, "app", lambda words: interrupted())
    assert call("train") == 130
    assert "type the same command to go on" in capsys.readouterr().err


def test_a_file_that_the_system_has_trouble_with_is_named_without_pythons_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wsi_mil.encoders.list_encoders", lambda: Path("/proc/none/m").mkdir())
    assert call("encoders") == 1
    assert "error: /proc/none/m: No such file or directory: name another" in capsys.readouterr().err


def test_tiles_for_an_encoder_are_those_of_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    giga = EncoderSpec("giga", 1, 224, 128.0, "", resize_px=256)
    monkeypatch.setitem(table.ENCODERS, "giga", giga)
    assert arguments_together.tile_params(None, None, None, "giga") == TileParams(256, 128.0, 0.5)
    assert arguments_together.tile_params(None, None, None, "uni", min_coverage=0.3) == TileParams(224, 128.0, 0.3)
    assert arguments_together.tile_params(None, None, None, "morphology") == TileParams()


@pytest.mark.parametrize(
    "command", ["tile", "run", "distances", "train", "crossval", "evaluate", "import", *OF_ANSWERS]
)
def test_what_is_recommended_for_slides_without_resolution_is_an_option_of_the_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recommended, _, of_tile = resolution._REMEDY.partition("(`wsimil tile` ")
    assert re.findall("--[a-z-]+", recommended) == ["--slide-mpp"]
    assert re.findall("--[a-z-]+", of_tile) == ["--slides-csv"]
    assert call(command, "--help") == 0
    told = capsys.readouterr().out
    assert "--slide-mpp" in told
    if command == "tile":
        assert "--slides-csv" in told


@pytest.mark.parametrize("command", OF_ANSWERS)
def test_a_table_of_resolutions_for_slides_is_refused_with_what_to_give(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(command, tmp_path / "a.tif", "--slides-csv", tmp_path / "slides.csv") in (1, 2)
    assert "um/px of slides go by --mpp" in " ".join(capsys.readouterr().err.split())


def test_previews_in_out_are_taken_for_no_slide(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    for name in ("a.tif", "out/deep/a.jpg", "out/deep/a.h5", "out/site/b.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    slides = ["a", "out/site/b"]  # a preview of a run that was killed, and a slide of the user's
    _, items = cutting.tile_plan(tmp_path, tmp_path / "out", TileParams(), RunOptions())
    assert [item.slide_id for item in items] == slides
    told = cli_predict._asked([tmp_path], *[None] * 6, PredictOptions(tmp_path / "out"))
    assert [slide.slide_id for slide in told.slides] == slides


def test_weights_go_to_the_encoder_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.pth").touch()
    weights = arguments_together.encoder_weights
    assert weights(["uni"], None) == {"uni": None}
    assert weights(["uni"], ["a=b.pth"]) == {"uni": "a=b.pth"}
    assert weights(["uni"], ["uni=b.pth"]) == {"uni": "b.pth"}
    assert weights(["uni", "timm:x.y"], ["timm:x.y=random:0"]) == {"uni": None, "timm:x.y": "random:0"}
    for models, words, message in (
        (["uni", "uni"], [], "name each encoder once"),
        (["uni", "b"], ["w.pth"], "--weights w.pth: give NAME=FILE, NAME being one of uni, b"),
        (["uni"], ["b=random:0"], "--weights b=random:0: no such file, nor is b the --model, which is uni"),
        (["uni", "b"], ["c=w.pth"], "--weights c=w.pth: give NAME=FILE"),
        (["uni", "b"], ["b=w.pth", "b=v.pth"], "--weights b=v.pth: give b one file"),
        (["uni", "b"], ["b="], "--weights b=: give b one file"),
        (["uni"], ["a", "b"], "--weights b: give uni one file"),
    ):
        with pytest.raises(OptionError, match=re.escape(message)):
            weights(models, words)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tile", "nowhere"], 1, "nowhere does not exist"),
        (["extract", "--model", "morphology"], 1, "tiles holds no artifacts: make them with `wsimil tile slides/`"),
        (["distances"], 1, "feats holds no artifacts: make them with `wsimil extract"),
        (["train"], 1, "feats holds no artifacts"),
        (["predict", "slide.tif"], 1, "train a model with `wsimil train`"),
        (["predict"], 2, "name slides, or features by --bags"),
        (["explain"], 1, "train a model with `wsimil train`"),
        (["explain", "a.tif", "--partners", "0"], 2, "--partners 0: give a whole number of at least 1"),
        (["explain", "a.tif", "--bags", "feats"], 2, "and not both"),
        (["predict", "a.tif", "--tiles", "tiles"], 2, "add --explain"),
        (["predict", "a.tif", "--encoder", "uni"], 2, "tell of other programs' --bags: leave them out"),
        (["import", "nowhere"], 1, "nowhere does not exist"),
        (["train", "--bags", "x", "--mpp", "0"], 2, "--mpp 0: give um per level-0 px"),
        (["export", "--format", "stamp"], 1, "feats holds no features"),
        (["inspect", "nowhere"], 1, "nowhere does not exist: name a file"),
        (["tile", ".", "--tile-um", "256", "--mpp", "0.5"], 2, "give one of them"),
        (["tile", ".", "--for", "uni", "--tile-px", "256"], 2, "--for uni --tile-px 256: give one or the other"),
        (["tile", ".", "--for", "uni", "--mpp", "0.5", "--tile-um", "9"], 2, "--for uni --tile-um 9 --mpp 0.5: give"),
        (["tile", ".", "--for", "resnet50"], 2, "its recipe has no resolution: give --tile-px 224 and --tile-um or"),
        (["tile", ".", "--for", "unni"], 1, "did you mean uni"),
        (["run", ".", "--model", "uni", "--model", "morphology"], 2, "run trains on the features of one encoder"),
        (["tile", ".", "--shard", "3/2"], 2, "--shard 3/2"),
        (["tile", ".", "--tile-um", "0"], 2, "--tile-um 0"),
        (["tile", ".", "--mpp", "0"], 2, "--mpp 0"),
        (["tile", ".", "--mpp", "-1"], 2, "--mpp -1"),
        (["weights", "add", "resnet50", "nowhere.pth"], 1, "nowhere.pth does not exist: name a weight file"),
        (["weights", "add", "morphology", "x.pth"], 2, "morphology is built in and takes no weights"),
        (["weights", "path", "resnet50"], 1, "`wsimil weights add resnet50 FILE`"),
        (["weights", "convert", "a.pth", "b.pth"], 2, "call it b.safetensors"),
        (["train", "--option", "heads"], 2, "--option heads: give KEY=VALUE"),
        (["train", "--option", "=8"], 2, "--option =8: give KEY=VALUE"),
        (["train", "--aggregator", "magic"], 2, "--aggregator magic"),
        (["predict", "a.tif", "--device", "tpu"], 2, "--device tpu"),
    ],
)
def test_wrong_input_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_wrong_usage_leaves_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("tile") == 2
    assert call("nonsense") == 2
    assert call("tile", "a", "--nonsense") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wsi_mil", "tile", "nowhere", "--debug"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_aggregator_options_are_read_as_values() -> None:
    words = ["heads=8", "dropout=0.1", "pooling=max", "self_bias=true", "length_scales_um=[1, 2.5]"]
    expected = {"heads": 8, "dropout": 0.1, "pooling": "max", "self_bias": True, "length_scales_um": [1, 2.5]}
    assert arguments_together.key_values(words) == expected
