"""A running enclave with the real payload but for its detector, which sees the same in every photo."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from necli.backends import BuildSpec
from necli.envelope import CONTEXT
from necli.resources import resource_folder
from necli.state import Build
from necli.workflows.policy import update_policy
from necli.workflows.workload import ALIAS, ENCLAVE, Workload

_DETECTOR = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Detection:
    name: str
    score: float
    box: tuple[float, float, float, float]

class Detector:
    input_size = 512

    @classmethod
    def load(cls, folder):
        return cls()

    def warm_up(self):
        pass

    def detect(self, pixels):
        return [Detection("zebra", 0.9, (0.1, 0.2, 0.3, 0.4)), Detection("cat", 0.5, (0.0, 0.0, 1.0, 1.0))]
"""
_HEAVY = ("tensorflow", "tensorflow-hub", "tf-keras", "setuptools")


@contextmanager
def light_enclave(workload: Workload, folder: Path) -> Iterator[Build]:
    """Build, bind the key, run; the workload's state knows the build."""
    source = resource_folder("enclave_payload")
    payload = folder / "payload"
    shutil.copytree(source / "src", payload / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (payload / "src" / "enclave_payload" / "detector.py").write_text(_DETECTOR)
    project = (source / "pyproject.toml").read_text()
    (payload / "pyproject.toml").write_text(re.sub(rf'"({"|".join(_HEAVY)})[^"]*"', '"numpy"', project))
    (folder / "model").mkdir()
    (folder / "model" / "saved_model.pb").write_bytes(b"graph")
    spec = BuildSpec(
        name="light",
        model=folder / "model",
        model_name="light",
        model_digest="ab" * 48,
        payload=payload / "src",
        key_arn=workload.key().arn,
        region=workload.backend.region,
        encryption_context=CONTEXT,
    )
    built = workload.backend.build_eif(spec, workload.progress)
    build = Build(
        path=built.path,
        measurements=built.measurements,
        size=built.size,
        model_name=spec.model_name,
        model_digest=spec.model_digest,
        key_arn=spec.key_arn,
        kms_client="native",
        encryption_context=CONTEXT,
        built_at=datetime.now(UTC),
    )
    workload.update_state(lambda state: state.with_build(build))
    update_policy(workload)
    workload.backend.run_enclave(
        ENCLAVE, build.path, memory_mib=1024, cpus=1, debug=False, progress=workload.progress
    )
    yield build
    workload.backend.stop_enclave(ENCLAVE)


def forget_key_and_build(workload: Workload) -> None:
    """Leave the next test of these services a key and a state of its own."""
    workload.kms("administrator").delete_alias(AliasName=ALIAS)
    shutil.rmtree(workload.home.backups, ignore_errors=True)
    workload.home.state_file.unlink()
