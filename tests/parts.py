"""What the operator hands to the backward pass of a backend, made from a part and the gradients of its sums."""

import math

from wsi_mil.attention.operands import Part, Retrace, Task


def retrace_of(task: Task, part: Part, grads: Part) -> Retrace:
    """See `Retrace`: ``steady`` is the mean of the gradients of a row's weights."""
    value, of_value = part.value.to(part.lse.dtype), grads.value.to(part.lse.dtype)
    steady = (of_value * value).sum(-1) + grads.far * part.far - grads.lse * math.log2(math.e)
    if task.dropout_p:
        steady = steady + grads.kept * part.kept
    lse = part.lse.masked_fill(part.lse == -math.inf, math.inf)
    return Retrace(lse, steady.contiguous(), grads.value, grads.far, grads.kept)
