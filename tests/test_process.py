"""Daemons: found by what they are, never by a stale file; and nothing survives that can't be found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from necli.errors import Conflict, ServiceFailed
from necli.home import read_json, write_json_atomically
from necli.process import Daemon, ProcessId

SLEEP = "import time; print('up', flush=True); time.sleep(60)"


def python(folder: Path, code: str) -> Daemon:
    return Daemon("sleeper", folder, (sys.executable, "-c", code))


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Daemon]:
    daemon = python(tmp_path, SLEEP)
    yield daemon
    daemon.stop()


def is_up(daemon: Daemon) -> bool:
    return daemon.log_tail() == ["up"]


def test_a_daemon_starts_once_and_is_found_again(sleeper: Daemon) -> None:
    assert sleeper.pid is None
    assert sleeper.start(lambda: is_up(sleeper)) is True
    assert sleeper.start(lambda: True) is False

    again = Daemon("sleeper", sleeper.folder)
    assert again.pid == sleeper.pid
    assert again.running_argv == list(sleeper.argv)


def test_stop_ends_it_and_says_whether_there_was_something_to_stop(sleeper: Daemon) -> None:
    sleeper.start(lambda: is_up(sleeper))
    assert sleeper.stop() is True
    assert sleeper.pid is None
    assert sleeper.stop() is False


def test_one_that_ignores_term_is_killed(tmp_path: Path) -> None:
    daemon = python(tmp_path, "import signal; signal.signal(15, signal.SIG_IGN);" + SLEEP)
    daemon.start(lambda: is_up(daemon))
    assert daemon.stop(grace=0.3) is True
    assert daemon.pid is None


def test_after_a_kill_9_the_next_start_works(sleeper: Daemon) -> None:
    sleeper.start(lambda: is_up(sleeper))
    first = sleeper.pid
    assert first
    os.kill(first, signal.SIGKILL)
    while sleeper.pid:
        time.sleep(0.01)
    assert sleeper.start(lambda: is_up(sleeper)) is True
    assert sleeper.pid != first


def test_a_stale_pid_file_that_names_another_process_is_harmless(sleeper: Daemon) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.DEVNULL)
    try:
        record = {"pid": bystander.pid, "start_time": 1, "argv": list(sleeper.argv)}
        write_json_atomically(sleeper.folder / "sleeper.pid", record)
        assert sleeper.pid is None
        assert sleeper.stop() is False
        assert bystander.poll() is None
        assert sleeper.start(lambda: is_up(sleeper)) is True
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_damaged_pid_file_counts_as_not_running(sleeper: Daemon, content: str) -> None:
    (sleeper.folder / "sleeper.pid").write_text(content)
    assert sleeper.pid is None


def test_one_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    daemon = python(tmp_path, "raise SystemExit('the port is taken')")
    with pytest.raises(ServiceFailed, match=r"ended before it was ready\n  the port is taken") as caught:
        daemon.start(lambda: False)
    assert str(daemon.log) in str(caught.value.hint)


def test_one_that_is_never_ready_is_reported_and_not_left_behind(tmp_path: Path) -> None:
    daemon = python(tmp_path, SLEEP)
    with pytest.raises(ServiceFailed, match=r"wasn't ready within 0\.5 s\n  up"):
        daemon.start(lambda: False, timeout=0.5)
    assert daemon.pid is None


def test_the_log_of_the_run_before_is_kept(sleeper: Daemon) -> None:
    for _ in range(2):
        sleeper.start(lambda: is_up(sleeper))
        sleeper.stop()
    assert sleeper.log.with_suffix(".log.1").read_text() == "up\n"


def test_of_two_starts_at_once_one_wins_and_both_are_content(tmp_path: Path) -> None:
    daemon = python(tmp_path, SLEEP)
    started: list[bool] = []

    def start() -> None:
        started.append(daemon.start(lambda: is_up(daemon)))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(started) == [False, False, False, True]
    daemon.stop()


def test_a_start_that_hangs_elsewhere_is_a_conflict(sleeper: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("necli.process._START_BY_ANOTHER_S", 0.1)
    with open(sleeper.folder / "sleeper.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another necli is starting sleeper"):
            sleeper.start(lambda: True)


def test_a_starter_that_dies_before_the_pid_file_stands_leaves_nothing_running(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w'); {SLEEP}"
    starter = f"""
import os, necli.process as process
process.write_json_atomically = lambda *a: os._exit(9)
from pathlib import Path
process.Daemon("sleeper", Path({str(tmp_path)!r}), ({sys.executable!r}, "-c", {code!r})).start(lambda: True)
"""
    assert subprocess.run([sys.executable, "-c", starter], check=False).returncode == 9
    daemon = python(tmp_path, SLEEP)
    assert daemon.start(lambda: is_up(daemon), timeout=5) is True
    daemon.stop()
    assert not marker.exists()


def test_a_daemon_inherits_no_open_files_and_no_environment(tmp_path: Path) -> None:
    look = "import os; print(sorted(os.environ), os.getcwd(), len(os.listdir('/proc/self/fd')), flush=True);"
    with open(tmp_path / "secret", "w") as secret:
        os.set_inheritable(secret.fileno(), True)
        daemon = python(tmp_path, look + "import time; time.sleep(60)")
        daemon.start(lambda: bool(daemon.log_tail()))
    names, cwd_and_files = daemon.log_tail()[0].split("] ")
    assert "AWS" not in names
    assert "HOME" not in names
    assert cwd_and_files == "/ 5"  # stdin, stdout, stderr, the lock, and the folder being listed
    daemon.stop()


def test_a_zombie_counts_as_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while ProcessId.now(child.pid):
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()


def test_the_pid_file_says_what_runs(sleeper: Daemon) -> None:
    sleeper.start(lambda: is_up(sleeper))
    record = read_json(sleeper.folder / "sleeper.pid")
    assert record["pid"] == sleeper.pid
    assert record["argv"] == list(sleeper.argv)
