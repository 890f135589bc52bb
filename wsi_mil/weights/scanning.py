"""A pickle looked through before torch reads it: nothing in it may become a word of a hundred kilobytes in an error.

torch searches the message of its own refusal for advice to give, in a time that grows with the square of the longest
word in it. Where damage makes all that follows the name of a function, or calls a text in place of one, that word is
what is left of the file, and torch is busy for half a minute or for hours. So such files are refused here, in one pass
over their opcodes that builds nothing: what is on the stack is known only as a name, a mark or anything else, as
`pickletools.dis` follows it. What may be called and built, torch decides (``weights_only``).
"""

import pickle
import pickletools
import zipfile
from io import BufferedReader
from pathlib import Path

_LONGEST_NAME = 256  # of a function or class with its module
_OLD_PICKLES = 5  # at the beginning of a file as torch wrote them before 1.6; then tensors follow
_NAMED, _MARK, _OTHER = "named", "mark", "other"
_PUT, _GET, _CALL = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET"), ("REDUCE", "NEWOBJ")


def require_short_words(path: Path) -> None:
    """Refuse a file of torch's that could keep torch busy with the words of its own error.

    Raises:
        UnpicklingError: a name in it is longer than any, or something is called that is no function by its name.
        ValueError, LookupError: its pickle is damaged.
        RuntimeError, BadZipFile, zlib.error: so is the archive around it.
    """
    with path.open("rb") as file:
        if file.peek(2)[:2] != b"PK":
            for _ in range(_OLD_PICKLES):
                if file.peek(1):
                    _follow(file)
            return
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.filename.rpartition("/")[2] == "data.pkl":
                _follow_packed(archive, part)


def _follow_packed(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    try:
        with archive.open(part) as packed:
            _follow(BufferedReader(packed))  # ty: ignore[invalid-argument-type]
    except OSError as error:  # its directory points to before the file's beginning
        raise ValueError(f"its archive: {error.strerror or error}") from error


def _follow(file: BufferedReader) -> None:
    """Go through one pickle to its end, or to what torch does not read either."""
    stack, memo = list[str](), dict[object, str]()
    try:
        for op, told, _ in pickletools.genops(file):
            if op.proto > 2:
                return
            if op.name == "GLOBAL":
                _require_short(str(told))
                stack.append(_NAMED)
            elif op.name in _PUT:
                memo[told] = stack[-1]
            elif op.name in _GET:
                stack.append(memo[told])
            else:
                if op.name in _CALL and stack[-2] != _NAMED:
                    raise pickle.UnpicklingError("something is called that is no function")
                _change(stack, op)
    except UnicodeDecodeError as error:  # other programs' names may be so, and torch's own are not
        raise pickle.UnpicklingError("a name is not ASCII") from error


def _require_short(name: str) -> None:
    if len(name) > _LONGEST_NAME:
        raise pickle.UnpicklingError(f"a name of {len(name):,} characters")


def _change(stack: list[str], op: pickletools.OpcodeInfo) -> None:
    """Take from the stack, and put there, what an opcode does.

    Raises:
        IndexError: it takes what is not there.
    """
    taken = op.stack_before
    if pickletools.markobject in taken:
        while stack.pop() != _MARK:
            pass
        taken = taken[: taken.index(pickletools.markobject)]
    for _ in taken:
        stack.pop()
    stack += [_MARK if one is pickletools.markobject else _OTHER for one in op.stack_after]
