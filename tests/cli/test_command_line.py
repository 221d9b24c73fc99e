"""What holds for every command: settings, errors, exit codes, output and start-up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from program import NECLI, Necli
from typer.main import get_command

from necli.cli.app import app
from necli.cli.group import options_first
from necli.cli.parts import SECTIONS

HEAVY = {"boto3", "botocore", "docker", "tensorflow", "PIL", "cryptography", "aws_encryption_sdk", "httpx"}


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom necli.cli.app import main\nsys.argv = ['necli', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nprint(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Step by step:" in done.stdout
    assert not HEAVY & set(done.stderr.split())
    assert "rich.console" not in done.stderr.split()


@pytest.mark.parametrize(
    ("name", "summary"), [(name, part.summary) for parts in SECTIONS.values() for name, part in parts.items()]
)
def test_a_commands_line_in_the_help_is_its_own_summary(name: str, summary: str) -> None:
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    assert command.get_short_help_str(200) == summary


@pytest.mark.parametrize("arguments", [["--help"], ["detect", "--help"], ["receipt", "verify", "--help"]])
def test_the_help_fits_80_columns(necli: Necli, arguments: list[str]) -> None:
    assert max(map(len, necli.ok(*arguments).splitlines())) <= 80


def test_no_command_is_the_help(necli: Necli) -> None:
    assert necli.ok() == necli.ok("--help")


def test_a_misspelt_command_is_told_its_neighbour(necli: Necli) -> None:
    done = necli.run("detekt")
    assert done.returncode == 2
    assert done.stderr == "error: No such command 'detekt'. Did you mean 'detect'?\nhint: see necli --help\n"


def test_an_error_as_json_stands_on_stdout_and_for_people_on_stderr(necli: Necli) -> None:
    done = necli.run("detect", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "usage_error"
    assert done.stderr.startswith("error: Missing argument")


def test_json_after_two_dashes_is_a_file(necli: Necli) -> None:
    done = necli.run("detect", "--", "--json")
    assert done.returncode == 4
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["--target", "nitro", "cleanup"], ["cleanup", "--target=nitro"]])
def test_options_of_every_command_may_stand_anywhere(necli: Necli, arguments: list[str]) -> None:
    code, error = necli.error(*arguments)
    assert (code, error["code"]) == (2, "target_unavailable")
    assert "--target local" in error["hint"]


def test_an_option_without_its_value_is_left_to_the_parser() -> None:
    assert options_first(["status", "--target"]) == ["--target", "status"]


def test_a_flag_wins_over_the_environment_and_that_over_the_file(necli: Necli) -> None:
    (necli.folder / "necli.toml").write_text('target = "saturn"\n')
    assert "'saturn'" in necli.run("status").stderr
    assert "'mars'" in necli.run("status", env={"NECLI_TARGET": "mars"}).stderr
    assert "'venus'" in necli.run("status", "--target", "venus", env={"NECLI_TARGET": "mars"}).stderr
    assert necli.run("status", "--target", "local").returncode == 0


def test_a_commands_option_can_stand_in_the_file(necli: Necli) -> None:
    (necli.folder / "other.toml").write_text("[detect]\nmin-score = 7\n")
    done = necli.run("--config", "other.toml", "detect", "x.jpg")
    assert (done.returncode, "--min-score" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[detect]\nmin-scor = 0.5\n", "necli.toml: [detect]: min_scor is unknown"),
        ("[detekt]\nmin-score = 0.5\n", "necli.toml: detekt is unknown"),
        ("json = true\n", "necli.toml: json is unknown"),
        ("target = \n", "necli.toml isn't valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_told(necli: Necli, content: str, complaint: str) -> None:
    (necli.folder / "necli.toml").write_text(content)
    done = necli.run("status")
    assert (done.returncode, complaint in done.stderr) == (2, True)


def test_a_config_file_that_is_named_must_exist(necli: Necli) -> None:
    assert necli.run("--config", "nowhere.toml", "status").returncode == 2


def test_colours_appear_on_a_terminal_only(necli: Necli) -> None:
    assert "\x1b" not in necli.ok("status")
    screen = necli.terminal("status")
    assert "\x1b[" in screen.read()
    plain = necli.terminal("status", env={"NO_COLOR": "1"}).read()
    assert "SIMULATED" in plain
    assert "\x1b[3" not in plain
    assert "\x1b[4" not in plain


def test_a_name_or_a_terminal_beyond_unicode_is_no_obstacle(necli: Necli) -> None:
    done = necli.run("encrypt", "\udcff.jpg", "--json", env={"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    assert necli.run("doctor", env={"PYTHONIOENCODING": "ascii"}).returncode == 0


def test_ctrl_c_ends_with_130_and_one_line(necli: Necli) -> None:
    screen = necli.terminal("setup")
    screen.expect("Local KMS")
    screen.sendintr()
    rest = screen.read()
    screen.close()
    assert screen.exitstatus == 130
    assert "interrupted; run the same command again to go on" in rest
    assert "Traceback" not in rest
    necli.ok("setup")


def test_a_reader_that_goes_away_is_no_error(necli: Necli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [NECLI, "status", "--json"],
        env=necli.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_the_shell_completes_commands_and_options(necli: Necli) -> None:
    asked = {"_NECLI_COMPLETE": "complete_bash", "COMP_WORDS": "necli det", "COMP_CWORD": "1"}
    assert necli.run(env=asked).stdout.split() == ["detect"]
    asked |= {"COMP_WORDS": "necli detect --s", "COMP_CWORD": "2"}
    assert "--save" in necli.run(env=asked).stdout


def test_a_damaged_state_file_is_told_with_the_way_out(necli: Necli) -> None:
    necli.home.mkdir()
    for content in ("{", "[]", '{"schema": 99}', '{"schema": 1, "targets": {"local": {"key": {"arn": 1}}}}'):
        (necli.home / "state.json").write_text(content)
        code, error = necli.error("status")
        assert (code, error["code"]) == (3, "state_damaged"), content
        assert f"remove {necli.home / 'state.json'}" in error["hint"]


def test_a_second_command_that_changes_things_is_told_who_is_at_work(necli: Necli) -> None:
    from necli.home import Home

    with Home(necli.home, Path("/nowhere")).lock("build"):
        code, error = necli.error("setup")
    assert (code, error["code"]) == (7, "conflict")
    assert f"necli build (pid {os.getpid()}) is at work" in error["message"]


def test_state_that_cannot_be_written_is_an_error_of_this_machine(necli: Necli) -> None:
    code, error = necli.error("setup", "--home", "/sys/necli")
    assert (code, error["code"]) == (9, "host_error")
    assert "/sys/necli" in error["message"]


def test_a_full_disk_is_an_error_of_this_machine(necli: Necli) -> None:
    in_a_small_file_system = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*in_a_small_file_system, "mount -t tmpfs tmpfs /mnt"], check=False).returncode != 0:
        pytest.skip("this kernel lets no ordinary user mount a file system")
    script = f"mount -t tmpfs -o size=16k tmpfs {necli.folder} && exec {NECLI} setup --json"
    done = subprocess.run(
        [*in_a_small_file_system, script],
        env={**necli.environment, "NECLI_HOME": str(necli.folder / "state")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 9, done.stderr
    assert "No space left on device" in done.stderr
    assert "free some space" in json.loads(done.stdout)["error"]["hint"]


def test_the_nitro_host_is_prepared_on_amazon_linux_only(necli: Necli) -> None:
    code, error = necli.error("setup", "--target", "nitro", "--on-instance", "--dry-run")
    assert (code, error["code"]) == (9, "unsupported_host")
    assert "--from-outside" in error["hint"]


def test_setups_options_for_nitro_are_refused_on_the_local_target(necli: Necli) -> None:
    code, error = necli.error("setup", "--enclave-memory", "4096")
    assert code == 2
    assert "only the nitro target has" in error["message"]
