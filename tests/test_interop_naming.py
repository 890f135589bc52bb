"""What the encoder of other programs' bags is called: by whom, and whether that can be right."""

from collections.abc import Callable
from pathlib import Path

import peers
import pytest
from test_cli import call
from test_interop import convert, reason, warnings  # noqa: F401 (a fixture)

from wsi_mil.interop.detection import content_of
from wsi_mil.interop.naming import is_known, same_encoder


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("uni", ("uni_v1", "UNI", "mahmood-uni", "hf-hub:MahmoodLab/UNI")),
        ("uni2-h", ("uni_v2", "uni2", "UNI2-h", "hf-hub:MahmoodLab/UNI2-h")),
        ("conch-v1.5", ("conch_v15", "conch1_5", "conchv1_5")),
        ("h-optimus-0", ("hoptimus0", "h_optimus_0", "hf-hub:bioptimus/H-optimus-0")),
        ("virchow2", ("virchow_v2", "Virchow2", "virchow2-cls")),
        ("gigapath", ("prov-gigapath", "hf-hub:prov-gigapath/prov-gigapath")),
        ("resnet50-layer3", ("resnet50_trunc",)),
        ("midnight-12k", ("midnight12k", "midnight")),
    ],
)
def test_one_encoder_goes_by_several_names(ours: str, theirs: tuple[str, ...]) -> None:
    for name in (ours, *theirs):
        assert is_known(name)
        assert same_encoder(name, ours)


@pytest.mark.parametrize(
    ("one", "other"), [("uni_v1", "uni_v2"), ("conch", "conch_v15"), ("phikon", "phikon-v2"), ("virchow", "virchow2")]
)
def test_versions_are_encoders_of_their_own(one: str, other: str) -> None:
    assert is_known(one)
    assert not same_encoder(one, other)


@pytest.mark.parametrize("folder", ["t", "features_uni_v2"])
def test_features_are_not_called_by_the_name_of_another_encoder(folder: str, tmp_path: Path) -> None:
    path = peers.trident(tmp_path / folder / "a.h5", *peers.bag(), encoder="uni_v2" if folder == "t" else None)
    assert reason(path, encoder="virchow2").endswith(
        "a.h5 says that its features are of uni_v2, not of virchow2: leave --encoder out, or correct the file if it is"
        " wrong"
    )
    assert "of uni_v2, not of uni_v3 (did you mean uni or uni2-h?): leave" in reason(path, encoder="uni_v3")
    assert convert(path, encoder="UNI2-H").attrs["encoder"] == "UNI2-H"
    path = peers.stamp(tmp_path / "s" / "a.h5", *peers.bag(step=256.0))
    assert "of uni2, not of uni: leave" in reason(path, encoder="uni")
    assert convert(path, encoder="uni_v2").attrs["encoder"] == "uni_v2"


def test_an_import_by_the_wrong_name_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        peers.trident(tmp_path / "t" / f"{name}.h5", *peers.bag())
    assert call("import", tmp_path / "t", "--out", tmp_path / "feats", "--encoder", "uni", "--mpp", 0.25) == 1
    said = " ".join(capsys.readouterr().err.split())
    for name in ("a", "b"):
        assert f"{name}.h5 says that its features are of uni_v2, not of uni: leave" in said
    assert not list((tmp_path / "feats").glob("*.h5"))


def test_a_name_that_nobody_knows_is_told_once(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:  # noqa: F811
    for name in ("a", "b"):
        peers.clam(tmp_path / "h5_files" / f"{name}.h5", *peers.bag(step=256))
        peers.clam_patches(tmp_path / "patches" / f"{name}.h5", peers.bag(step=256)[1])
    assert convert(tmp_path, mpp=0.5, encoder="ctranspth").attrs["encoder"] == "ctranspth"
    told = (
        "--encoder ctranspth: no encoder that is known here is called so (did you mean ctranspath or"
        " chief-ctranspath?); leave it if another program calls its encoder so"
    )
    assert warnings() == [told]
    convert(tmp_path, mpp=0.5, encoder="ctranspth")  # nothing is converted again
    assert warnings() == [told]
    convert(tmp_path, mpp=0.5, encoder="resnet50_trunc")
    assert not warnings()


def test_a_name_that_the_files_confirm_is_right(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:  # noqa: F811
    peers.atlaspatch(tmp_path / "a.h5", {"ours": peers.bag()[0]}, peers.bag()[1], mpp=0.25)
    convert(tmp_path, encoder="ours")
    assert not warnings()


def test_what_files_call_an_encoder_that_nobody_knows_may_be_put_in_other_words(
    tmp_path: Path,
    warnings: Callable[[], list[str]],  # noqa: F811
) -> None:
    peers.trident(tmp_path / "features_run7" / "a.h5", *peers.bag(), encoder=None)
    assert convert(tmp_path, mpp=0.25, encoder="uni").attrs["encoder"] == "uni"
    assert warnings() == [
        "1 slides, such as a, call their encoder run7, which is not known here, and are taken for uni as told by"
        " --encoder"
    ]
    convert(tmp_path, mpp=0.25, encoder="mine")
    assert [line.partition(":")[0] for line in warnings()] == [
        "1 slides, such as a, call their encoder run7, which is not known here, and are taken for mine as told by"
        " --encoder",
        "--encoder mine",
    ]


def test_what_trident_alone_calls_so_goes_by_the_name_that_all_know(tmp_path: Path) -> None:
    for theirs, ours in (("ctranspath", "chief-ctranspath"), ("resnet50", "resnet50-layer3")):
        path = peers.trident(tmp_path / theirs / "a.h5", *peers.bag(), encoder=theirs)
        assert convert(path, mpp=0.25).attrs["encoder"] == ours
        assert convert(path, mpp=0.25, encoder=ours).attrs["encoder"] == ours
        assert f"of {ours}, not of {theirs}: leave --encoder out" in reason(path, encoder=theirs)


def test_features_whose_folder_is_called_otherwise_are_other_features(tmp_path: Path) -> None:
    for name in ("features_uni", "features_uni2"):
        path = peers.trident(tmp_path / name / "a.h5", *peers.bag(), encoder=None)
        assert content_of(path).endswith(f" encoder={name.removeprefix('features_')}")
    assert "encoder=" not in content_of(peers.trident(tmp_path / "features_uni" / "b.h5", *peers.bag()))
