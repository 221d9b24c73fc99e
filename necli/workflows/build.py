"""From a model to a measured enclave image."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from necli.backends import BuildSpec, BuiltEif
from necli.envelope import CONTEXT
from necli.errors import MeasurementMismatch, UsageError
from necli.home import host_errors
from necli.models import DEFAULT_MODEL, InstalledModel, ensure_model
from necli.nitro.nitro_cli import Signing
from necli.progress import Progress
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
    base_image: str | None = None
    signing: Signing | None = None
    check: bool = False
    """Build a second time, with nothing out of a cache, and compare."""


def signing_with(certificate: Path | None, private_key: str | None) -> Signing | None:
    """:raises UsageError: only one of the two is given."""
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise UsageError("a signature needs certificate and key", hint="give both options, or neither")
    return Signing(certificate, private_key)


def build_image(workload: Workload, options: BuildOptions) -> Build:
    """Build the image for the key and record what it measures.

    :raises NotReady: there is no key to bake in.
    :raises MeasurementMismatch: the file on disk isn't what was meant to be written, or a second build
        measures something else (code `not_reproducible`).
    """
    if options.signing and workload.target == "local":
        raise UsageError("images for the local target aren't signed", hint="leave out --signing-certificate")
    if options.kms_client == "kmstool" and workload.target == "local":
        raise UsageError(
            "kmstool_enclave_cli reaches KMS over vsock alone, which the local target hasn't",
            hint="leave out --kms-client",
        )
    key = workload.key()
    model = _model(workload, options.model)
    # kmstool_enclave_cli has no way to send an encryption context.
    context = CONTEXT if options.kms_client == "native" else {}
    spec = _spec(workload, key, model, options, context)
    built = workload.backend.build_eif(spec, workload.progress)
    _verify(workload, built)
    if options.check:
        _build_again(workload, spec, built)
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
    workload: Workload, key: Key, model: InstalledModel, options: BuildOptions, context: dict[str, str]
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
        kms_client=options.kms_client,
        base_image=options.base_image,
        signing=options.signing,
    )


def _verify(workload: Workload, built: BuiltEif) -> None:
    from necli.eif import read_eif

    with workload.progress.step("Measurements") as step:
        if read_eif(built.path).measurements != built.measurements:
            raise MeasurementMismatch(
                f"{built.path} doesn't measure what was written into it", hint="run necli build again"
            )
        step.note(f"PCR0 {built.measurements.pcr0.hex()[:16]}… read back from the file")


def _build_again(workload: Workload, spec: BuildSpec, built: BuiltEif) -> None:
    from necli.eif import diff_eifs, read_eif

    with workload.progress.step("Second build") as step:
        again = workload.backend.build_eif(replace(spec, name=f"{spec.name}-check", fresh=True), Progress())
        if again.measurements != built.measurements:
            found = diff_eifs(read_eif(built.path), read_eif(again.path))
            first = ", ".join(change.name for change in found.files[:3])
            raise MeasurementMismatch(
                f"a second build has another {' and '.join(found.pcrs)}: {', '.join(found.sections)} differ"
                + (f", {first} first of {len(found.files)} files" if first else ""),
                hint=f"necli eif diff {built.path} {again.path}",
                code="not_reproducible",
            )
        again.path.unlink()
        step.note("measures the same")


def _copy(source: Path, target: Path) -> None:
    with host_errors(f"can't write {target}"):
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
