"""How necli looks: the only module that knows Rich.

Results go to stdout. Steps, warnings and errors go to stderr, and so does everything for people when the
result is JSON. Colours and moving bars appear on a terminal only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from necli.errors import NecliError
from necli.progress import Progress, Step

_TITLE_WIDTH = 14
_CHECK_WIDTH = 16
_NO_ISOLATION = (
    "the local target gives no isolation from this machine:",
    "for learning and testing, never for data that must stay secret",
)
_STYLES = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}


class Terminal:
    """Where a command shows what it did; `json` says that stdout is for a program."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._out = Console(highlight=False, emoji=False)
        self._err = Console(stderr=True, highlight=False, emoji=False)
        self.progress: Progress = TerminalProgress(self._err)

    @property
    def _people(self) -> Console:
        return self._err if self.json else self._out

    def print_json(self, value: Any) -> None:
        """The result for a program, in one piece, on stdout."""
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def say(self, text: str = "", *, style: str = "") -> None:
        """A line of the result for people."""
        self._people.print(Text(_printable(text), style=style), soft_wrap=True)

    def heading(self, text: str) -> None:
        self._people.print(Text(f"\n{_printable(text)}", style="bold"), soft_wrap=True)

    def banner(self) -> None:
        """Say that nothing here protects the enclave from the host."""
        first, second = _NO_ISOLATION
        self._people.print(Text.assemble((" SIMULATED ", "bold black on yellow"), " ", first), soft_wrap=True)
        self._people.print(Text(f"{'':12}{second}"), soft_wrap=True)

    def table(
        self,
        title: str | None,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        right: Sequence[str] = (),
    ) -> None:
        """A table; the columns named in `right` are numbers and align to the right."""
        table = Table(
            *(
                Column(name, justify="right" if name in right else "left", overflow="fold")
                for name in columns
            ),
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            header_style="bold",
        )
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        if title:
            self.say(title, style="bold")
        self._people.print(table)

    def verified(self, text: str) -> None:
        """Something that was proven."""
        self._people.print(Text.assemble(("✓ ", "green"), _printable(text)), soft_wrap=True)

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and values, one a line; a long value isn't broken, so that it can be copied."""
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            line = Text.assemble((f"{name:<{width}}", "dim"), "  ", _cell(value))
            self._people.print(line, soft_wrap=True)

    def finding(
        self, level: str, check: str, detail: str, fix: str | None, *, width: int = _CHECK_WIDTH
    ) -> None:
        """One line of a check-up, and below it what helps; `width` is that of the longest `check`."""
        mark = {"ok": ("✓", "green"), "warning": ("!", "bold yellow")}.get(level, ("✗", "bold red"))
        line = Text.assemble(mark, " ", f"{check:<{width}}", "  ", _printable(detail))
        self._people.print(line, soft_wrap=True)
        if fix:
            indent = " " * (width + 4)
            self._people.print(Text.assemble(indent, ("→ ", "cyan"), _printable(fix)), soft_wrap=True)

    def verdict(self, verdict: str, meaning: str) -> None:
        self._people.print(Text.assemble((verdict, _STYLES.get(verdict, "")), ": ", meaning), soft_wrap=True)

    def diff(self, lines: Sequence[str]) -> None:
        """The lines of a unified diff, in the usual colours."""
        styles = {"+": "green", "-": "red", "@": "cyan"}
        for line in lines:
            text = _printable(line.rstrip("\n"))
            style = "bold" if text.startswith(("+++", "---")) else styles.get(text[:1], "")
            self._people.print(Text(text, style=style), soft_wrap=True)

    def error(self, error: NecliError) -> None:
        """What failed, why, and the one command that helps."""
        if self.json:
            self.print_json({"error": error_json(error)})
        print_error(self._err, error)

    def error_of_one(self, file: object, error: NecliError) -> dict[str, str | None]:
        """An error that ends the work on one file only; what JSON says about it."""
        print_error(self._err, error, about=f"{file}: " if str(file) not in error.message else "")
        return error_json(error)


def error_json(error: NecliError) -> dict[str, str | None]:
    return {"code": error.code or _code_of(error), "message": error.message, "hint": error.hint}


def print_error(console: Console, error: NecliError, *, about: str = "") -> None:
    console.print(Text.assemble(("error: ", "bold red"), _printable(about + error.message)), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("hint: ", "bold cyan"), _printable(error.hint)), soft_wrap=True)


def _code_of(error: NecliError) -> str:
    """`NotReady` gives `not_ready`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(error).__name__).lstrip("_")


def _cell(value: object) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.2f}")
    text = _printable("–" if value is None else str(value))
    return Text(text, style=_STYLES.get(text, ""))


def _printable(text: str) -> str:
    """Text from outside without what would drive the terminal: escape sequences, carriage returns."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


class TerminalProgress(Progress):
    """One line a step, written when it is done; a bar or a spinner meanwhile, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._depth = 0

    @contextmanager
    def step(self, title: str, *, total: float | None = None, unit: str = "") -> Iterator[Step]:
        started = time.monotonic()
        self._depth += 1
        bars = self._bars = self._bars or self._start()
        step = _TerminalStep(bars, bars.add_task(_printable(title), total=total, unit=unit))
        mark = ("✗", "bold red")
        try:
            yield step
            mark = ("✓", "green")
        finally:
            bars.remove_task(step.task)
            self._depth -= 1
            if self._depth == 0:
                bars.stop()
                self._bars = None
            self._finish(mark, title, step.result, time.monotonic() - started)

    def say(self, text: str) -> None:
        self._console.print(Text(_printable(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(Text.assemble(("!", "bold yellow"), f" {_printable(text)}"), soft_wrap=True)

    def _start(self) -> Bars:
        bars = Bars(
            SpinnerColumn(style="cyan", table_column=Column(width=1)),
            TextColumn("{task.description}", markup=False),
            _AmountColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        bars.start()
        return bars

    def _finish(self, mark: tuple[str, str], title: str, note: str, seconds: float) -> None:
        title = _printable(title)
        took = f"{seconds:.1f} s" if seconds >= 0.05 else ""
        line = Text.assemble("  " * self._depth, mark, " ", f"{title:<{_TITLE_WIDTH}}" if note else title)
        if note:
            line.append(f"  {_printable(note)}")
        gap = self._console.width - line.cell_len - len(took)
        line.append(f"{' ' * max(gap, 2)}{took}" if took else "", style="dim")
        self._console.print(line, soft_wrap=True)


class _TerminalStep(Step):
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self.task = task
        self.result = ""

    def update(self, completed: float, total: float | None = None) -> None:
        self._bars.update(self.task, completed=completed, total=total)

    def note(self, text: str) -> None:
        self.result = text


class _AmountColumn(BarColumn):
    """A bar with amounts for work of known size, and nothing for the rest."""

    def __init__(self) -> None:
        super().__init__(bar_width=24)
        self._bytes = DownloadColumn()
        self._count = MofNCompleteColumn()

    def render(self, task: Task) -> Any:
        if task.total is None:
            return Text()
        amount = self._bytes if task.fields.get("unit") == "B" else self._count
        grid = Table.grid(padding=(0, 1))
        grid.add_row(super().render(task), amount.render(task))
        return grid
