"""Published weight files in timm's terms: tensors renamed, joined and folded, and never resampled.

Authors save what their library calls its tensors: timm 0.5.4, transformers 4 and 5, DINOv2's training code. Each
conversion here is exact, takes what is in timm's terms already as it is, and drops only what an encoder does not run:
mask tokens, pooling layers, the heads of self-supervised training. What it does not know it leaves for the strict
loading to refuse by name.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from wsi_mil.errors import WeightsError

State = dict[str, Tensor]


def convert_layout(state: State, layout: str, own: Mapping[str, Tensor], source: str) -> State:
    """Return tensors as timm names them.

    Args:
        state: tensors by name, as a file holds them; left as it is.
        layout: a key of `LAYOUTS`.
        own: the model's tensors.
        source: where they come from, for messages.

    Raises:
        WeightsError: positions of another grid. Libraries resample positions each in its own way, so that the features
            would differ from those of the authors.
    """
    converted = LAYOUTS[layout](dict(state))
    here, there = own.get("pos_embed"), converted.get("pos_embed")
    if layout != RESAMPLED and here is not None and there is not None and here.shape[1] != there.shape[1]:
        raise WeightsError(
            f"{source} holds positions (pos_embed) of {there.shape[1]} tokens and the model has {here.shape[1]}: "
            "it was saved for images of another size, so give the file that was published for this encoder"
        )
    return converted


def _as_it_is(state: State) -> State:
    return state


def _swin_old(state: State) -> State:
    """Swin as timm 0.5.4 saved it: patches are merged at the end of a stage, today at the start of the next."""
    old = any(name.startswith("layers.0.downsample.") for name in state)
    merging = re.compile(r"^layers\.(\d+)\.downsample\.")
    dropped = ("relative_position_index", "attn_mask")  # computed from the sizes, and saved no more
    return {
        merging.sub(lambda match: f"layers.{int(match[1]) + 1}.downsample.", name) if old else name: tensor
        for name, tensor in state.items()
        if not name.endswith(dropped) and not name.startswith("head.")
    }


# What transformers 4 and 5 call things, and timm; the first beginning that fits decides.
_BLOCK = re.compile(r"^(?:encoder\.)?layers?\.(\d+)\.(.+)$")
_OUTSIDE = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),  # cls_token, mask_token, register_tokens
    ("layernorm.", "norm."),
)
_INSIDE = (
    ("attention.attention.", "attn."),  # query, key, value
    ("attention.q_proj.", "attn.query."),
    ("attention.k_proj.", "attn.key."),
    ("attention.v_proj.", "attn.value."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.o_proj.", "attn.proj."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("mlp.weights_in.", "mlp.fc1."),
    ("mlp.weights_out.", "mlp.fc2."),
    ("mlp.down_proj.", "mlp.fc2."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
_JOINED = (("attn.qkv.", ("attn.query.", "attn.key.", "attn.value.")), ("mlp.fc1.", ("mlp.gate_proj.", "mlp.up_proj.")))


def _hugging_face(state: State) -> State:
    """ViTModel and Dinov2Model of transformers, with and without registers, plain or SwiGLU."""
    if not any(name.startswith("embeddings.") for name in state):
        return _dinov2(state)
    renamed: State = {}
    for name, tensor in state.items():
        if block := _BLOCK.match(name):
            renamed[f"blocks.{block[1]}.{_begun(block[2], _INSIDE)}"] = tensor
        elif not name.startswith("pooler."):
            renamed[_begun(name, _OUTSIDE)] = tensor
    return _dinov2(_joined(renamed))


def _begun(name: str, beginnings: tuple[tuple[str, str], ...]) -> str:
    """A name with its beginning replaced, if it is a known one."""
    for old, new in beginnings:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _joined(state: State) -> State:
    """Queries, keys and values become one matrix, and so do the two halves of a gated layer."""
    joined = dict(state)
    for name in state:
        for whole, parts in _JOINED:
            if parts[0] not in name:
                continue
            names = [name.replace(parts[0], part) for part in parts]
            if all(part in joined for part in names):  # else the strict loading names what is missing
                joined[name.replace(parts[0], whole)] = torch.cat([joined.pop(part) for part in names])
    return joined


_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_TRAINING_ONLY = ("mask_token", "dino_head.", "ibot_head.")


def _dinov2(state: State) -> State:
    """DINOv2 as its training code saves it: blocks in chunks, and positions that count the class token."""
    converted = {}
    for name, tensor in state.items():
        if name.startswith(_TRAINING_ONLY):
            continue
        name = _CHUNK.sub(r"blocks.\1.", name)
        converted[name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = tensor
    if {"register_tokens", "cls_token", "pos_embed"} <= converted.keys():
        # timm gives positions to patches alone where there are registers: that of the class token is added to it.
        converted["reg_token"] = converted.pop("register_tokens")
        converted["cls_token"] = converted["cls_token"] + converted["pos_embed"][:, :1]
        converted["pos_embed"] = converted["pos_embed"][:, 1:]
    return converted


RESAMPLED = "timm-resampled"
LAYOUTS: dict[str, Callable[[State], State]] = {
    "timm": _as_it_is,
    RESAMPLED: _as_it_is,
    "swin-old": _swin_old,
    "hf-vit": _hugging_face,
    "hf-dinov2": _hugging_face,
    "dinov2": _dinov2,
}
"""By `EncoderSpec.layout`. In "timm-resampled" alone are positions resampled later, as timm does for its own files."""
