"""`necli eif`: look into enclave image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, settings_of, terminal

if TYPE_CHECKING:
    from necli.eif import EifImage

app = typer.Typer(no_args_is_help=True)


@app.callback()
def eif() -> None:
    """Look into enclave image files."""  # and keep `describe` a word of its own, though it is the only one


@app.command()
def describe(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="An enclave image file (.eif).")],
    json: JsonOption = False,
) -> None:
    """Check an image, measure it, and say what it holds.

    With --json, in the words of nitro-cli describe-eif.
    """
    from necli.eif import describe as describe_eif
    from necli.eif import read_eif

    screen = terminal(ctx)
    with screen.progress.step(f"measuring {file.name}"):
        image = read_eif(file)
    if settings_of(ctx).json:
        screen.print_json(describe_eif(image))
        return
    screen.facts(_facts(image))
    screen.table(
        None,
        ("section", "offset", "bytes"),
        [(section.type.name.lower(), section.offset, section.size) for section in image.sections],
        right=("offset", "bytes"),
    )


def _facts(image: EifImage) -> dict[str, object]:
    metadata = image.metadata or {}
    build = metadata.get("BuildMetadata", {})
    return {
        "image": f"{metadata.get('ImageName', '–')} {metadata.get('ImageVersion', '')}".rstrip(),
        "format": f"version {image.header.version}, {image.header.architecture}",
        "built": f"{build.get('BuildTime', '–')} by {build.get('BuildTool', '–')}",
        "signed": _signed(image),
        **{f"PCR{index}": value.hex() for index, value in image.measurements.pcrs().items()},
    }


def _signed(image: EifImage) -> str:
    if image.signature is None:
        return "no"
    return "yes" if image.signature.is_valid else "yes, but the signature isn't one of this image's PCR0"
