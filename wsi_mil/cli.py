"""The command line: one thin function per command."""


def main() -> None:
    """Run ``wsimil``."""
