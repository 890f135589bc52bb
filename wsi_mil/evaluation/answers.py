"""What a model says of labelled bags, as arrays: what every figure is computed from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float64, Int

from wsi_mil.errors import TableError
from wsi_mil.predictions import Prediction


@dataclass(frozen=True)
class Answers:
    """Calibrated probabilities and decisions of bags whose class is known, in one order."""

    ids: tuple[str, ...]
    """Names of the bags."""
    patients: tuple[str, ...]
    """Who each bag is of: the unit of every interval."""
    labels: Int[np.ndarray, " bags"]
    """Index of the true class."""
    scores: Float64[np.ndarray, "bags classes"]
    """Probabilities, a column for each declared class."""
    predicted: Int[np.ndarray, " bags"]
    """Index of the class that was decided for, at the threshold of whichever model answered."""
    folds: tuple[str, ...]
    """The round of cross-validation that tested each bag; "" outside."""
    classes: tuple[str, ...]
    """Every declared class."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that tell subgroups, such as site; one value for each bag."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def patient_count(self) -> int:
        """Of how many patients the bags are."""
        return len(set(self.patients))

    @classmethod
    def of(
        cls,
        rows: Iterable[Prediction],
        classes: tuple[str, ...],
        groups: Mapping[str, Mapping[str, str]] | None = None,
    ) -> "Answers":
        """Gather predictions; bags that have none, being empty or failed, are left out.

        Args:
            rows: predictions of labelled bags.
            classes: the class names, in the order of the probabilities.
            groups: for each column the value of each bag.

        Raises:
            TableError: a row's label is missing or none of the classes, or no row has probabilities.
        """
        done = [row for row in rows if row.status == "done"]
        for row in done:
            if row.label not in classes:
                known = ", ".join(classes)
                raise TableError(f"{row.slide_id} has the label {row.label!r}, which is none of the model's: {known}")
            if row.predicted not in classes or len(row.probabilities) != len(classes):
                said = f"{row.predicted!r} with {len(row.probabilities)} probabilities"
                raise TableError(
                    f"{row.slide_id} is predicted {said}, of the classes {', '.join(classes)}: predict anew"
                )
        if not done:
            raise TableError("no labelled slide has a prediction: see the table's column error")
        return cls(
            ids=tuple(row.slide_id for row in done),
            patients=tuple(row.patient_id or row.slide_id for row in done),
            labels=np.array([classes.index(row.label) for row in done]),
            scores=np.array([row.probabilities for row in done], dtype=np.float64),
            predicted=np.array([classes.index(row.predicted) for row in done]),
            folds=tuple(row.fold for row in done),
            classes=classes,
            groups={column: tuple(values[row.slide_id] for row in done) for column, values in (groups or {}).items()},
        )

    def where(self, chosen: Bool[np.ndarray, " bags"] | Int[np.ndarray, " some"]) -> "Answers":
        """Some of the bags, in the order that is asked for."""
        rows = np.arange(len(self))[chosen]

        def pick(values: Sequence[str]) -> tuple[str, ...]:
            return tuple(values[row] for row in rows)

        return replace(
            self,
            ids=pick(self.ids),
            patients=pick(self.patients),
            labels=self.labels[rows],
            scores=self.scores[rows],
            predicted=self.predicted[rows],
            folds=pick(self.folds),
            groups={column: pick(values) for column, values in self.groups.items()},
        )

    def with_classes(self, classes: tuple[str, ...]) -> "Answers":
        """The same answers with the classes in another order."""
        order = [self.classes.index(name) for name in classes]
        number = np.argsort(order)
        return replace(
            self,
            classes=classes,
            labels=number[self.labels],
            scores=self.scores[:, order],
            predicted=number[self.predicted],
        )
