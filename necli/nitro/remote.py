"""The parent instance from a laptop, through SSM Run Command: no SSH, no open port.

SSM keeps what is run and what it prints (the first 24,000 characters), so no secret may be in either. The
output comes as the instance's agent reports it.

Not exercised on AWS: the tests run against recorded answers.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from necli import errors
from necli.aws import aws_errors
from necli.errors import NecliError, NotReady, ServiceFailed

DOCUMENT = "AWS-RunShellScript"
_REPORTED = 24_000
"""Characters of output that SSM hands out."""
_ENDED = {"Success", "Failed", "Cancelled", "TimedOut"}
_ONLINE_HINT = "wait until it has started; its agent and the SSM endpoints must work: necli stack status"
_BY_EXIT_CODE = {
    error.exit_code: error
    for error in (
        errors.UsageError,
        errors.InputError,
        errors.NotReady,
        errors.AccessDenied,
        errors.MeasurementMismatch,
        errors.Conflict,
        errors.ServiceFailed,
        errors.HostError,
    )
}

OnText = Callable[[str], None]


@dataclass(frozen=True)
class RemoteHost:
    """One parent instance, by its id."""

    ssm: Any
    instance_id: str
    poll_s: float = 1.0

    def run(
        self, argv: Sequence[str], on_output: OnText, on_chatter: OnText, *, timeout_s: int = 3600
    ) -> None:
        """Run `argv` there as root; its stdout and stderr come piece by piece.

        :raises NotReady: SSM can't reach the instance.
        :raises NecliError: the command failed; the error that a necli there reported is raised here.
        """
        command = self._send(argv, timeout_s)
        try:
            answer = self._follow(command, on_output, on_chatter, timeout_s)
        except BaseException:  # Ctrl-C too: nothing goes on there unseen
            with suppress(NecliError), aws_errors("cancel the command"):
                self.ssm.cancel_command(CommandId=command, InstanceIds=[self.instance_id])
            raise
        if answer["Status"] != "Success":
            raise self._failure(argv, answer)
        if len(answer.get("StandardOutputContent", "")) >= _REPORTED:
            on_chatter("(SSM cuts longer output off)\n")

    def _send(self, argv: Sequence[str], timeout_s: int) -> str:
        try:
            with aws_errors(f"run a command on {self.instance_id}"):
                sent = self.ssm.send_command(
                    InstanceIds=[self.instance_id],
                    DocumentName=DOCUMENT,
                    Comment="necli",
                    Parameters={
                        "commands": [f"export HOME=/root\nexec {shlex.join(argv)}"],
                        "executionTimeout": [str(timeout_s)],
                    },
                )
        except ServiceFailed as exc:
            if exc.code != "InvalidInstanceId":
                raise
            raise NotReady(
                f"SSM doesn't reach the instance {self.instance_id}", hint=_ONLINE_HINT, code=exc.code
            ) from exc
        return str(sent["Command"]["CommandId"])

    def _follow(self, command: str, on_output: OnText, on_chatter: OnText, timeout_s: int) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s + 60
        told_output = told_chatter = 0
        while time.monotonic() < deadline:
            answer = self._invocation(command)
            output = answer.get("StandardOutputContent", "")
            chatter = answer.get("StandardErrorContent", "")
            if output[told_output:]:
                on_output(output[told_output:])
            if chatter[told_chatter:]:
                on_chatter(chatter[told_chatter:])
            told_output, told_chatter = len(output), len(chatter)
            if answer["Status"] in _ENDED:
                return answer
            time.sleep(self.poll_s)
        raise ServiceFailed(
            f"{self.instance_id} doesn't report the command's end", hint=_ONLINE_HINT, code="timeout"
        )

    def _invocation(self, command: str) -> dict[str, Any]:
        try:
            with aws_errors(f"follow the command on {self.instance_id}"):
                return dict(self.ssm.get_command_invocation(CommandId=command, InstanceId=self.instance_id))
        except ServiceFailed as exc:
            if exc.code != "InvocationDoesNotExist":  # SSM needs a moment to know its own command
                raise
            return {"Status": "Pending"}

    def _failure(self, argv: Sequence[str], answer: dict[str, Any]) -> NecliError:
        status = answer.get("StatusDetails", answer["Status"])
        if answer["Status"] != "Failed" or status in ("Undeliverable", "Terminated"):
            return ServiceFailed(
                f"the command on {self.instance_id} didn't end by itself: {status}",
                hint=_ONLINE_HINT,
                code=status,
            )
        code, said = answer.get("ResponseCode", 1), answer.get("StandardErrorContent", "")
        if code == 127:
            return NotReady(
                f"{argv[0]} isn't installed on {self.instance_id}", hint="install it there: pip install necli"
            )
        message = re.findall(r"^error: (.*)$", said, re.MULTILINE)
        hint = re.findall(r"^hint: (.*)$", said, re.MULTILINE)
        last = message or said.strip().splitlines() or ["it said nothing"]
        error = _BY_EXIT_CODE.get(code, ServiceFailed) if message else ServiceFailed
        return error(
            f"on {self.instance_id}, {argv[0]} ended with status {code}: {last[-1]}",
            hint=hint[-1] if hint else f"look there: aws ssm start-session --target {self.instance_id}",
        )
