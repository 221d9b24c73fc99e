"""The photo for the demonstration, and where its results go."""

from __future__ import annotations

from pathlib import Path

from necli.errors import NotReady
from necli.models import InstalledModel
from necli.workflows.workload import Workload


def demo_folder(workload: Workload) -> Path:
    return workload.home.state / "demo"


def sample_photo(workload: Workload) -> Path:
    """The photo that came with the built model.

    :raises NotReady: it came without one.
    """
    build = workload.build()
    model = InstalledModel.load(workload.home.models / build.model_name)
    if model is None or model.sample is None:
        raise NotReady(
            f"the model {build.model_name} came without a photo", hint="necli demo photo.jpg, with your own"
        )
    return model.sample
