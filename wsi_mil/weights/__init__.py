"""Weight files: sniffed before they are opened, read without running their code, loaded strictly. The only door to
safetensors.

A download that went wrong leaves a web page, a git-LFS pointer or half a file under the right name, and the libraries
answer those with riddles ("header too large", a bare EOFError). So `sniffing` looks at the first bytes first. `files`
reads and writes; pickles only with ``weights_only=True``, which runs no code of the file's, unless the user trusts it.
`states` finds the state dict in what a training run saved, and gives a model all of it or nothing.
"""

from wsi_mil.weights.files import (
    UNREADABLE,
    convert,
    file_sha256,
    load_tensors,
    read_state,
    read_tensor,
    read_weights,
    save_tensors,
)
from wsi_mil.weights.sniffing import sniff
from wsi_mil.weights.states import Convert, State, Unwrapped, load_strictly, own_part, state_sha256

__all__ = [
    "UNREADABLE",
    "Convert",
    "State",
    "Unwrapped",
    "convert",
    "file_sha256",
    "load_strictly",
    "load_tensors",
    "own_part",
    "read_state",
    "read_tensor",
    "read_weights",
    "save_tensors",
    "sniff",
    "state_sha256",
]
