"""A cohort: its labelled slides, whose they are, and which part each is in."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from unicodedata import normalize

from wsi_mil.errors import OptionError

SPLITS = ("train", "val", "test")
UNITS = ("slide", "patient")
SEVERAL = "; "
"""Between the slides of a patient, in the name of their bag."""


class Member(NamedTuple):
    """One labelled slide."""

    slide_id: str
    label: str
    patient_id: str
    split: str = ""
    """"train", "val", "test", or "" before splitting."""
    site: str = ""
    """Where the patient was treated or the slide made; "" where the table does not tell."""
    fold: str = ""
    """The fold that tests this slide: "1".."k", or as the table calls it; "" before drawing."""


class Unit(NamedTuple):
    """What becomes one bag: a slide, or all slides of a patient."""

    members: tuple[Member, ...]

    @property
    def bag_id(self) -> str:
        """The slide, or the slides one after the other."""
        return SEVERAL.join(member.slide_id for member in self.members)

    @property
    def label(self) -> str:
        """The class, which all its slides share."""
        return self.members[0].label

    @property
    def patient_id(self) -> str:
        """The owner."""
        return self.members[0].patient_id

    @property
    def split(self) -> str:
        """Which part it is in."""
        return self.members[0].split

    @property
    def fold(self) -> str:
        """The fold that tests it."""
        return self.members[0].fold


class Seen(NamedTuple):
    """What earlier stages made of the slides."""

    usable: Collection[str]
    """Slides with features."""
    unusable: Mapping[str, str]
    """Slides that failed or were empty, each with the reason."""
    pending: Mapping[str, str]
    """Slides that an earlier stage has seen and a later one not yet, each with the command to run."""


@dataclass(frozen=True)
class CohortParams:
    """What to read of a table of labels."""

    target: str = "label"
    """The column of labels (--target)."""
    unit: str = "slide"
    """What a bag is of: a "slide", or a "patient" with all its slides, which must share the label then (--unit)."""
    groups: tuple[str, ...] = ()
    """Further columns, to tell subgroups by in an evaluation (--by)."""
    classes: tuple[str, ...] = ()
    """The labels that there may be, as those of a trained model, whether they occur or not; none = those that occur."""
    positive: str = ""
    """Of two classes the one to find, which becomes the last (--positive); "" = the last by name."""

    def __post_init__(self) -> None:
        for name in ("target", "positive"):  # letters with accents are spelt as in tables, once they are read
            object.__setattr__(self, name, normalize("NFC", getattr(self, name)))
        object.__setattr__(self, "groups", tuple(normalize("NFC", group) for group in self.groups))
        if not self.target:
            raise OptionError("--target: name a column of the table of labels")
        if self.unit not in UNITS:
            raise OptionError(f"--unit {self.unit}: give {' or '.join(UNITS)}")
        if self.classes and (len(set(self.classes)) < 2 or len(set(self.classes)) < len(self.classes)):
            raise OptionError(f"classes {', '.join(self.classes)}: name two or more, each once")
        for group in self.groups:
            if not group or self.groups.count(group) > 1:
                raise OptionError(f"--by {group}: name columns of the table of labels, each once")
            if group == self.target:
                raise OptionError(f"--by {group}: this is the target, and a subgroup needs patients of every class")


@dataclass(frozen=True)
class Cohort:
    """Labelled slides, in the order of their table."""

    members: tuple[Member, ...]
    left_out: Mapping[str, str]
    """Labelled slides that earlier stages could make nothing of, each with the reason."""
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By column of subgroups, the value of each member by slide_id; "" where its cell is empty."""
    unit: str = "slide"
    """What a bag is of: "slide" or "patient"."""
    declared: tuple[str, ...] = ()
    """Classes that there are even where no member has them."""
    by_site: bool = False
    """Whether folds were drawn so that no site is in two of them."""
    positive: str = ""
    """The class that comes last, whatever its name."""
    shuffled: bool = False
    """Whether labels were dealt anew among the patients."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class by name, the positive one last: the order of a model's outputs."""
        found = {*self.declared, *(member.label for member in self.members)}
        return tuple(sorted(found, key=lambda label: (label == self.positive, label)))

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds, in order: numbers as such, before names; none before drawing."""
        names = {member.fold for member in self.members if member.fold}
        return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))

    @property
    def patients(self) -> dict[str, tuple[Member, ...]]:
        """The slides of each patient, both in the order of the table."""
        found: dict[str, list[Member]] = {}
        for member in self.members:
            found.setdefault(member.patient_id, []).append(member)
        return {patient_id: tuple(members) for patient_id, members in found.items()}

    @property
    def units(self) -> tuple[Unit, ...]:
        """What becomes a bag each, in the order of the table."""
        if self.unit == "patient":
            return tuple(Unit(members) for members in self.patients.values())
        return tuple(Unit((member,)) for member in self.members)

    @property
    def digest(self) -> str:
        """Hash of who is in which split, site and fold with which label, and of what makes a bag.

        Subgroups are not in it: they decide nothing. What a table does not use leaves no trace either, so that the
        digests that finished trainings recorded before there were sites and folds stay true.
        """
        used = 6 if any(member.fold for member in self.members) else 5 if any(m.site for m in self.members) else 4
        shown = [
            f"Member({', '.join(f'{name}={value!r}' for name, value in list(member._asdict().items())[:used])})"
            for member in sorted(self.members)
        ]
        unit = ("" if self.unit == "slide" else self.unit) + (f" {self.positive}" if self.positive else "")
        return hashlib.sha256((f"[{', '.join(shown)}]" + unit).encode()).hexdigest()[:32]

    def part(self, split: str) -> list[Member]:
        """The members of one split."""
        return [member for member in self.members if member.split == split]
