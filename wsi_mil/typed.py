"""What was typed, so that pages tell how to make the same again."""

import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from wsi_mil.guards import redacted

_WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


@contextmanager
def typing(words: Sequence[str]) -> Generator[None]:
    """While this lasts, these are the words behind ``wsimil``."""
    token = _WORDS.set(tuple(words))
    try:
        yield
    finally:
        _WORDS.reset(token)


def typed() -> list[str]:
    """The command as a shell takes it, but for keys and signatures in addresses; none where Python called."""
    return [shlex.join(["wsimil", *map(redacted, _WORDS.get())])] if _WORDS.get() else []
