"""Parts of a file by their place, without a position that threads would have to share."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

_GAP = 32 << 10  # bytes that are sooner read along than skipped
_MOST = 8 << 20  # bytes read at once


class PositionalFile:
    """A file that several threads read at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes from a place; fewer than ``count`` where the file ends."""
        parts = []
        while count:
            part = self._read_some(offset, count)
            if not part:
                break
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_all(self, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Read several spans (offset, bytes), those that lie next to each other together, in the file's order."""
        found = [memoryview(b"")] * len(spans)
        for group in _groups(spans):
            start = spans[group[0]][0]
            whole = memoryview(self.read(start, max(sum(spans[index]) for index in group) - start))
            for index in group:
                offset, count = spans[index]
                found[index] = whole[offset - start : offset - start + count]
        return found

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def _read_some(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), count, offset)
        with self._lock:  # Windows
            self._file.seek(offset)
            return self._file.read(count)


def _groups(spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of the spans that are read together."""
    groups: list[list[int]] = []
    start = end = 0
    for index in sorted(range(len(spans)), key=lambda index: spans[index]):
        offset, count = spans[index]
        if groups and offset <= end + _GAP and offset + count - start <= _MOST:
            groups[-1].append(index)
            end = max(end, offset + count)
        else:
            groups.append([index])
            start, end = offset, offset + count
    return groups
