"""Which slide a table means, and the table that chooses slides.

A slide may be written with its file's extension (or that of its features, ``.h5``), or without its folder where that
is unambiguous.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from wsi_mil.errors import TableError
from wsi_mil.slides import without_extension
from wsi_mil.tables import number_in, read_table

log = logging.getLogger(__name__)

_SHOWN = 3
_ROWS_SHOWN = 8


def read_slides_table(
    path: Path, slides: Collection[str], settings: tuple[str, ...] = ()
) -> dict[str, dict[str, float]]:
    """Read ``slides.csv``: which slides to use, the mpp of those whose files do not tell it, and their own settings.

    Args:
        path: the table, columns ``slide[,mpp][,setting ...]`` and any of ``settings``.
        slides: the slide_ids that were found.
        settings: what a slide may have of its own.

    Returns:
        By slide_id, the numbers in its row; an empty cell says nothing.

    Raises:
        TableError: a slide is not there, or twice; a column is unknown; a cell is no number.
    """
    columns = ("mpp", *settings)
    table = read_table(path, required=("slide",), optional=columns, strict=True)
    rows = slides_in(path, filled(path, "slide", table.slide.items()), slides)
    given = [column for column in columns if column in table]
    return {
        slide_id: {name: number_in(path, row, name, text) for name in given if (text := table[name][row])}
        for row, slide_id in rows.items()
    }


def read_resolutions(path: Path, slides: Collection[str]) -> dict[str, float]:
    """Read of ``slides.csv`` only the mpp of slides that have bags; rows without mpp say nothing, others are named."""
    table = read_table(path, required=("slide", "mpp"), optional=())
    named = filled(path, "slide", table.slide.items())
    known = Names(slides)
    rows = {row: found for row, name in named.items() if (found := known.find(path, row, name)) is not None}
    if idle := [name for row, name in named.items() if row not in rows]:
        told = some_names([name + known.question(name) for name in idle[:_SHOWN]] + idle[_SHOWN:])
        log.warning("%s: %d of %d rows name no bag and say nothing: %s", path, len(idle), len(named), told)
    refuse_duplicates(path, rows)
    return {slide_id: number_in(path, row, "mpp", text) for row, slide_id in rows.items() if (text := table.mpp[row])}


def slides_in(path: Path, named: Mapping[int, str], slides: Collection[str]) -> dict[int, str]:
    """Match what the rows of a table call a slide with the slides there are.

    Raises:
        TableError: no stage has seen a slide of that name, or several go by it, or two rows name one slide.
    """
    known = Names(slides)
    rows = {row: _slide_id(path, row, name, known) for row, name in named.items()}
    refuse_duplicates(path, rows)
    return rows


def filled(path: Path, column: str, cells: Iterable[tuple[int, str]]) -> dict[int, str]:
    """The cells of a column by row.

    Raises:
        TableError: some are empty.
    """
    found = dict(cells)
    if empty := [row for row, text in found.items() if not text]:
        raise TableError(f"{path} {rows_text(empty)}: {column} is empty: fill it in, or take the row out")
    return found


def refuse_duplicates(path: Path, named: Mapping[int, str], what: str = "") -> None:
    """Refuse a name that two rows have."""
    rows = defaultdict(list)
    for row, name in named.items():
        rows[name].append(row)
    for name, found in rows.items():
        if len(found) > 1:
            raise TableError(f"{path} {rows_text(found)}: {what}{name} is there {len(found)} times")


def slide_names(slide_id: str, recorded: str) -> list[str]:
    """What a slide may be called elsewhere, where its folder is named by a longer or a shorter path.

    Args:
        slide_id: its name here.
        recorded: the path of its file, as far as it is known.
    """
    parts = PurePosixPath(without_extension(recorded)).parts
    return [slide_id, *("/".join(parts[start:]) for start in range(len(parts)))]


def rows_text(rows: Iterable[int]) -> str:
    """Name rows in a message: "row 3", or "rows 3, 5"; of very many the first."""
    found = sorted(set(rows))
    more = f", ... ({len(found)} in all)" if len(found) > _ROWS_SHOWN else ""
    return f"row{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:_ROWS_SHOWN]))}{more}"


def some_names(names: list[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


class Names:
    """The slides there are, as the rows of a table may call them; each row is looked up and not searched for."""

    def __init__(self, slides: Iterable[str]) -> None:
        self._slides = frozenset(slides)
        self._spelt = dict[str, str]()
        """By name as tables are read."""
        for slide_id in sorted(self._slides):
            if (other := self._spelt.setdefault(normalize("NFC", slide_id), slide_id)) != slide_id:
                raise TableError(
                    f"two slides are called {slide_id}, and accents are spelt in two ways: rename {other!a}"
                )
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for slide_id in sorted(self._slides):
            self._by_stem[normalize("NFC", slide_id).rpartition("/")[2]].append(slide_id)

    def find(self, path: Path, row: int, name: str) -> str | None:
        """The slide that goes by a name, which may leave out its folder where that is unambiguous; None, if none does.

        Raises:
            TableError: several slides go by it.
        """
        bare = name[: -len(".h5")] if name.lower().endswith(".h5") else name
        for candidate in (name, without_extension(name), bare, without_extension(bare)):
            if candidate in self._slides:
                return candidate
            if candidate in self._spelt:
                return self._spelt[candidate]
        found = self._by_stem.get(without_extension(bare), [])
        if len(found) > 1:
            raise TableError(f"{path} row {row}: {name} may be any of {', '.join(found)}: write it with its folder")
        return found[0] if found else None

    def question(self, name: str) -> str:
        """The question which slide a name may stand for, where any is near."""
        near = " or ".join(sorted(slide for slide in self._slides if _is_near(name, slide)))
        return f" (did you mean {near}?)" if near else ""


def _slide_id(path: Path, row: int, name: str, known: Names) -> str:
    found = known.find(path, row, name)
    if found is None:
        what = f"no stage has seen a slide {name}{known.question(name)}"
        raise TableError(f"{path} row {row}: {what}: add it and tile it, or take the row out")
    return found


def _is_near(name: str, slide_id: str) -> bool:
    """Whether a name is that of a slide but for case, extension or folder."""
    wanted, found = (without_extension(text).lower() for text in (name, slide_id))
    return wanted in (found, PurePosixPath(found).name)
