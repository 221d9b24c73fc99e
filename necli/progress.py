"""How the library tells what it is doing, without knowing a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Step:
    """One piece of work on the way; the base class stays silent."""

    def update(self, completed: float, total: float | None = None) -> None:
        """Report work done so far, in the step's own unit."""

    def note(self, text: str) -> None:
        """Say what came out of the step: shown behind its title when it is done."""


class Progress:
    """Silent progress; the command line's subclass draws it."""

    @contextmanager
    def step(self, title: str, *, total: float | None = None, unit: str = "") -> Iterator[Step]:
        """One step that takes a while. `unit` is "B" for bytes, else a word or nothing."""
        yield Step()

    def say(self, text: str) -> None:
        """A line the user should see."""

    def warn(self, text: str) -> None:
        """A line the user should not miss."""
