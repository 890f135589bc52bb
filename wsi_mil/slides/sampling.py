"""What of a slide's content its fingerprint is made of."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

_BLOCKS, _BLOCK_BYTES = 16, 1 << 16


def spans(size: int) -> list[tuple[int, int]]:
    """Where the samples of a file of so many bytes lie: from the first byte up to the last one, left out."""
    starts = [max(0, size - _BLOCK_BYTES) * index // (_BLOCKS - 1) for index in range(_BLOCKS)]
    return [(start, min(size, start + _BLOCK_BYTES)) for start in starts]


def fingerprint(size: int, samples: Sequence[bytes], companions: Mapping[str, int]) -> str:
    """Hash a slide's size in bytes, the samples at `spans`, and the sizes of the files it belongs with by their names.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(str(size).encode())
    for sample in samples:
        digest.update(sample)
    for name in sorted(companions, key=PurePosixPath):
        digest.update(f"\n{name} {companions[name]}".encode())
    return digest.hexdigest()[:32]
