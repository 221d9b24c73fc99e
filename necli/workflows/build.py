"""From a model to a measured enclave image."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from necli.backends import BuildSpec, BuiltEif
from necli.envelope import CONTEXT
from necli.errors import MeasurementMismatch
from necli.home import host_errors
from necli.models import DEFAULT_MODEL, InstalledModel, ensure_model
from necli.resources import resource_folder
from necli.state import Build, Key
from necli.workflows.workload import Workload

KmsClient = Literal["native", "kmstool"]


@dataclass(frozen=True)
class BuildOptions:
    model: str | None = None
    """A name of the catalogue, or the path of a SavedModel; None: that of the last build, or the default."""
    kms_client: KmsClient = "native"
    output: Path | None = None
    """Where to put a copy of the image."""


def build_image(workload: Workload, options: BuildOptions) -> Build:
    """Build the image for the key and record what it measures.

    :raises NotReady: there is no key to bake in.
    :raises MeasurementMismatch: the file on disk isn't what was meant to be written.
    """
    key = workload.key()
    model = _model(workload, options.model)
    # kmstool_enclave_cli has no way to send an encryption context.
    context = CONTEXT if options.kms_client == "native" else {}
    spec = _spec(workload, key, model, options.kms_client, context)
    built = workload.backend.build_eif(spec, workload.progress)
    _verify(workload, built)
    build = Build(
        path=built.path,
        measurements=built.measurements,
        size=built.size,
        model_name=model.name,
        model_digest=model.digest,
        key_arn=key.arn,
        kms_client=options.kms_client,
        encryption_context=context,
        built_at=datetime.now(UTC),
    )
    workload.update_state(lambda state: state.with_build(build))
    if options.output:
        _copy(built.path, options.output)
    return build


def _model(workload: Workload, wanted: str | None) -> InstalledModel:
    last = workload.state.build
    name = wanted or (last.model_name if last else DEFAULT_MODEL)
    model = ensure_model(name, workload.home.models, workload.progress)
    with workload.progress.step("Model") as step:
        step.note(f"{model.name}, every file as it was pulled")
    return model


def _spec(
    workload: Workload, key: Key, model: InstalledModel, kms_client: KmsClient, context: dict[str, str]
) -> BuildSpec:
    return BuildSpec(
        name="necli",
        model=model.path,
        model_name=model.name,
        model_digest=model.digest,
        payload=resource_folder("enclave_payload") / "src",
        key_arn=key.arn,
        region=workload.backend.region,
        encryption_context=context,
        kms_client=kms_client,
    )


def _verify(workload: Workload, built: BuiltEif) -> None:
    from necli.eif import read_eif

    with workload.progress.step("Measurements") as step:
        if read_eif(built.path).measurements != built.measurements:
            raise MeasurementMismatch(
                f"{built.path} doesn't measure what was written into it", hint="run necli build again"
            )
        step.note(f"PCR0 {built.measurements.pcr0.hex()[:16]}… read back from the file")


def _copy(source: Path, target: Path) -> None:
    with host_errors(f"can't write {target}"):
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
