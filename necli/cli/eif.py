"""`necli eif`: look into enclave image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, settings_of, terminal

if TYPE_CHECKING:
    from necli.eif import EifImage

app = typer.Typer(no_args_is_help=True)
_MOST_FILES = 40


@app.callback()
def eif() -> None:
    """Look into enclave image files."""


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


@app.command()
def diff(
    ctx: typer.Context,
    first: Annotated[Path, typer.Argument(help="An enclave image file (.eif).")],
    second: Annotated[Path, typer.Argument(help="The one to compare it with.")],
    json: JsonOption = False,
) -> None:
    """Say which measurement, section and file moved from one image to another.

    Exit code 1 if they differ.
    """
    from necli.eif import diff_eifs, read_eif

    screen = terminal(ctx)
    with screen.progress.step(f"comparing {first.name} with {second.name}"):
        found = diff_eifs(read_eif(first), read_eif(second))
    if settings_of(ctx).json:
        screen.print_json(found.to_json())
    elif found.is_empty:
        screen.say("both measure the same, and hold the same metadata")
    else:
        screen.facts(
            {
                "measurements": ", ".join(found.pcrs) or "the same in both",
                "sections": ", ".join(found.sections),
            }
        )
        if found.files:
            rows = [(f.ramdisk, f.name, f.change, "; ".join(f.what)) for f in found.files[:_MOST_FILES]]
            screen.table(None, ("ramdisk", "file", "", "what"), rows, right=("ramdisk",))
        if len(found.files) > _MOST_FILES:
            screen.say(f"and {len(found.files) - _MOST_FILES} more files: see --json")
    if not found.is_empty:
        raise typer.Exit(1)


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
