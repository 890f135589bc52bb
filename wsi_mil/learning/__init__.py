"""The learning loop: bags in memory or on disk, one model, early stopping on validation bags, on one device or several.

It knows neither cohort nor folder of bags, so anything that makes bags can be learnt with it; what is learnt from them
is a `wsi_mil.tasks.Task`. `params` says how, `examples` reads ahead, `loop` descends, `decay` says which weights decay,
`ranks` (the only door to Lightning Fabric) knows devices, precisions and processes, `resume` writes down where a
training stands, `need` refuses what will not fit, and `logs` writes for TensorBoard.
"""

from wsi_mil.learning.decay import parameter_groups
from wsi_mil.learning.examples import Epoch, Example, Examples, Pace, best_epoch, prefetch
from wsi_mil.learning.loop import learn
from wsi_mil.learning.need import require_memory, require_memory_to_ask
from wsi_mil.learning.params import LearnParams, RunParams
from wsi_mil.learning.ranks import processes_here
from wsi_mil.learning.resume import RESUME, discard

__all__ = [
    "RESUME",
    "Epoch",
    "Example",
    "Examples",
    "LearnParams",
    "Pace",
    "RunParams",
    "best_epoch",
    "discard",
    "learn",
    "parameter_groups",
    "prefetch",
    "processes_here",
    "require_memory",
    "require_memory_to_ask",
]
