"""Encoders that other packages bring along, by the entry-point group ``wsi_mil.encoders``.

An entry point is an `EncoderSpec`, or a function that gives one or several. In the pyproject.toml of such a package::

    [project.entry-points."wsi_mil.encoders"]
    my-encoder = "my_package:MY_ENCODER"

Its architecture is one of timm, or one that the package tells timm about (`timm.models.register_model`) when the entry
point is imported.
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

from wsi_mil.encoders.spec import EncoderSpec
from wsi_mil.errors import EncoderError, one_line

GROUP = "wsi_mil.encoders"


class Plugins(NamedTuple):
    """What other packages bring along."""

    specs: dict[str, EncoderSpec]
    """By the name that people type."""
    broken: dict[str, str]
    """By the entry point's name: which package it is of, and what is wrong."""


def read_plugins(taken: Iterable[str] = ()) -> Plugins:
    """Import every entry point of the group. One that fails costs only itself, whatever
    it raises, and so does one that offers a name twice.

    Args:
        taken: names that are not to be had any more.
    """
    plugins = Plugins({}, {})
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    if not found:
        return plugins
    from wsi_mil.stage import attempt  # here, since the table is also read by those who run nothing

    for entry in found:
        specs = attempt(_specs, entry)
        if not isinstance(specs, Exception):
            names = [spec.name for spec in specs]
            known = {*taken, *plugins.specs}
            if twice := [name for name in names if name in known or names.count(name) > 1]:
                specs = EncoderError(f"there is an encoder {twice[0]} already")
        if isinstance(specs, Exception):
            package = entry.dist.name if entry.dist else entry.value
            plugins.broken[entry.name] = f"package {package}, entry point {entry.name}: {one_line(specs)}"
        else:
            plugins.specs.update({spec.name: spec for spec in specs})
    return plugins


def _specs(entry: EntryPoint) -> list[EncoderSpec]:
    """What an entry point stands for."""
    found = entry.load()
    if callable(found):
        found = found()
    specs = [found] if isinstance(found, EncoderSpec) else list(found)
    for spec in specs:
        if not isinstance(spec, EncoderSpec):
            raise EncoderError(f"it gives {type(spec).__name__} instead of EncoderSpec")
    return specs
