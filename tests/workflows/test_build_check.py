"""`build --check` and its neighbours, on the local target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from necli.backends import BuildSpec, BuiltEif
from necli.backends.local import LocalBackend
from necli.errors import MeasurementMismatch, UsageError
from necli.home import Home
from necli.nitro.nitro_cli import Signing
from necli.progress import Progress
from necli.settings import DEFAULT_REGION
from necli.workflows.build import BuildOptions, build_image, signing_with
from necli.workflows.workload import Workload
from tests.local.payloads import make_spec


@pytest.fixture
def fresh_cache(workload: Workload, tmp_path: Path) -> Workload:
    """The models that are copied here are no others' business."""
    return replace(workload, home=Home(workload.home.state, tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_spec(tmp_path).model)


def test_a_second_build_measures_the_same_and_leaves_nothing(fresh_cache: Workload, model: str) -> None:
    built = build_image(fresh_cache, BuildOptions(model, check=True))
    assert [path.name for path in fresh_cache.home.builds.glob("*.eif")] == [built.path.name]


class UnsteadyBackend(LocalBackend):
    """Builds another image each time, as a clock or a random order in a model would make it."""

    def build_eif(self, spec: BuildSpec, progress: Progress) -> BuiltEif:
        (spec.model / "saved_model.pb").write_bytes(spec.name.encode())
        return super().build_eif(spec, progress)


def test_a_build_that_is_another_each_time_is_caught_and_kept_to_look_at(
    fresh_cache: Workload, model: str
) -> None:
    unsteady = replace(fresh_cache, backend=UnsteadyBackend(fresh_cache.home, DEFAULT_REGION))
    with pytest.raises(MeasurementMismatch, match=r"PCR0 and PCR2: .*model/saved_model.pb") as error:
        build_image(unsteady, BuildOptions(model, check=True))
    assert error.value.code == "not_reproducible"
    assert Path(str(error.value.hint).split()[-1]).is_file()
    assert fresh_cache.state.build is None, "what can't be built again isn't recorded"


def test_a_signature_needs_both_of_its_parts(workload: Workload, tmp_path: Path) -> None:
    assert signing_with(None, None) is None
    assert signing_with(tmp_path, "arn:aws:kms:…") == Signing(tmp_path, "arn:aws:kms:…")
    with pytest.raises(UsageError, match="certificate and key"):
        signing_with(tmp_path, None)
    with pytest.raises(UsageError, match="aren't signed"):
        build_image(workload, BuildOptions(signing=Signing(tmp_path, "key.pem")))
