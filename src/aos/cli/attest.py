"""``aos attest``: judge evidence of a trusted execution environment under a policy (docs/spec/12-attestation.md)."""

import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aos.core.attest.policy import AttestationPolicy
    from aos.core.attest.result import AttestationResult

attest_app = typer.Typer(
    help="Judge evidence of trusted execution environments.",
    cls=Group,
    epilog="aos attest verify document.cbor --policy policy.json",
    no_args_is_help=True,
)

_ACCEPTED, _REFUSED, _PARTIAL, _MISSING = 0, 10, 11, 12
_VERDICTS = {_ACCEPTED: "ACCEPTED", _REFUSED: "REFUSED", _PARTIAL: "PARTIAL"}
_TIMEOUT_S = 30.0


@attest_app.callback()
def _group() -> None:
    """The group's help is the application's."""


@attest_app.command(
    "verify",
    cls=Command,
    short_help="Judge a document under a policy.",
    epilog="""aos attest verify document.cbor --policy policy.json
aos attest verify https://example.org/report --policy policy.json --nonce HEX
aos attest verify evidence.json --policy policy.json --at 1750500000000 --json""",
)
def verify(
    file: Annotated[
        str, typer.Argument(metavar="FILE|URL", help="A Nitro document, an evidence file or a report.")
    ],
    *,
    policy: Annotated[Path, typer.Option(help="Policy file: what is believed.")],
    nonce: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The challenge that it must repeat; TDX, SGX, SNP: 64 bytes."),
    ] = None,
    at: Annotated[
        int | None, typer.Option(metavar="MS", help="Judge at this Unix time in milliseconds; default: now.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Judge evidence: one line a check, exit code 0 only when ACCEPTED (of a report: every enclave).

    A document alone is ACCEPTED as that: only a report's enclaves have boot statements, which name key and model. Exit
    codes: 0 ACCEPTED, 10 REFUSED, 11 PARTIAL (measurements not appraised), 12 evidence missing or unreadable,
    2 usage or no evidence, 30 broken policy. Nothing in the evidence adds to what the policy trusts.
    """
    from aos.core.attest.evidence import is_report, judge, judge_report
    from aos.core.tee_report import LeftOut, read_report

    rules = policy_of(policy)
    try:
        challenge = bytes.fromhex(nonce) if nonce is not None else None
    except ValueError:
        raise voice.usage("--nonce must be hexadecimal", hint="aos attest verify -h has examples") from None
    data = _fetch(file) if file.startswith(("https://", "http://")) else _read(file)
    at_ms = at if at is not None else time.time_ns() // 1_000_000
    left_out: tuple[LeftOut, ...] = ()
    try:
        if is_report(data):
            left_out = read_report(data).left_out
            results = judge_report(data, rules, at_ms=at_ms, challenge=challenge)
        else:
            results = (judge(data, rules, at_ms=at_ms, challenge=challenge),)
    except InvalidMessage as error:
        error.message = f"{file}: {error.message}"
        raise
    missing = {one.operator: one.code for one in left_out}
    raise typer.Exit(conclude(results, file=file, policy=rules.name, as_json=as_json, left_out=missing))


def policy_of(path: Path) -> "AttestationPolicy":
    """The policy in a file. Raises ConfigError ``attest.policy_unreadable``, ``attest.policy_invalid``."""
    from aos.core.attest.policy import MAX_POLICY_BYTES, load_policy

    try:
        with path.open("rb") as file:
            return load_policy(file.read(MAX_POLICY_BYTES + 1))
    except OSError as error:
        raise ConfigError(
            "attest.policy_unreadable", f"{path}: {error.strerror}", hint="pass --policy FILE"
        ) from error


def conclude(
    results: "Sequence[AttestationResult]",
    *,
    file: str,
    policy: str,
    as_json: bool,
    left_out: "Mapping[str, str]" = MappingProxyType({}),
) -> int:
    """Print what was checked and the verdict on each; returns the worst one's exit code. ``left_out``: operators that a
    report names without evidence, and why."""
    codes = [exit_code(result) for result in results]
    worst = next(code for code in (_REFUSED, _PARTIAL, _ACCEPTED) if code in codes)
    if as_json:
        shown = [_shown(r, file=file, policy=policy, code=c) for r, c in zip(results, codes, strict=True)]
        whole = shown[0] if len(shown) == 1 else {"enclaves": shown}
        voice.data_json("attest.verify", whole | ({"left_out": dict(left_out)} if left_out else {}))
        return worst
    for result, code in zip(results, codes, strict=True):
        _print(result, code, policy)
    for operator, why in left_out.items():
        voice.data_of_others(f"LEFT OUT {operator}: it gave the dispatcher no document [{why}]")
    if len(results) > 1 or left_out:
        more = f"; {len(left_out)} left out, nothing is known of them" if left_out else ""
        voice.data(f"{_VERDICTS[worst]}: {codes.count(_ACCEPTED)} of {len(codes)} enclaves accepted{more}")
    return worst


def _print(result: "AttestationResult", code: int, policy: str) -> None:
    for check in result.checks:
        what = f"{check.text} [{check.code}]" if check.code else check.text
        voice.data_of_others(f"{check.status} {check.id:<12} {what}  {check.detail}".rstrip())
    claims = result.claims
    simulated = "SIMULATED " if claims is not None and claims.simulated else ""
    what = f'{simulated}{result.tee} under policy "{policy}"'
    if code != _REFUSED:
        if _bound(result):
            what += ", with its boot statement: its key and model are the enclave's"
        else:
            what = f"the document only: {what}; nothing binds it to a boot, a key or a model"
    voice.data_of_others(f"{_VERDICTS[code]}: {what}")


def _bound(result: "AttestationResult") -> bool:
    """Does the evidence hold a boot statement that the document vouches for?"""
    return any(check.id == "boot-1" and check.status == "PASS" for check in result.checks)


def exit_code(result: "AttestationResult") -> int:
    """0, 10 or 11: evidence whose measurements nobody compared is not accepted."""
    if result.refusal is not None or result.claims is None:
        return _REFUSED
    measured = any(check.id == "measure-1" and check.status == "PASS" for check in result.checks)
    return _ACCEPTED if measured else _PARTIAL


def _shown(result: "AttestationResult", *, file: str, policy: str, code: int) -> dict[str, object]:
    claims = result.claims
    return {
        "file": file,
        "verdict": _VERDICTS[code],
        "exit_code": code,
        "scope": "enclave" if _bound(result) else "document",
        "policy": policy,
        "tee": result.tee,
        "checks": [
            {"id": c.id, "status": c.status, "text": c.text, "detail": c.detail, "code": c.code or None}
            for c in result.checks
        ],
        "claims": None
        if claims is None
        else {
            "simulated": claims.simulated,
            "anchor": claims.anchor,
            "device": claims.device,
            "measurements": {name: value.hex() for name, value in claims.measurements},
            "report_data": claims.report_data.hex() if claims.report_data is not None else None,
            "public_key": claims.public_key.hex() if claims.public_key is not None else None,
            "nonce": claims.nonce.hex() if claims.nonce is not None else None,
            "time_ms": claims.time_ms,
            "replay_id": claims.replay_id.hex(),
            "tcb_status": claims.tcb_status or None,
            "advisories": list(claims.advisories),
        },
    }


def _missing(name: str, reason: str) -> AOSError:
    error = RuleViolation(
        "file.unreadable", f"{name}: {reason}", hint="name a file or an address that serves the evidence"
    )
    error.exit_code = _MISSING
    return error


def _read(name: str) -> bytes:
    from aos.core.attest.evidence import MAX_EVIDENCE_BYTES

    try:
        with open(name, "rb") as file:
            return file.read(MAX_EVIDENCE_BYTES + 1)
    except OSError as error:
        raise _missing(name, error.strerror or "cannot be read") from error


def _fetch(url: str) -> bytes:
    """What ``url`` serves, whole within 30 s and at most as large as evidence may be."""
    import asyncio

    import httpx

    from aos.client.transfer import NOT_COMPRESSED, exchange
    from aos.core.attest.evidence import MAX_EVIDENCE_BYTES

    async def get() -> bytes:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, headers=NOT_COMPRESSED) as http:
            reply = await exchange(http, "GET", url, within_s=_TIMEOUT_S, max_bytes=MAX_EVIDENCE_BYTES)
        if reply.status != 200:
            raise _missing(url, f"HTTP {reply.status}")
        return reply.content

    try:
        return asyncio.run(get())
    except TimeoutError as error:
        raise _missing(url, f"not whole within {_TIMEOUT_S:g} s") from error
    except InvalidMessage as error:
        raise _missing(url, error.message) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _missing(url, str(error) or type(error).__name__) from error
