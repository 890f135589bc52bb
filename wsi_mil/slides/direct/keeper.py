"""Decoded tiles, each decoded once for all that need it at the same time or later, within a bound of memory."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

Pixels = UInt8[np.ndarray, "_ _ 3"]


class Key(NamedTuple):
    """One compressed tile of a slide."""

    level: int
    index: int


class Keeper:
    """What has been decoded and is needed again. Thread-safe.

    Two threads that need the same tile share one decoding: whoever asks first decodes, the other waits for it. As each
    thread decodes all that it has taken on before it waits for others, no two wait for each other.
    """

    def __init__(self, decode: Callable[..., Iterable[Pixels]], most_bytes: int) -> None:
        """Take what decodes several tiles, of their keys and the bytes of some, and how many bytes may be kept."""
        self._decode, self._most = decode, most_bytes
        self._lock = threading.Lock()
        self._kept: dict[Key, Future[Pixels]] = {}  # in the order of their decoding
        self._users: Counter[Key] = Counter()
        self._wanted: Counter[Key] = Counter()
        self._bytes = 0

    def expect(self, keys: Iterable[Key]) -> None:
        """Tiles that will be borrowed: a key stands here as often as it will be."""
        with self._lock:
            self._wanted.update(keys)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Which tiles are not kept, nor being decoded, at this moment."""
        with self._lock:
            return [key for key in keys if key not in self._kept]

    def borrow(self, keys: Sequence[Key], read: dict[Key, bytes]) -> dict[Key, Pixels]:
        """The pixels of some tiles, each named once; to be given back by `give_back`, also after an error."""
        with self._lock:
            mine = [key for key in keys if key not in self._kept]
            self._kept |= {key: Future() for key in mine}
            found = {key: self._kept[key] for key in keys}
            self._users.update(keys)
        self._fulfil(mine, found, read)
        return {key: future.result() for key, future in found.items()}

    def give_back(self, keys: Sequence[Key], expected: bool) -> None:
        """Say that some borrowed tiles are no longer used, and whether that was a use that had been expected."""
        with self._lock:
            self._users.subtract(keys)
            if expected:
                self._wanted.subtract(keys)
            for key in keys:
                if self._wanted[key] <= 0:
                    del self._wanted[key]
                    self._drop(key)
                if self._users[key] <= 0:
                    del self._users[key]
            for key in list(self._kept):
                if self._bytes <= self._most:
                    break
                self._drop(key)  # it will be decoded again

    def _fulfil(self, keys: list[Key], futures: dict[Key, "Future[Pixels]"], read: dict[Key, bytes]) -> None:
        done = 0
        try:
            for key, pixels in zip(keys, self._decode(keys, read), strict=True):
                with self._lock:
                    self._bytes += pixels.nbytes
                futures[key].set_result(pixels)
                done += 1
        except BaseException as error:
            with self._lock:
                for key in keys[done:]:
                    del self._kept[key]
            for key in keys[done:]:
                futures[key].set_exception(error)
            raise

    def _drop(self, key: Key) -> None:
        if self._users[key] <= 0 and key in self._kept:
            self._bytes -= self._kept.pop(key).result().nbytes
