"""`wsimil weights`: the weight files of this machine. One thin function per command, as in `cli`."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_mil.arguments import Overwrite, TrustCheckpoint

app = typer.Typer(name="weights", help="Keep, list and convert weight files of encoders.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The encoder: `wsimil encoders` lists them.")]


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The weight file, or a folder with one in it.")],
    trust: TrustCheckpoint = False,
) -> None:
    """Verify a weight file and copy it where extract, run and predict find it."""
    from wsi_mil.encoders import add_weights

    entry = add_weights(name, file, trust)
    typer.echo(f"{name}: {entry.path} (sha256 {entry.sha256})")


@app.command("list")
def list_() -> None:
    """List the weight files that were added."""
    from wsi_mil.encoders import cache
    from wsi_mil.progress import print_table

    kept = cache.everything_kept()
    if not kept:
        typer.echo(f"{cache.folder()} holds no weights: `wsimil weights add NAME FILE` adds some")
        return
    rows = [[entry.encoder, _size(entry.path), entry.sha256[:12], entry.origin] for entry in kept]
    print_table(f"{cache.folder()}", ["encoder", "size", "sha256", "copied from"], rows)


@app.command()
def path(name: Name) -> None:
    """Print where the weights of an encoder are on this machine."""
    from wsi_mil.encoders import find_encoder, sources
    from wsi_mil.errors import OptionError, WeightsError

    spec = find_encoder(name)
    if not spec.arch:
        raise OptionError(f"{name} is built in and has no weights: `wsimil extract --model {name}` just works")
    found = sources.local_file(spec)
    if found is None:
        raise WeightsError(
            f"no weights of {name} are on this machine: fetch them, and `wsimil weights add {name} FILE`"
        )
    typer.echo(found)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A weight file of any kind.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The safetensors file to write.")],
    trust: TrustCheckpoint = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the tensors of a weight file as safetensors, which hold no code."""
    from wsi_mil import weights

    read = weights.convert(source, target, trust, overwrite)
    typer.echo(f"{target}: {len(read.state)} tensors" + (f" of {'.'.join(read.chosen)}" if read.chosen else ""))
    if read.left_out:
        typer.echo(f"left out: {', '.join(read.left_out)}")


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:,.1f} MB" if file.is_file() else "gone"
