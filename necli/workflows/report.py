"""The proof as one HTML page for a security reviewer: nothing in it is loaded from elsewhere or runs."""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from string import Template

from necli import __version__
from necli.errors import NecliError
from necli.resources import resource_folder
from necli.workflows.attacks import ATTACKS
from necli.workflows.attest import fetch_document
from necli.workflows.policy import lint_policy, show_policy
from necli.workflows.prove import Proof
from necli.workflows.workload import Workload

_SIMULATED = (
    '<p class="simulated"><strong>SIMULATED</strong>: the local target gives no isolation. This shows that '
    "image, key policy and program are right; it can't show that an enclave is.</p>"
)


def proof_report(workload: Workload, enclave: str, proof: Proof, meaning: str) -> str:
    """What of the evidence can't be had, for example because KMS is down, is said in its place."""
    tried = {case.name for case in proof.cases}
    left_out = [attack.name for attack in ATTACKS if attack.name not in tried]
    pcrs = _pcrs(workload, enclave)
    values = {
        "verdict": escape(proof.verdict),
        "banner": _SIMULATED if workload.backend.simulated else "",
        "meaning": escape(meaning[:1].upper() + meaning[1:]),
        "version": escape(__version__),
        "made_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "cases": _rows((c.name, c.tried, c.expected, c.observed, c.verdict) for c in proof.cases),
        "left_out": f"<p>Not tried on this target: {escape(', '.join(left_out))}.</p>" if left_out else "",
        "facts": _rows(_facts(workload, enclave, pcrs).items()),
        "findings": _or_reason(lambda: _findings(workload)),
        "policy": _or_reason(lambda: escape(show_policy(workload).to_text())),
        "verify": escape(_verify_command(workload, pcrs)),
        "document": _or_reason(lambda: _document(workload, enclave)),
    }
    page = (resource_folder("templates") / "proof.html").read_text(encoding="utf-8")
    return Template(page).substitute(values)


def _facts(workload: Workload, enclave: str, pcrs: Mapping[str, str]) -> dict[str, str]:
    build, key = workload.state.build, workload.state.key
    return {
        "Target": workload.target,
        "Enclave": enclave,
        "Key": key.arn if key else "none",
        "Model": f"{build.model_name}, SHA-384 {build.model_digest}" if build else "none",
        **(pcrs or {"PCRs": "the enclave isn't running"}),
    }


def _pcrs(workload: Workload, enclave: str) -> dict[str, str]:
    try:
        measurements = workload.running_enclave(enclave).measurements
    except NecliError:
        return {}
    return {f"PCR{index}": value.hex() for index, value in measurements.pcrs().items()}


def _verify_command(workload: Workload, pcrs: Mapping[str, str]) -> str:
    root = "simulated" if workload.backend.simulated else "nitro"
    options = [word for name, value in pcrs.items() for word in (f"--{name.lower()}", value)]
    return shlex.join(["necli", "attest", "--file", "document.cose", "--root", root, *options])


def _findings(workload: Workload) -> str:
    return _rows((f.severity, f.rule, f.message) for f in lint_policy(workload)) or _rows([("none", "", "")])


def _document(workload: Workload, enclave: str) -> str:
    document = fetch_document(workload, enclave, nonce=os.urandom(32), user_data=b"")
    return base64.b64encode(document).decode()


def _or_reason(html: Callable[[], str]) -> str:
    try:
        return html()
    except NecliError as exc:
        return escape(f"can't be had: {exc.message}")


def _rows(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)


def _cell(text: str) -> str:
    known = ("PASS", "FAIL", "INCONCLUSIVE", "error", "warning", "info")
    return f'<td class="{text}">{text}</td>' if text in known else f"<td>{escape(text)}</td>"
