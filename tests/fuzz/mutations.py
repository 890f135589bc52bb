"""Damage to bytes: what disks, networks and liars do to a valid file. The same generator gives the same damage."""

import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO

Damage = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

_LIES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
         (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 2_000_000_000, 3 << 30)  # fmt: skip
_TOKENS = (
    b"", b"NaN", b"-Infinity", b"1e400", b"-1", b"0", b"null", b"true", b"[]", b"{}", b'"', b"'", b",", b";", b"\t",
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"../", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e308",
    b"\xff\xfe\x00\xd8", "é=".encode("latin-1"), b"A" * 70_000, b"<!DOCTYPE x>", b"<a/>", b"&e;", b"0x10",
    b"\xe2\x80\xae", b"_", b"1_0",
)  # fmt: skip
_DICOM_PIXELS = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage a file in one to four ways.

    Args:
        rng: decides how and where.
        data: of a valid file.
        others: valid files of the kind, for what is spliced in.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        data = rng.choice(_DAMAGES)(rng, data, others)
    return data


def damaged_text(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage text: tokens that parsers trip over, numbers that nobody means, and what `mutate` does."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice((_token, _token, _number, _number, _lines, *_DAMAGES))(rng, data, others)
    return data


def damaged_zip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage a member of a zip archive, and pack it again, so that its checksums are right."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(parts))
    parts[name] = damaged_text(rng, parts[name], list(parts.values()))
    if rng.random() < 0.1:
        del parts[rng.choice(sorted(parts))]
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return packed.getvalue()


def damaged_header(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage the JSON before the tensors of a safetensors file, and tell its length as it is then, or a lie."""
    size = int.from_bytes(data[:8], "little")
    header = damaged_text(rng, data[8 : 8 + size], others)
    told = len(header) if rng.random() < 0.8 else rng.choice(_LIES)
    return struct.pack("<Q", told & (1 << 64) - 1) + header + data[8 + size :]


def damaged_tiff(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Lie in some entries of the directories of a TIFF: tag, type, count, or value."""
    found = bytearray(data)
    entries = _tiff_entries(data)
    if not entries:
        return mutate(rng, data, others)
    order, big = ("<" if data[:2] == b"II" else ">"), data[2:3] in b"+" or data[3:4] == b"+"
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, value = rng.choice(entries), rng.choice((*_LIES, rng.randrange(len(data)), rng.randrange(400)))
        match rng.randrange(8):
            case 0:
                struct.pack_into(f"{order}H", found, at, rng.choice((*range(254, 340), 65420, 65426, 34675)))
            case 1:
                struct.pack_into(f"{order}H", found, at + 2, rng.randrange(20))
            case 2 | 3:
                form = f"{order}{'Q' if big else 'I'}"
                struct.pack_into(form, found, at + 4, value & ((1 << (64 if big else 32)) - 1))
            case _:
                form, bits = rng.choice((("H", 16), ("I", 32)))
                struct.pack_into(f"{order}{form}", found, at + (12 if big else 8), value & ((1 << bits) - 1))
    return bytes(found)


def damaged_dicom(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Lie in the header of a DICOM file, or in the table of its frames behind it."""
    pixels = data.find(_DICOM_PIXELS)
    if pixels < 0:
        return mutate(rng, data, others)
    found, table = bytearray(data), pixels + len(_DICOM_PIXELS)
    for _ in range(rng.choice((1, 1, 2, 3))):
        start, end = rng.choice(((128, table), (pixels, table + 40)))
        form, bits = rng.choice((("<H", 16), ("<I", 32)))
        lie = rng.choice((*_LIES, rng.randrange(len(data)), rng.randrange(400)))
        struct.pack_into(form, found, rng.randrange(start, end - 4), lie & ((1 << bits) - 1))
    return bytes(found)


def _tiff_entries(data: bytes) -> list[int]:
    """Where the entries of all directories begin."""
    order, big = ("<" if data[:2] == b"II" else ">"), 43 in (data[2], data[3])
    word, width = ("Q", 20) if big else ("I", 12)
    entries: list[int] = []
    try:
        at = struct.unpack_from(f"{order}{word}", data, 8 if big else 4)[0]
        while at and len(entries) < 1000:
            count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, at)[0]
            first = at + (8 if big else 2)
            entries += [first + width * index for index in range(count)]
            at = struct.unpack_from(f"{order}{word}", data, first + width * count)[0]
    except struct.error:
        pass  # a seed whose last directories are cut off
    return entries


def _flip_bits(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64))):
        if found:
            found[_place(rng, found)] ^= 1 << rng.randrange(8)
    return bytes(found)


def _truncate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.choice((0, _place(rng, data), len(data) - rng.randrange(1, 64)))]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    start, at = _place(rng, other), _place(rng, data)
    part = other[start : start + rng.choice((8, 64, 4096, len(other)))]
    return data[:at] + part + data[at + rng.choice((0, len(part))) :]


def _remove(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.choice((1, 2, 8, 512)) :]


def _repeat(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at, size = _place(rng, data), rng.choice((1, 8, 512))
    return data[:at] + data[at : at + size] * rng.choice((2, 3, 100)) + data[at + size :]


def _zeros(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at, size = _place(rng, data), rng.choice((1, 8, 512, 4096))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def _lie(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Put a number that nobody means where a number may be."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    at = _place(rng, data)
    number = (rng.choice(_LIES) + rng.choice((-1, 0, 0, 1))) & ((1 << 8 * size) - 1)
    return data[:at] + number.to_bytes(size, order) + data[at + size :]


def _token(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice(_TOKENS) + data[at + rng.choice((0, 0, 1, 5)) :]


def _number(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    found = list(_NUMBER.finditer(data[: 1 << 16]))
    if not found:
        return _token(rng, data, others)
    one = rng.choice(found)
    text = rng.choice((*_TOKENS[1:10], str(rng.choice(_LIES)).encode(), b"1e300", b"-1e-300", b"0.0"))
    return data[: one.start()] + text + data[one.end() :]


def _lines(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines[: rng.randrange(len(lines) + 1)] if rng.random() < 0.5 else lines * 2)


def _place(rng: random.Random, data: bytes | bytearray) -> int:
    """Somewhere: half of the time near the beginning, where formats say what they are."""
    if not data:
        return 0
    return rng.randrange(min(len(data), rng.choice((64, 1024, 8192, len(data), len(data), len(data)))))


_DAMAGES: tuple[Damage, ...] = (_flip_bits, _flip_bits, _truncate, _splice, _remove, _repeat, _zeros, _lie, _lie, _lie)
