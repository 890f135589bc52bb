"""Decoded tiles, each decoded once for all that need it at the same time or later, within a bound of memory."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from wsi_mil.slides.direct.layout import Compressed

Pixels = UInt8[np.ndarray, "_ _ 3"]


class Key(NamedTuple):
    """One compressed tile of a slide."""

    level: int
    index: int


@dataclass(eq=False, slots=True)
class _Slot:
    """What has become of one tile."""

    users: int = 0
    pixels: Pixels | None = None
    error: BaseException | None = None


class Keeper:
    """What has been decoded and is needed again. Thread-safe.

    Two threads that need the same tile share one decoding: whoever asks first decodes, the other waits for it. As each
    thread decodes all that it has taken on before it waits for others, no two wait for each other.
    """

    def __init__(self, decode: Callable[..., Iterable[Pixels]], most_bytes: int) -> None:
        """Take what decodes several tiles, of their keys and the bytes of some, and how many bytes may be kept."""
        self._decode, self._most = decode, most_bytes
        self._changed = threading.Condition()
        self._kept: dict[Key, _Slot] = {}  # in the order in which they were asked for
        self._wanted: Counter[Key] = Counter()
        self._bytes = 0

    def expect(self, keys: Iterable[Key]) -> None:
        """Tiles that will be borrowed: a key stands here as often as it will be."""
        with self._changed:
            self._wanted.update(keys)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Which tiles are not kept, nor being decoded, at this moment."""
        with self._changed:
            return [key for key in keys if key not in self._kept]

    def borrow(self, keys: Sequence[Key], read: dict[Key, Compressed]) -> dict[Key, Pixels]:
        """The pixels of some tiles, each named once; to be given back by `give_back`, unless this fails."""
        slots, mine = {}, []
        with self._changed:
            for key in keys:
                slot = self._kept.get(key)
                if slot is None:
                    slot = self._kept[key] = _Slot()
                    mine.append(key)
                slot.users += 1
                slots[key] = slot
        try:
            if mine:
                self._fulfil(mine, slots, read)
            return {key: self._awaited(slot) for key, slot in slots.items()}
        except BaseException:
            self.give_back(keys, expected=False)
            raise

    def give_back(self, keys: Sequence[Key], expected: bool) -> None:
        """Say that some borrowed tiles are no longer used, and whether that was a use that had been expected."""
        with self._changed:
            for key in keys:
                if slot := self._kept.get(key):
                    slot.users -= 1
                if expected:
                    self._wanted[key] -= 1
                if self._wanted[key] <= 0:
                    del self._wanted[key]
                    self._drop(key)
            if self._bytes > self._most:
                for key in list(self._kept):
                    self._drop(key)  # it will be decoded again
                    if self._bytes <= self._most:
                        break

    def _fulfil(self, keys: list[Key], slots: dict[Key, _Slot], read: dict[Key, Compressed]) -> None:
        try:
            for key, pixels in zip(keys, self._decode(keys, read), strict=True):
                with self._changed:
                    self._bytes += pixels.nbytes
                    slots[key].pixels = pixels
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                for key in keys:
                    if slots[key].pixels is None:
                        slots[key].error = error
                        del self._kept[key]  # whoever asks next tries again
                self._changed.notify_all()
            raise

    def _awaited(self, slot: _Slot) -> Pixels:
        if slot.pixels is None:
            with self._changed:
                self._changed.wait_for(lambda: slot.pixels is not None or slot.error is not None)
        if slot.pixels is None:
            raise slot.error or AssertionError("woken without a reason")
        return slot.pixels

    def _drop(self, key: Key) -> None:
        slot = self._kept.get(key)
        if slot is not None and slot.users <= 0 and slot.pixels is not None:
            self._bytes -= slot.pixels.nbytes
            del self._kept[key]
