"""The encoders that wsimil knows by name: one record each, with the recipe that its authors published.

The recipe lives here and not in timm's ``pretrained_cfg``, because that belongs to the generic architecture: for
``vit_large_patch16_224`` it says mean 0.5, which is not what UNI was trained with. Only ``timm:<name>`` and
``hf-hub:<owner/repo>`` take it, since there the name says which weights are meant.

Reading the table imports neither torch nor timm.
"""

import logging

from wsi_mil.encoders.companies import COMPANIES
from wsi_mil.encoders.from_timm import nearest, of_hub, of_timm
from wsi_mil.encoders.natural import NATURAL
from wsi_mil.encoders.packaged import PACKAGED
from wsi_mil.encoders.plugins import read_plugins
from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.encoders.universities import UNIVERSITIES
from wsi_mil.errors import EncoderError

log = logging.getLogger(__name__)

MORPHOLOGY = EncoderSpec(
    "morphology",
    dim=60,
    tile_px=224,
    tile_um=256.0,
    licence="Apache-2.0",
    interpolation="bilinear",
    note="no network: colour, texture and nuclei in numbers that have names",
)

ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec for spec in (MORPHOLOGY, *UNIVERSITIES, *COMPANIES, *PACKAGED, *NATURAL)
}


def list_encoders() -> list[EncoderSpec]:
    """The encoders of the table, then those of other packages; a broken package is a warning.

    Beside them, ``timm:<name>`` takes any model of timm, and ``hf-hub:<owner/repo>`` one on the hub.
    """
    plugins = read_plugins(ENCODERS)
    for what in plugins.broken.values():
        log.warning("encoders left out: %s", what)
    return [*ENCODERS.values(), *plugins.specs.values()]


def find_encoder(name: str) -> EncoderSpec:
    """Return the record of an encoder; for ``timm:`` and ``hf-hub:`` made of what those know about it.

    Raises:
        EncoderError: nobody knows the name, or the package that brings it along is broken.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith("timm:"):
        return of_timm(name.removeprefix("timm:"))
    if name.startswith("hf-hub:"):
        return _of_hub(name.removeprefix("hf-hub:"))
    plugins = read_plugins(ENCODERS)
    if name in plugins.specs:
        return plugins.specs[name]
    if name in plugins.broken:
        raise EncoderError(f"{plugins.broken[name]}: repair or uninstall it")
    broken = "".join(f"; left out: {what}" for what in plugins.broken.values())
    near = nearest(name, [*ENCODERS, *plugins.specs])
    raise EncoderError(f"there is no encoder {name!r}{near}: see `wsimil encoders`{broken}")


def _of_hub(repo: str) -> EncoderSpec:
    """The record of a repository, with a word about those that the table knows better."""
    known = [spec.name for spec in ENCODERS.values() if spec.hub_id == repo]
    if known:
        log.warning("hf-hub:%s: --model %s is the same with the recipe of its authors", repo, " or ".join(known))
    return of_hub(repo)
