"""``aos audit FILE --model GGUF --layers K``: draw layers, open them, or check what an operator opened
(docs/spec/14-audit.md).

Without ``--make`` and ``--bundle`` it draws: 32 random bytes, to be sent to the operator by whoever holds its signed answer.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aos.cli import voice
from aos.cli.replay import EngineName
from aos.core.answer import Answer, read_answer
from aos.core.codec import decode
from aos.core.dispute.audit import (
    BEACON_BYTES,
    MAX_BUNDLE_BYTES,
    UNSEEN,
    AuditBundle,
    AuditRequest,
    detections,
)
from aos.core.encoding import parse_canonical
from aos.core.hashes import MAX_REQUEST_BYTES
from aos.core.receipt import verify_answer
from aos.core.report import Check
from aos.core.statements import Request
from aos.core.trust import load_policy
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable

if TYPE_CHECKING:
    from aos.engine.audit import Auditor, Difference

AUDIT_EXAMPLES = """aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2
aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2 --beacon $BEACON --make bundle.bin
aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2 --beacon $BEACON --bundle bundle.bin
aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2 --beacon $BEACON --bundle bundle.bin --json"""
_REQUIRED = ("receipt-1", "io-1", "io-2")
"""What an audit asks of a file: that it is what the operator signed."""
_WRONG, _PARTIAL, _MISSING = 10, 11, 12
_VERDICTS = {0: "AUDITED", _WRONG: "NOT VERIFIED", _PARTIAL: "PARTIAL", _MISSING: "EVIDENCE MISSING"}


@dataclass(slots=True)
class _Audit:
    """One audit's checks, in order."""

    request: AuditRequest
    n_layers: int
    checks: list[Check] = field(default_factory=list)
    difference: "Difference | None" = None
    bundle_bytes: int = 0
    code: int = 0

    def note(self, name: str, text: str) -> None:
        self.checks.append(Check(id=name, status="PASS", text=text))

    def refuse(self, name: str, error: AOSError) -> None:
        """An error that says who is wrong, or that nobody can say."""
        unreadable = isinstance(error, InvalidMessage)
        self._end(
            name, error, _PARTIAL if isinstance(error, Unavailable) else _MISSING if unreadable else _WRONG
        )

    def differs(self, name: str, found: "Difference") -> None:
        where = "" if found.position is None else f" (position {found.position}, unit {found.unit})"
        self.checks.append(Check(id=name, status="FAIL", text=found.what + where, code="audit.different"))
        self.difference = self.difference or found
        self.code = _WRONG

    def _end(self, name: str, error: AOSError, code: int) -> None:
        status = "SKIP" if code == _PARTIAL else "FAIL"
        self.checks.append(Check(id=name, status=status, text=error.message, code=error.code))  # type: ignore[arg-type]
        self.code = self.code or code


def audit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Answer file (.aos), or - for standard input.")
    ],
    *,
    model: Annotated[Path, typer.Option(help="The model's GGUF file.")],
    layers: Annotated[int, typer.Option(min=1, max=1024, help="How many layers are drawn.")],
    beacon: Annotated[
        str | None, typer.Option(metavar="HEX", help="32 bytes that nobody knew when the answer was signed.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="What the operator opened: check it.")] = None,
    make: Annotated[Path | None, typer.Option(help="As the operator: write the bundle there.")] = None,
    engine: Annotated[
        EngineName, typer.Option(help="The reference engine is slow and gives the same bits.")
    ] = EngineName.NATIVE,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Default: the cores that this process may use.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Check a signed answer with a few of the model's layers, instead of running all of it again.

    Exit codes are those of `aos verify`: 0 what was drawn is right, 10 something is not, 11 it cannot be audited here
    (another model, a TEE's answer), 12 evidence missing or unreadable.
    """
    if bundle is not None and make is not None:
        raise voice.usage(
            "--make and --bundle exclude each other", hint="the operator makes, the auditor checks"
        )
    if (bundle is not None or make is not None) and beacon is None:
        raise voice.usage("--beacon is missing", hint="aos audit without --bundle and --make draws one")
    threads = threads if threads is not None else len(os.sched_getaffinity(0))
    answer = _answer(file, as_json)
    core = answer.receipt.core
    try:
        if not core.state_root:
            raise Unavailable(
                "audit.no_state_root", "this receipt commits to no state root: nothing to audit"
            )
        drawn = _beacon(beacon)
        request = AuditRequest(state_root=core.state_root, beacon=drawn, layers=layers)
        found = _Audit(request=request, n_layers=_layers_of(model))
        request.drawn(found.n_layers)
        if make is not None:
            found.bundle_bytes = _make(answer, model, engine, threads, request, make)
        elif bundle is not None:
            _check(found, answer, model, engine, threads, bundle)
    except Unavailable as error:
        voice.complain(error, as_json=as_json)
        raise typer.Exit(_PARTIAL) from None
    mode = "make" if make is not None else "check" if bundle is not None else "draw"
    if as_json:
        voice.data_json("audit", _as_json(found, str(file), mode))
    else:
        _show(found, mode, voice.data)
    raise typer.Exit(found.code)


def _answer(file: Path, as_json: bool) -> Answer:
    """The answer of a file whose operator signed it. Exits 10 or 12 where there is none."""
    from aos.cli.verify import read_file, render_report

    try:
        data = read_file(str(file))
    except OSError as error:
        missing = RuleViolation(
            "file.unreadable",
            f"{file}: {error.strerror}",
            hint="name an answer file; aos job answer JOB_ID --save FILE fetches one",
        )
        voice.complain(missing, as_json=as_json)
        raise typer.Exit(_MISSING) from None
    report = verify_answer(data, trust=None, policy=replace(load_policy("dev"), required=_REQUIRED))
    if report.exit_code:
        if as_json:
            from aos.cli.verify import report_json

            voice.data_json("audit", report_json(report, file=str(file)))
        else:
            voice.data_of_others(render_report(report))
        raise typer.Exit(report.exit_code)
    return read_answer(data)


def _beacon(text: str | None) -> bytes:
    if text is None:
        return secrets.token_bytes(BEACON_BYTES)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != BEACON_BYTES:
        raise voice.usage(
            "--beacon is not 64 hexadecimal digits", hint="aos audit without --beacon draws one"
        )
    return value


def _layers_of(model: Path) -> int:
    from aos.engine.gguf import read_gguf
    from aos.engine.llama import read_hyper_parameters

    return read_hyper_parameters(read_gguf(model)).n_layers


def _make(
    answer: Answer, model: Path, engine: EngineName, threads: int, request: AuditRequest, out: Path
) -> int:
    """The operator's side: run the answer again, and open what is asked. Returns the bundle's bytes."""
    from aos.engine import load_engine
    from aos.engine.audit import bundle_of_answer
    from aos.engine.canonical import CanonicalEngine
    from aos.engine.gguf import read_gguf
    from aos.engine.manifest import tensor_leaves

    voice.say(f"running {answer.receipt.core.n_out} tokens again with {model} …")
    progress = voice.Progress("loading the model")
    loaded = load_engine(model, kind=engine.value, progress=progress, threads=threads)
    if not isinstance(loaded, CanonicalEngine):
        raise AssertionError(f"the engine {engine} is none of the canonical arithmetic")
    leaves, _ = tensor_leaves(read_gguf(model), threads=threads)
    data = bundle_of_answer(answer, _request(answer), loaded, leaves, request)
    try:
        out.write_bytes(data)
    except OSError as error:
        raise voice.usage(f"cannot write {out}: {error.strerror}", hint="name another file") from error
    return len(data)


def _check(
    found: _Audit, answer: Answer, model: Path, engine: EngineName, threads: int, bundle: Path
) -> None:
    from aos.engine.audit import Auditor, Disclosed

    core = answer.receipt.core
    found.note("receipt-1", "the operator signed this answer, and the request and text are those signed")
    try:
        opened = AuditBundle.read(_bundle(bundle), found.request, core.model_id)
    except AOSError as error:
        found.refuse("open-1", error)
        return
    found.bundle_bytes = bundle.stat().st_size
    found.note("open-1", f"{opened.header.n_positions} positions opened under the state root")
    job = _request(answer).job
    disclosed = Disclosed(
        core=core,
        nonce=answer.nonce,
        params=job.params,
        prompt=job.prompt,
        tokens=answer.tokens,
        text=answer.text,
    )
    try:
        auditor = Auditor(opened, disclosed, model, native=engine is EngineName.NATIVE, threads=threads)
    except AOSError as error:
        found.refuse("model-1", error)
        return
    _compare(found, auditor)


def _compare(found: _Audit, auditor: "Auditor") -> None:
    try:
        auditor.run_is_the_receipts()
    except AOSError as error:
        found.refuse("around-1", error)
    else:
        found.note("around-1", "header, parameters, tokens, end and text fit each other")
    parts: list[tuple[str, str, Callable[[], Difference | None]]] = [
        ("embed-1", "the embedding of every token is right", auditor.embedding)
    ]
    for layer in auditor.plan.layers:
        text = f"layer {layer} is right at all {len(auditor.plan.positions(layer + 1))} positions"
        parts.append((f"layer-{layer}", text, lambda layer=layer: auditor.layer(layer)))  # type: ignore[misc]
    tails = len(auditor.plan.tails)
    parts.append(("tail-1", f"logits, sampler and token are right at all {tails} positions", auditor.tail))
    for name, text, check in parts:
        try:
            difference = check()
        except AOSError as error:
            found.refuse(name, error)
            continue
        if difference is None:
            found.note(name, text)
        else:
            found.differs(name, difference)


def _bundle(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise InvalidMessage("audit.bundle", f"{path} has more than {MAX_BUNDLE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InvalidMessage("file.unreadable", f"{path}: {error.strerror}") from error


def _request(answer: Answer) -> Request:
    data = parse_canonical(answer.request.encode("utf-8"), max_bytes=MAX_REQUEST_BYTES)
    return decode(Request, data, where="request")


# --- what is shown


def _show(found: _Audit, mode: str, write: Callable[[str], None]) -> None:
    drawn = ", ".join(map(str, found.request.drawn(found.n_layers)))
    write(f"beacon  {found.request.beacon.hex()}")
    write(f"layers  {drawn} of {found.n_layers}")
    for check in found.checks:
        code = f" [{check.code}]" if check.code else ""
        write(f"{check.status} {check.id:<11} {voice.plain(check.text)}{code}")
    if mode == "make":
        write(f"bundle  {found.bundle_bytes} bytes")
        return
    write("seen with probability, if the beacon came after the signature:")
    for row in detections(found.n_layers, found.request.layers):
        write(f"  {float(row.probability):7.2%}  {row.probability!s:>12}  {row.cheat}")
    write("not seen:")
    for line in UNSEEN:
        write(f"  {line}")
    if mode == "draw":
        write("DRAWN: send the beacon to the operator; check its bundle with --beacon and --bundle")
    else:
        write(_headline(found))


def _headline(found: _Audit) -> str:
    if not found.code:
        return f"AUDITED: {found.request.layers} of {found.n_layers} layers and both edges are right, bit for bit"
    first = next(check for check in found.checks if check.status != "PASS")
    return f"{_VERDICTS[found.code]}: {first.id}: {voice.plain(first.text)} [{first.code}]"


def _as_json(found: _Audit, file: str, mode: str) -> dict[str, object]:
    place = found.difference
    return {
        "file": file,
        "mode": mode,
        "beacon": found.request.beacon.hex(),
        "n_layers": found.n_layers,
        "drawn": list(found.request.drawn(found.n_layers)),
        "bundle_bytes": found.bundle_bytes,
        "verdict": _VERDICTS[found.code] if mode == "check" else None,
        "exit_code": found.code,
        "checks": [
            {"id": c.id, "status": c.status, "text": c.text, "code": c.code or None} for c in found.checks
        ],
        "difference": None if place is None else {"unit": place.unit, "position": place.position},
        "detections": [
            {"cheat": row.cheat, "probability": str(row.probability)}
            for row in detections(found.n_layers, found.request.layers)
        ],
        "unseen": list(UNSEEN),
    }
