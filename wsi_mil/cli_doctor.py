"""`wsimil doctor`: is this machine fit. One thin function, as in `cli`."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON instead of lines.")] = False,
) -> None:
    """Look whether this machine has what wsimil needs, put tiny slides through every stage, and say what to do."""
    from wsi_mil.doctor import examine
    from wsi_mil.screen import show_findings

    show_findings(examine(), as_json)
