from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from necli.cli.render import Terminal, TerminalProgress
from necli.errors import NotReady


@pytest.fixture
def console() -> Console:
    """Not a terminal, 80 columns."""
    return Console(file=io.StringIO(), width=80, highlight=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_step_is_one_line_with_its_note(console: Console) -> None:
    with TerminalProgress(console).step("Image", total=10, unit="B") as step:
        step.update(5)
        step.note("necli.eif, 8.3 MB")
    assert written(console) == "✓ Image           necli.eif, 8.3 MB\n"


def test_a_step_that_fails_is_marked_and_lets_the_error_through(console: Console) -> None:
    with pytest.raises(NotReady), TerminalProgress(console).step("Key"):
        raise NotReady("no")
    assert written(console) == "✗ Key\n"


def test_steps_within_a_step_are_indented_and_come_first(console: Console) -> None:
    progress = TerminalProgress(console)
    with progress.step("Model"), progress.step("Fetch"):
        pass
    assert written(console) == "  ✓ Fetch\n✓ Model\n"


def test_brackets_are_text_and_control_characters_do_nothing(console: Console) -> None:
    progress = TerminalProgress(console)
    progress.say("[red]a[/red] \x1b[2J\x9b31m\r done")
    assert written(console) == "[red]a[/red] \ufffd[2J\ufffd31m\ufffd done\n"


def test_long_lines_are_not_broken_when_piped(console: Console) -> None:
    TerminalProgress(console).warn("x" * 200)
    assert written(console) == f"! {'x' * 200}\n"


def test_on_a_terminal_a_bar_moves_and_is_gone_at_the_end() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    with TerminalProgress(console).step("Download", total=4_000_000, unit="B") as step:
        step.update(1_000_000)
    screen = written(console)
    assert "/4.0 MB" in screen
    assert screen.rstrip().endswith("Download")


def test_with_json_everything_for_people_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Terminal(json=True)
    screen.banner()
    screen.say("for people")
    screen.table("title", ("a", "b"), [("x", 1.0)], right=("b",))
    screen.print_json({"name": "Käfer"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"name": "Käfer"}
    assert "SIMULATED" in err
    assert "1.00" in err
