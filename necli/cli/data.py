"""`necli encrypt` and `necli detect`: what happens to photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from necli.cli.common import JsonOption, terminal, workload_of
from necli.errors import NecliError, UsageError

if TYPE_CHECKING:
    from necli.cli.render import Terminal
    from necli.progress import Progress
    from necli.workflows.detect import Detection

app = typer.Typer()

MESSAGE_SUFFIX = ".encrypted"

ContextOption = Annotated[
    list[str] | None,
    typer.Option("--context", metavar="NAME=VALUE", help="A pair to add to the encryption context."),
]
SealToOption = Annotated[
    Path | None,
    typer.Option(metavar="PUBLIC_KEY", help="Seal the answer to this X25519 key: the parent can't read it."),
]
EnclaveOption = Annotated[str, typer.Option("--enclave", metavar="NAME", help="Which enclave to ask.")]


@app.command()
def encrypt(
    ctx: typer.Context,
    image: Annotated[Path, typer.Argument(help="A JPEG, PNG or WebP file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the message goes.", show_default=f"IMAGE{MESSAGE_SUFFIX}"),
    ] = None,
    context: ContextOption = None,
    seal_to: SealToOption = None,
    json: JsonOption = False,
) -> None:
    """Encrypt an image for the enclave, as the data owner.

    The message is in the AWS Encryption SDK's format. Whoever has it can do nothing with it but send it to
    the enclave: KMS gives its data key to the measured image alone.
    """
    from necli.home import write_atomically
    from necli.workflows.encrypt import encrypt_image, read_input
    from necli.workflows.operate import revive_services

    screen, workload = terminal(ctx), workload_of(ctx)
    revive_services(workload, "kms")
    with screen.progress.step("Encrypt") as step:
        message = encrypt_image(workload, read_input(image), image, _pairs(context, seal_to))
        target = output or image.with_name(image.name + MESSAGE_SUFFIX)
        write_atomically(target, message, mode=0o644)
        step.note(f"{len(message):,} bytes, AES-256-GCM with key commitment")
    if screen.json:
        screen.print_json({"file": str(image), "message": str(target), "bytes": len(message)})
    else:
        screen.say(str(target))


@app.command()
def detect(
    ctx: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|MESSAGE", help="Photos, or what necli encrypt wrote.")
    ],
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE|FOLDER", help="Save each photo with boxes and labels drawn into it."),
    ] = None,
    min_score: Annotated[
        float, typer.Option(metavar="0..1", min=0, max=1, help="Leave out objects with a lower score.")
    ] = 0.4,
    context: ContextOption = None,
    seal_to: SealToOption = None,
    enclave: EnclaveOption = "necli",
    json: JsonOption = False,
) -> None:
    """Find objects in photos, inside the enclave.

    A photo that isn't encrypted yet is encrypted first, on this machine. The enclave's receipt for each
    answer is verified: it was given by the image that was built, on this very input.
    """
    from necli.workflows.detect import EnclaveSession
    from necli.workflows.operate import revive

    screen, workload = terminal(ctx), workload_of(ctx)
    revive(workload, enclave)
    pairs, saving = _pairs(context, seal_to), Saving(save, files, screen.progress)
    session = EnclaveSession(workload, enclave)
    results: list[dict[str, Any]] = []
    failure: NecliError | None = None
    for file in files:
        try:
            found = session.detect(file, min_score=min_score, context=pairs)
            show_detection(screen, found, saved=saving.save(found))
            results.append(found.to_json())
        except NecliError as exc:
            failure = failure or exc
            results.append({"file": str(file), "error": screen.error_of_one(file, exc)})
    if screen.json:
        screen.print_json({"results": results})
    if workload.backend.simulated:
        screen.banner()
    if failure:
        raise typer.Exit(failure.exit_code)


class Saving:
    """Where the annotated photos go: one photo to a file, several into a folder.

    :raises UsageError: several photos would overwrite each other, or the format can't be written.
    """

    def __init__(self, target: Path | None, files: Sequence[Path], progress: Progress) -> None:
        from necli.images import SUFFIXES

        self._target = target
        self._progress = progress
        self._into_folder = False
        if target is None:
            return
        self._into_folder = len(files) > 1 or target.is_dir() or not target.suffix
        if self._into_folder and target.exists() and not target.is_dir():
            raise UsageError(f"{target} is a file", hint="give --save a folder for several photos")
        if not self._into_folder and target.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"can't write a photo as {target.suffix}", hint=f"use one of {', '.join(SUFFIXES)}"
            )

    def save(self, found: Detection) -> Path | None:
        from necli.home import write_atomically
        from necli.images import annotate, encode_photo

        if self._target is None:
            return None
        if found.photo is None:
            self._progress.warn(f"{found.file} is encrypted: there is no photo here to draw on")
            return None
        if found.objects is None:
            self._progress.warn(f"what was found in {found.file} is sealed: there is nothing to draw")
            return None
        path = self._target
        if self._into_folder:
            path = self._target / f"{Path(found.file).stem}-objects.jpg"
        write_atomically(path, encode_photo(annotate(found.photo, found.objects), path.suffix), mode=0o644)
        return path


def show_detection(screen: Terminal, found: Detection, *, saved: Path | None) -> None:
    count = len(found.objects or ())
    took = f"{found.timings_ms['total']:.0f} ms in the enclave"
    title = f"{Path(found.file).name}: {count} object{'' if count == 1 else 's'}, {took}"
    if found.objects is None:
        screen.say(f"{Path(found.file).name}: sealed to the data owner, {took}")
        screen.say("  he opens it with necli receipt open, in what --json prints")
    elif found.objects:
        rows = [(each.name, each.score, *each.box) for each in found.objects]
        boxes = ("top", "left", "bottom", "right")
        screen.table(title, ("object", "score", *boxes), rows, right=("score", *boxes))
    else:
        screen.say(title)
    screen.verified("receipt verified: the measured image gave this answer")
    if found.photo is not None:
        screen.say(
            "  plaintext seen on this machine by necli detect;\n"
            "  use necli encrypt on the data owner's machine"
        )
    if saved:
        screen.say(f"  annotated photo: {saved}")


def _pairs(context: Sequence[str] | None, owner: Path | None = None) -> Mapping[str, str]:
    from necli.cli.verification import read_file
    from necli.sealing import seal_to

    pairs = seal_to(read_file(owner)) if owner else {}
    for text in context or ():
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise UsageError(f"--context {text} is not of the form NAME=VALUE")
        if name.startswith("aws-crypto-"):
            raise UsageError(f"the name {name} is reserved by the AWS Encryption SDK")
        pairs[name] = value
    return pairs
