"""Make the README's pictures anew: a real terminal that runs `necli demo`, and the photo that it annotated.

Needs tmux, which is the terminal. Run it with `make pictures`.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

DOCS = Path(__file__).resolve().parent
NECLI = Path(sys.executable).with_name("necli")
WIDTH, HEIGHT = 100, 60
PHOTO_WIDTH = 1000
TIMEOUT_S = 600


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        screen = run_in_terminal(f"NECLI_HOME={shlex.quote(str(home))} {NECLI} demo", folder)
        (DOCS / "demo.svg").write_text(
            as_svg(screen.replace(str(home), "~/.local/state/necli"), "necli demo")
        )
        [annotated, *_] = sorted((home / "demo").glob("*.jpg")) or sorted((home / "demo").glob("*.png"))
        photo = Image.open(annotated).convert("RGB")
        photo.thumbnail((PHOTO_WIDTH, PHOTO_WIDTH))
        photo.save(DOCS / "detected.jpg", quality=85)
        subprocess.run([NECLI, "--home", home, "cleanup", "--yes"], check=True, stdout=subprocess.DEVNULL)


def run_in_terminal(command: str, folder: str) -> str:
    """The screen that `command` leaves behind, as text with ANSI colours."""
    tmux = ["tmux", "-S", f"{folder}/tmux.sock", "-f", "/dev/null"]
    done = Path(folder) / "done"
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), "-s", "picture", "sh"], check=True
    )
    try:
        line = f"clear; {command}; echo $? > {done}; sleep {TIMEOUT_S}"
        subprocess.run([*tmux, "send-keys", "-t", "picture", line, "Enter"], check=True)
        deadline = time.monotonic() + TIMEOUT_S
        while not done.exists():
            if time.monotonic() > deadline:
                sys.exit(f"{command} took longer than {TIMEOUT_S} s")
            time.sleep(0.2)
        capture = [*tmux, "capture-pane", "-t", "picture", "-e", "-p", "-S", "-"]
        screen = subprocess.run(capture, check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    if done.read_text().strip() != "0":
        sys.exit(f"{command} failed:\n{screen}")
    return screen.rstrip()


def as_svg(screen: str, title: str) -> str:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen))
    svg = console.export_svg(title=title, theme=MONOKAI, unique_id="necli")
    # The font is fetched from the network otherwise; a reader's own monospace font does.
    return "\n".join(line for line in svg.splitlines() if "url(" not in line or "clip-path" in line)


if __name__ == "__main__":
    main()
