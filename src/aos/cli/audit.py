"""``aos audit JOB --model GGUF --layers K``: have an operator open a few drawn layers of its answer, and check them
(docs/spec/14-audit.md).

With a job's id, ``--network`` or ``--dispatcher`` it asks the network and does the rest (``aos.cli.audit_network``). With a file
alone it draws: 32 random bytes, to be sent to the operator by whoever holds its signed answer; ``--make`` opens, ``--bundle``
checks.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aos.cli import voice
from aos.cli.own_key import OwnKey
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
from aos.core.statements import ReceiptCore, Request
from aos.core.trust import load_policy
from aos.errors import AOSError, InvalidMessage, RuleViolation, Unavailable

if TYPE_CHECKING:
    from aos.engine.audit import Auditor, Difference

AUDIT_EXAMPLES = """aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2 --network
aos audit $JOB_ID --model models/aos-demo.Q8_0.gguf --layers 2 --dispatcher http://127.0.0.1:8081
aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2
aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2 --beacon $BEACON --make bundle.bin
aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2 --beacon $BEACON --bundle bundle.bin
aos audit answer.aos --model models/aos-demo.Q8_0.gguf --layers 2 --beacon $BEACON --bundle bundle.bin --json"""
_REQUIRED = ("receipt-1", "io-1", "io-2")
"""What an audit asks of a file: that it is what the operator signed."""
_WRONG, _PARTIAL, _MISSING = 10, 11, 12
_VERDICTS = {0: "AUDITED", _WRONG: "NOT VERIFIED", _PARTIAL: "PARTIAL", _MISSING: "EVIDENCE MISSING"}


@dataclass(slots=True)
class Audit:
    """One audit's checks, in order. ``network`` is what else there is to tell of one over the network."""

    request: AuditRequest
    n_layers: int
    network: dict[str, object] = field(default_factory=dict)
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
    target: Annotated[
        str, typer.Argument(metavar="JOB", help="A job's id, or an answer file (.aos; - for standard input).")
    ],
    *,
    model: Annotated[Path, typer.Option(help="The model's GGUF file.")],
    layers: Annotated[int, typer.Option(min=1, max=1024, help="How many layers are drawn.")],
    dispatcher: Annotated[
        str | None, typer.Option("--dispatcher", "--url", help="Ask this dispatcher; default as --network.")
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Ask the dispatcher of $AOS_URL, or of .aos/client.json.")
    ] = False,
    operator: Annotated[
        str, typer.Option(metavar="0x…", help="Whose claim of the answer; default: the one whose text it is.")
    ] = "",
    key: OwnKey = None,
    trust: Annotated[
        Path | None, typer.Option(help="Trust file; default $AOS_TRUST, then .aos/trust.json.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="AUDIT", help="Go on with an audit that was asked for.")
    ] = None,
    challenge: Annotated[
        bool, typer.Option("--challenge/--no-challenge", help="Where it differs, dispute the claim at once.")
    ] = True,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the bundle in this file.")] = None,
    wait: Annotated[
        int, typer.Option(min=1, max=86_400, help="Most seconds to wait for the operator.")
    ] = 1800,
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

    Over the network (a job's id, --network or --dispatcher) the operator opens what a beacon drew after its commitment, this
    machine checks it, tells the dispatcher what it found, and disputes a claim that differs. With a file alone beacon and bundle
    are carried by hand. Openings show tokens: you are the job's project (token with scope `challenge`), or one of its operators.

    Exit codes are those of `aos verify`: 0 what was drawn is right, 10 something is not, 11 it cannot be audited here
    (another model, a TEE's answer), 12 evidence missing, unreadable or withheld.
    """
    by_network = network or dispatcher is not None or resume is not None or _is_job(target)
    if by_network and (beacon is not None or bundle is not None or make is not None):
        raise voice.usage(
            "over the network the dispatcher's beacon draws and the operator makes the bundle",
            hint="--beacon, --bundle and --make go with a file alone",
        )
    if bundle is not None and make is not None:
        raise voice.usage(
            "--make and --bundle exclude each other", hint="the operator makes, the auditor checks"
        )
    if (bundle is not None or make is not None) and beacon is None:
        raise voice.usage("--beacon is missing", hint="aos audit without --bundle and --make draws one")
    threads = threads if threads is not None else len(os.sched_getaffinity(0))
    mode = (
        "network" if by_network else "make" if make is not None else "check" if bundle is not None else "draw"
    )
    try:
        if by_network:
            from aos.cli.audit_network import NetworkAudit, audit_over_network

            found = audit_over_network(
                NetworkAudit(
                    target=target,
                    model=model,
                    layers=layers,
                    url=dispatcher,
                    operator=operator,
                    key=key,
                    trust=trust,
                    resume=resume,
                    challenge=challenge,
                    save=save,
                    wait_s=wait,
                    engine=engine,
                    threads=threads,
                    as_json=as_json,
                )
            )
        else:
            found = _by_hand(target, model, layers, _beacon(beacon), bundle, make, engine, threads, as_json)
    except Unavailable as error:
        voice.complain(error, as_json=as_json)
        raise typer.Exit(_PARTIAL) from None
    if as_json:
        voice.data_json("audit", _as_json(found, target, mode))
    else:
        _show(found, mode, voice.data)
    raise typer.Exit(found.code)


def _is_job(target: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", target) is not None and not Path(target).exists()


def _by_hand(
    target: str,
    model: Path,
    layers: int,
    beacon: bytes,
    bundle: Path | None,
    make: Path | None,
    engine: EngineName,
    threads: int,
    as_json: bool,
) -> Audit:
    answer = signed_answer(file_bytes(Path(target), as_json), target, as_json)
    core = answer.receipt.core
    if not core.state_root:
        raise Unavailable("audit.no_state_root", "this receipt commits to no state root: nothing to audit")
    request = AuditRequest(state_root=core.state_root, beacon=beacon, layers=layers)
    found = Audit(request=request, n_layers=layers_of(model))
    request.drawn(found.n_layers)
    if make is not None:
        found.bundle_bytes = _make(answer, model, engine, threads, request, make)
    elif bundle is not None:
        check(found, answer, core, model, engine, threads, bundle)
    return found


def file_bytes(file: Path, as_json: bool) -> bytes:
    """An answer file. Exits 12 where it cannot be read."""
    from aos.cli.verify import read_file

    try:
        return read_file(str(file))
    except OSError as error:
        missing = RuleViolation(
            "file.unreadable",
            f"{file}: {error.strerror}",
            hint="name an answer file; aos job answer JOB_ID --save FILE fetches one",
        )
        voice.complain(missing, as_json=as_json)
        raise typer.Exit(_MISSING) from None


def signed_answer(data: bytes, name: str, as_json: bool) -> Answer:
    """The answer of a file whose operator signed it. Exits 10 or 12 where there is none."""
    from aos.cli.verify import render_report

    report = verify_answer(data, trust=None, policy=replace(load_policy("dev"), required=_REQUIRED))
    if report.exit_code:
        if as_json:
            from aos.cli.verify import report_json

            voice.data_json("audit", report_json(report, file=name))
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


def layers_of(model: Path) -> int:
    """Of a model file."""
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


def check(
    found: Audit,
    answer: Answer,
    core: ReceiptCore,
    model: Path,
    engine: EngineName,
    threads: int,
    bundle: Path,
) -> None:
    """Check a bundle against the claim ``core`` of an answer; every check goes to ``found``."""
    from aos.engine.audit import Auditor, Disclosed

    found.note("receipt-1", "the operator signed this answer, and the request and text are those signed")
    try:
        with _mapped(bundle) as data:
            found.bundle_bytes = len(data)
            opened = AuditBundle.read(data, found.request, core.model_id)
    except AOSError as error:
        found.refuse("open-1", error)
        return
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


def _compare(found: Audit, auditor: "Auditor") -> None:
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
    done = voice.Progress("checking")
    for at, (name, text, look) in enumerate(parts):
        done(at, len(parts))
        try:
            difference = look()
        except AOSError as error:
            found.refuse(name, error)
            continue
        if difference is None:
            found.note(name, text)
        else:
            found.differs(name, difference)
    done(len(parts), len(parts))


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    """A bundle's bytes, of which no more are in memory than are read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= MAX_BUNDLE_BYTES:
                raise InvalidMessage(
                    "audit.bundle", f"{path} has {size} bytes, and a bundle 1 to {MAX_BUNDLE_BYTES}"
                )
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise InvalidMessage("file.unreadable", f"{path}: {error.strerror}") from error


def _request(answer: Answer) -> Request:
    data = parse_canonical(answer.request.encode("utf-8"), max_bytes=MAX_REQUEST_BYTES)
    return decode(Request, data, where="request")


# --- what is shown


def _show(found: Audit, mode: str, write: Callable[[str], None]) -> None:
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
    for name, value in found.network.items():
        write(f"{name:<10} {value}")
    if mode == "draw":
        write("DRAWN: send the beacon to the operator; check its bundle with --beacon and --bundle")
    else:
        write(_headline(found))


def _headline(found: Audit) -> str:
    if not found.code:
        return f"AUDITED: {found.request.layers} of {found.n_layers} layers and both edges are right, bit for bit"
    first = next(check for check in found.checks if check.status != "PASS")
    return f"{_VERDICTS[found.code]}: {first.id}: {voice.plain(first.text)} [{first.code}]"


def _as_json(found: Audit, file: str, mode: str) -> dict[str, object]:
    place = found.difference
    return {
        "file": file,
        "mode": mode,
        "beacon": found.request.beacon.hex(),
        "n_layers": found.n_layers,
        "drawn": list(found.request.drawn(found.n_layers)),
        "bundle_bytes": found.bundle_bytes,
        "verdict": _VERDICTS[found.code] if mode in ("check", "network") else None,
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
        "network": found.network or None,
    }
