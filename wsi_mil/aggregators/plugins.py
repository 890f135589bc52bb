"""Aggregators that other packages bring along, by the entry-point group ``wsi_mil.aggregators``.

An entry point is a subclass of `Aggregator`; its name is that of the model. What its ``Params`` refuse (OptionError)
begins with the name of the option. In the pyproject.toml of such a package::

    [project.entry-points."wsi_mil.aggregators"]
    my-model = "my_package:MyModel"
"""

from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points

from wsi_mil.aggregators.base import Aggregator
from wsi_mil.errors import OptionError, one_line
from wsi_mil.stage import attempt

GROUP = "wsi_mil.aggregators"


def names() -> list[str]:
    """The models that other packages bring along; nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load(name: str) -> type[Aggregator]:
    """Import one of them.

    Raises:
        OptionError: it is no aggregator, cannot be imported, or several packages bring one of that name.
    """
    entries = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    found = OptionError("there are several of that name") if len(entries) > 1 else attempt(_class, entries[0])
    if isinstance(found, Exception):
        packages = " and ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in entries))
        raise OptionError(
            f"--aggregator {name}: package {packages}, entry point {name}: {one_line(found)}: repair or uninstall it"
        ) from found
    return found


def _class(entry: EntryPoint) -> type[Aggregator]:
    """What an entry point stands for."""
    found = entry.load()
    if not (isinstance(found, type) and issubclass(found, Aggregator)):
        raise OptionError(f"it gives {getattr(found, '__name__', found)}, which is no subclass of Aggregator")
    params = getattr(found, "Params", None)
    if not is_dataclass(params) or not hasattr(found, "uses_position"):
        raise OptionError(f"{found.__name__} does not say its Params (a frozen dataclass) and uses_position")
    if without := [field.name for field in fields(params) if field.default is MISSING]:
        raise OptionError(f"{found.__name__}.Params: {without[0]} has no default, and every option needs one")
    return found
