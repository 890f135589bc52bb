"""State dicts: found in what a training run saved, matched with a model's names, and loaded whole or not at all."""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsi_mil.errors import WeightsError

State = dict[str, Tensor]
Convert = Callable[[State], State]
log = logging.getLogger(__name__)

# The averaged weights before those that the optimiser moved: both fit, and the averaged ones are what was published.
WRAPPERS = (
    "teacher", "model_ema", "state_dict_ema", "ema", "target_encoder", "model", "state_dict", "model_state_dict",
    "encoder", "backbone", "student",
)  # fmt: skip
PREFIXES = (
    "module.", "_orig_mod.", "backbone.", "encoder.", "teacher.", "student.", "model.", "visual.trunk.", "trunk.",
)  # fmt: skip
TRAINING_ONLY = ("head.", "fc.", "mask_token", "dino_head.", "ibot_head.")
_TEACHER, _STUDENT = "teacher.", "student."
_NAMES_SHOWN = 3


class Unwrapped(NamedTuple):
    """What a weight file held."""

    state: State
    """Its tensors by name."""
    chosen: list[str]
    """The wrappers around them, outermost first."""
    left_out: list[str]
    """What lay beside them, by name."""


def unwrap(content: Any, source: str) -> Unwrapped:
    """Descend to the state dict of what a training run saved, the teacher's or averaged one where there are several.

    Args:
        content: tensors by name, or what holds them under one of `WRAPPERS`, as deep as it may be.
        source: where it comes from, for messages.

    Raises:
        WeightsError: at the end of that are no tensors by name.
    """
    chosen: list[str] = []
    left_out: list[str] = []
    content = _plain(content)
    while name := _wrapper(content):
        left_out += [".".join([*chosen, str(other)]) for other in content if other != name]
        chosen.append(name)
        content = _plain(content[name])
    if wrong := _complaint(content):
        raise WeightsError(f"{source} {wrong}: save the state dict alone")
    return Unwrapped(dict(content), chosen, left_out)


def own_part(state: State, names: Collection[str], layout: Convert = dict) -> State:
    """Return what a model can mean by its own names: freed of prefixes, and of heads that only training had.

    Args:
        state: tensors by name, such as ``module.backbone.norm.weight``.
        names: of the model. The prefix under which most of them are found is taken off, and what does not have it
            belongs to something else; a teacher goes before, and a student after everything else, however much of
            them is there. A head is dropped only if the model has none. All this is logged.
        layout: gives tensors, freed of a prefix, the names that the model has for them.
    """
    found = {
        prefix: layout({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
        for prefix in _prefixes(state)
    }
    prefix, inside = max(found.items(), key=lambda item: _rank(*item, names))
    kept = {name: value for name, value in inside.items() if name in names or not name.startswith(TRAINING_ONLY)}
    if prefix:
        outside = [name for name in state if not name.startswith(prefix)]
        log.info("took the tensors under %s%s", prefix, f", left out {some(outside)}" if outside else "")
    warn_of_student(prefix.split("."), "the weights")
    if dropped := sorted(inside.keys() - kept.keys()):
        log.info("left out what only training needs: %s", some(dropped))
    return kept


def warn_of_student(chosen: Collection[str], source: str) -> None:
    """Say so where only the student of a training was to be had."""
    if _STUDENT.rstrip(".") in chosen:
        log.warning("%s are those of a student only: authors publish the teacher, whose features are others", source)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over the names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def load_strictly(
    model: nn.Module,
    state: State,
    source: str,
    convert: Convert | None = None,
    remedy: str = "",
) -> None:
    """Give a model every one of its tensors from ``state``, or refuse: nothing is skipped, nothing stays random.

    A model on the meta device is handed the tensors themselves, so that fitting can be tried at no cost in memory.

    Args:
        model: takes the tensors.
        state: tensors by name.
        source: where they come from, for messages.
        convert: puts a published layout into the model's, where names or shapes differ. It may resample ``pos_embed``
            to another grid, which is logged; a tensor of any other size is refused all the same.
        remedy: what to do where they do not fit, for the message.

    Raises:
        WeightsError: some name is missing, unexpected or of another shape; the first few are named.
    """
    wanted = model.state_dict()
    if convert and _differences(wanted, state):
        state = _converted(convert, state)
    if differences := _differences(wanted, state):
        advice = f": {remedy}" if remedy else ""
        raise WeightsError(f"{source} does not fit the model: {'; '.join(differences)}{advice}")
    model.load_state_dict(state, strict=True, assign=any(tensor.is_meta for tensor in wanted.values()))


def some(names: list[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _complaint(content: Any) -> str:
    """What keeps some content from being tensors by name; empty where nothing does."""
    if not isinstance(content, Mapping):
        return f"holds {type(content).__name__} instead of tensors by name"
    strange = [
        str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if strange:
        return f"holds {some(strange)} instead of tensors by name"
    return "" if content else "holds no tensors"


def _plain(content: Any) -> Any:
    """A whole module, as trusted pickles hold, as its state dict."""
    return content.state_dict() if isinstance(content, nn.Module) else content


def _wrapper(content: Any) -> str | None:
    """The name under which the state dict lies, if it is wrapped."""
    if not isinstance(content, Mapping):
        return None
    return next((name for name in WRAPPERS if _holds_tensors(content.get(name))), None)


def _holds_tensors(value: Any) -> bool:
    value = _plain(value)
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(inner, Tensor) for inner in value.values()) or _wrapper(value) is not None


def _prefixes(state: Collection[str]) -> list[str]:
    """Every chain of known prefixes that some name begins with, the shortest first."""
    found = [""]
    for prefix in found:  # grows meanwhile
        longer = (prefix + name for name in PREFIXES)
        found += [chain for chain in longer if any(name.startswith(chain) for name in state)]
    return found


def _rank(prefix: str, inside: State, names: Collection[str]) -> tuple[bool, bool, bool, int]:
    """What makes the tensors under a prefix the likelier ones to be meant."""
    count = sum(name in inside for name in names)
    return _TEACHER in prefix, count > 0, _STUDENT not in prefix, count


def _converted(convert: Convert, state: State) -> State:
    """Convert, but keep what would only fit because its values were resampled; fall back to ``state`` on nonsense."""
    try:
        converted = convert(dict(state))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        log.debug("conversion failed: %s", error)
        return state
    for name in state.keys() & converted.keys():
        before, after = state[name], converted[name]
        if name == "pos_embed" and before.shape != after.shape:
            log.info("position embeddings resampled from %d to %d tokens", before.shape[1], after.shape[1])
        elif before.numel() != after.numel():
            converted[name] = before
    return converted


def _differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``state`` from fitting, in a few words each."""
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    kinds = (
        ("missing", sorted(wanted.keys() - state.keys())),
        ("unexpected", sorted(state.keys() - wanted.keys())),
        ("of another shape", shapes),
    )
    return [f"{len(names)} {kind} ({some(names)})" for kind, names in kinds if names]
