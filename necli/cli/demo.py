"""`necli demo`: the whole life of an encrypted photo, in one readable session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, terminal, workload_of
from necli.cli.data import MESSAGE_SUFFIX, show_detection
from necli.cli.lifecycle import ModelOption
from necli.cli.prove import EXIT_CODES, show_attempts

if TYPE_CHECKING:
    from necli.workflows.detect import Detection
    from necli.workflows.workload import Workload

app = typer.Typer()


@app.command()
def demo(
    ctx: typer.Context,
    image: Annotated[
        Path | None, typer.Argument(help="A photo of your own.", show_default="one that comes with the model")
    ] = None,
    model: ModelOption = None,
    min_score: Annotated[
        float, typer.Option(metavar="0..1", min=0, max=1, help="Leave out objects with a lower score.")
    ] = 0.4,
    json: JsonOption = False,
) -> None:
    """The whole life of an encrypted photo, from setup to proof.

    Brings everything up, encrypts a photo, finds its objects inside the enclave, and then tries to read it
    from outside. Exit code 0 only if that was refused.
    """
    from necli.workflows.build import BuildOptions
    from necli.workflows.demo import sample_photo
    from necli.workflows.encrypt import read_input
    from necli.workflows.operate import bring_up
    from necli.workflows.workload import ENCLAVE

    screen, workload = terminal(ctx), workload_of(ctx, local_only=True)
    if image:
        read_input(image)  # a wrong path should be told now, not after the build
    screen.banner()
    screen.heading("1  An enclave, and a key that only it may use")
    with workload.home.lock("demo"):
        bring_up(workload, BuildOptions(model))
    screen.heading("2  A photo, encrypted for that enclave alone")
    photo = image or sample_photo(workload)
    found, saved = _encrypt_and_detect(workload, photo, min_score)
    show_detection(screen, found, saved=saved)
    screen.heading("3  The parent instance tries to read it")
    proof = show_attempts(screen, workload, ENCLAVE)
    if screen.json:
        screen.print_json({"detection": found.to_json(), "annotated": str(saved), "proof": proof.to_json()})
    else:
        screen.say("\nThe enclave keeps running. Next: necli detect, necli status, necli down.")
    raise typer.Exit(EXIT_CODES[proof.verdict])


def _encrypt_and_detect(workload: Workload, photo: Path, min_score: float) -> tuple[Detection, Path]:
    """The message goes to a file first, as it would on the data owner's machine."""
    from necli.home import write_atomically
    from necli.images import annotate, encode_photo
    from necli.workflows.demo import demo_folder
    from necli.workflows.detect import EnclaveSession
    from necli.workflows.encrypt import encrypt_image, read_input

    image, folder = read_input(photo), demo_folder(workload)
    message = folder / (photo.name + MESSAGE_SUFFIX)
    with workload.progress.step("Encrypt") as step:
        write_atomically(message, encrypt_image(workload, image, photo, {}))
        step.note(f"{photo.name}, {len(image):,} bytes, as the data owner")
    with workload.progress.step("Detect") as step:
        found = EnclaveSession(workload).detect(message, min_score=min_score)
        step.note("decrypted and searched inside the enclave")
    saved = folder / f"{photo.stem}-objects.jpg"
    write_atomically(saved, encode_photo(annotate(image, found.objects or ()), ".jpg"), mode=0o644)
    return found, saved
