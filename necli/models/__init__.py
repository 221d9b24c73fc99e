"""Object-detection models: what there is, how it gets into the cache, and whether it is still the same."""

from necli.models.catalogue import CATALOGUE, DEFAULT_MODEL, HubSource, ModelEntry, NpmSource, find_entry
from necli.models.pulling import ensure_model, pull
from necli.models.store import InstalledModel, installed_models, verify_installed, verify_model

__all__ = [
    "CATALOGUE",
    "DEFAULT_MODEL",
    "HubSource",
    "InstalledModel",
    "ModelEntry",
    "NpmSource",
    "ensure_model",
    "find_entry",
    "installed_models",
    "pull",
    "verify_installed",
    "verify_model",
]
