"""How long `necli --help` takes, as a multiple of what Typer and Rich alone take to import.

Both are run in turn, so that whatever else this machine does falls on both. Exits with 1 above the limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT = 1.5
ROUNDS = 15
COMMANDS = {
    "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    "necli --help": [sys.executable, "-m", "necli", "--help"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    for command in COMMANDS.values():
        seconds(command)  # warm the caches
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name:<20} {median * 1000:6.0f} ms  (median of {ROUNDS})")
    ratio = medians["necli --help"] / medians["import typer, rich"]
    print(f"{'ratio':<20} {ratio:6.2f}     (limit {LIMIT})")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
