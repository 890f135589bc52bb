"""Which weights decay."""

from typing import Any

from wsi_mil.aggregators import Aggregator


def parameter_groups(model: Aggregator, weight_decay: float) -> list[dict[str, Any]]:
    """The weights of a model for an optimiser of torch: those that decay, then those that must not, if it has any."""
    spared = list(model.undecayed())
    if not spared:
        return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
    known = {id(weight) for weight in spared}
    decaying = [weight for weight in model.parameters() if id(weight) not in known]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
