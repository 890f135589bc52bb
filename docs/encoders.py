"""Prints docs/encoders.md: every encoder with its recipe, from the records in wsi_mil/encoders.

python docs/encoders.py > docs/encoders.md
"""

from collections.abc import Iterable

from wsi_mil.encoders.companies import COMPANIES
from wsi_mil.encoders.natural import NATURAL
from wsi_mil.encoders.packaged import PACKAGED
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.encoders.table import MORPHOLOGY
from wsi_mil.encoders.universities import UNIVERSITIES

INTRODUCTION = """# Encoders

Made by `make docs` from the records in `wsi_mil/encoders`. `wsimil extract --model NAME` takes them by name, and
`timm:<name>` (any model of timm; tiles are resized whole to what it takes) and `hf-hub:<owner/repo>` (a timm model on
huggingface.co, by its own config.json: where that cuts the middle out of pictures, so it does of tiles) besides. Other
packages add theirs: see `examples/custom_encoder.py`.

*Tile* is the side of a tile on the slide in its authors' recipe, *um/px* what the encoder then sees. *Input* says how a
tile becomes the square that the network takes, *mean* is that of the red channel (0.485: ImageNet's), *GPU* the
precision that its authors run it in. Parameters are in millions. The weights are their authors', under their licences;
*gated* ones want a login and accepted terms."""

HEADER = ("name", "dim", "tile", "um/px", "input", "mean", "GPU", "parameters", "licence", "weights")
SECTIONS: dict[str, tuple[EncoderSpec, ...]] = {
    "Built in": (MORPHOLOGY,),
    "Trained on histology, by universities": UNIVERSITIES,
    "Trained on histology, by companies": COMPANIES,
    "Run by their authors' packages": PACKAGED,
    "Trained on natural images": NATURAL,
}


def link(spec: EncoderSpec) -> str:
    """Where the weights are."""
    if spec.hub_id:
        where = f"[{spec.hub_id}](https://huggingface.co/{spec.hub_id})" + (", gated" if spec.gated else "")
        return f"{where}; [original]({spec.page})" if spec.page else where
    return f"[by hand]({spec.page})" if spec.page else "none"


def cells(spec: EncoderSpec) -> Iterable[str]:
    """A row of the table."""
    yield spec.name
    yield str(spec.dim)
    yield f"{spec.tile_um:g} um" if spec.tile_um else "any"
    yield f"{spec.mpp:.3g}" if spec.mpp else "any"
    cut = f"{spec.resize_px} px, middle {spec.tile_px} px" if spec.resize_px else f"{spec.tile_px} px"
    yield f"{cut}, {spec.interpolation}"
    yield f"{spec.mean[0]:.3g}" if spec.arch else "-"
    yield spec.precision
    yield f"{spec.parameters:g}" if spec.parameters else "-"
    yield spec.licence
    yield link(spec)


def section(title: str, specs: tuple[EncoderSpec, ...]) -> str:
    """One table, and what should be known about some of its rows."""
    rows = [HEADER, [":--"] * len(HEADER), *(cells(spec) for spec in specs)]
    notes = [f"* `{spec.name}`: {spec.note}." for spec in specs if spec.note]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(row)} |" for row in rows), *([""] if notes else []), *notes])


def page() -> str:
    """The whole page."""
    return "\n\n".join([INTRODUCTION, *(section(title, specs) for title, specs in SECTIONS.items())])


if __name__ == "__main__":
    print(page())
