"""`necli model`: the detectors that an enclave can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, settings_of, terminal

if TYPE_CHECKING:
    from necli.models import InstalledModel, ModelEntry

app = typer.Typer(help="List, fetch and check object-detection models.", no_args_is_help=True)


@app.command("list")
def list_models(ctx: typer.Context, json: JsonOption = False) -> None:
    """Show the catalogue, and what is installed."""
    from necli.models import CATALOGUE, installed_models

    models = {model.name: model for model in installed_models(settings_of(ctx).home.models)}
    if settings_of(ctx).json:
        catalogue = [entry.to_json() for entry in CATALOGUE]
        installed = [_model_json(model) for model in models.values()]
        terminal(ctx).print_json({"catalogue": catalogue, "installed": installed})
        return
    rows: list[tuple[str, int | None, str | None, str, str | None]] = [
        (entry.name, entry.classes, entry.licence, entry.source.kind, _download_size(entry))
        for entry in CATALOGUE
    ]
    listed = {entry.name for entry in CATALOGUE}
    rows += [
        (each.name, each.classes, each.licence, "local", None)
        for each in models.values()
        if each.name not in listed
    ]
    terminal(ctx).table(
        None,
        ("model", "classes", "licence", "source", "download", "installed"),
        [(*row, _installed_size(models.get(row[0]))) for row in rows],
        right=("classes", "download", "installed"),
    )


@app.command()
def pull(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A name of the catalogue, or a SavedModel's folder or tarball.",
            show_default="the default model",
        ),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(envvar="NECLI_MODEL_FILE", help="The model's npm package or archive, fetched by hand."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch it even if it is installed.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model, check it, and convert it to a SavedModel if it isn't one."""
    from necli.models import DEFAULT_MODEL
    from necli.models import pull as pull_model

    screen, cache = terminal(ctx), settings_of(ctx).home.models
    pulled = pull_model(model or DEFAULT_MODEL, cache, screen.progress, from_file=from_file, force=force)
    if settings_of(ctx).json:
        screen.print_json(_model_json(pulled))
        return
    screen.facts({"model": pulled.name, "digest": pulled.digest, "folder": pulled.path})


@app.command()
def verify(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="An installed model.", show_default="all of them")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Hash the installed models' files anew, and name the first that differs from what was pulled."""
    from necli.models import verify_installed

    screen = terminal(ctx)
    verified = verify_installed(settings_of(ctx).home.models, model)
    if settings_of(ctx).json:
        screen.print_json({"verified": [_model_json(each) for each in verified]})
        return
    screen.facts({each.name: f"ok, digest {each.digest}" for each in verified})


def _download_size(entry: ModelEntry) -> str:
    about = "" if entry.source.kind == "npm" else "~"  # what TF Hub has is known by its networks only
    return f"{about}{entry.download_bytes / 1e6:.0f} MB"


def _installed_size(model: InstalledModel | None) -> str | None:
    return f"{model.size / 1e6:.1f} MB" if model else None


def _model_json(model: InstalledModel) -> dict[str, object]:
    sample = str(model.sample) if model.sample else None
    return {**model.to_json(), "path": str(model.path), "size": model.size, "sample": sample}
