"""``aos log``: read a dispatcher's transparency log, watch it, witness it, and judge what convicts it (docs/spec/15-log.md)."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.errors import AOSError, ConfigError, RuleViolation, Unavailable, VerificationError

CONVICTED = 10
EVIDENCE_MISSING = 12
WAITING = 11
MAX_STATE_BYTES = 65_536

log_app = typer.Typer(
    help="Read, watch and witness a dispatcher's transparency log.",
    cls=Group,
    epilog="""aos log checkpoint
aos log watch --once
aos log convict log-conviction.json""",
    no_args_is_help=True,
)

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Url = Annotated[
    str | None, typer.Option(metavar="URL", help="Dispatcher; default $AOS_URL, then .aos/client.json.")
]
TrustFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Trust file; default: $AOS_TRUST or .aos/trust.json.")
]


@log_app.command(
    "checkpoint",
    cls=Command,
    short_help="Fetch the latest checkpoint and check it.",
    epilog="""aos log checkpoint
aos log checkpoint --url https://dispatcher.example --trust trust.json --json""",
)
def checkpoint(*, url: Url = None, trust: TrustFile = None, as_json: AsJson = False) -> None:
    """Print the log's latest checkpoint, a C2SP signed note, and who signed it.

    Exit codes: 0 signed by the trusted log, 10 not, 20 unreachable, 30 no trust file, or one that names no log.
    """
    from aos.core.log.checkpoint import verify_checkpoint, witnessed

    trusted = trusted_file(trust)
    key = log_key(trusted)
    with log_reader(url) as reader:
        text = reader.checkpoint()
    found = verify_checkpoint(text, key)
    names = [witness.name for witness in witnessed(found.note, trusted.witness_keys)]
    if as_json:
        head = {"origin": found.head.origin, "size": found.head.size, "root": found.head.root.hex()}
        value = head | {"time_s": found.time_s, "witnesses": names, "checkpoint": text}
        voice.data_json("log.checkpoint", value)
        return
    voice.data_of_others(text, end="")
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.time_s))
    voice.say(
        f"{found.head.size} leaves, signed by the trusted log at {when}, cosigned by "
        f"{len(names)} of {len(trusted.witnesses)} trusted witnesses"
    )


@log_app.command(
    "show",
    cls=Command,
    short_help="List entries.",
    epilog="""aos log show
aos log show 1000 --limit 50 --json""",
)
def show(
    start: Annotated[int, typer.Argument(min=0, help="The first index.")] = 0,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List entries of the log in its order: of what kind each fact is, and its salted hash."""
    with log_reader(url) as reader:
        listed = reader.entries(start, limit)
    if as_json:
        voice.data_json("log.show", {"entries": listed})
        return
    for entry in listed:
        index, kind, digest = (str(entry.get(name, "?")) for name in ("index", "kind", "digest"))
        voice.data_of_others(f"{index:>8}  {kind:<12}  {digest}")
    if not listed:
        voice.say("no entries there")


@log_app.command(
    "watch",
    cls=Command,
    short_help="Keep the last checkpoint, shout when history changes.",
    epilog="""aos log watch --once
aos log watch --state watch.json --every 60
aos log watch --once --url https://dispatcher.example --trust trust.json --json""",
)
def watch(
    *,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the last checkpoint is kept; default log-watch.json beside the trust file.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    every: Annotated[int, typer.Option(min=1, max=86_400, help="Seconds between two looks.")] = 60,
    url: Url = None,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare the log's checkpoint with the last one, and keep the larger. What contradicts it is saved and never overwritten.

    Exit codes: 0 history goes on (--once), 10 it does not: a conviction, or what the log could not show, is saved beside the state,
    20 unreachable (--once; without it the watch goes on), 30 no trust file, or a damaged state.
    """
    from aos.client.log import look

    key = log_key(trusted_file(trust))
    path = state or default_state("log-watch")
    with log_reader(url) as reader:

        def take() -> tuple[Any, Any]:
            held = _held(path, key)
            return held, look(reader, key, held)

        for held, found in looks(take, once=once, every=every):
            if found.conviction is not None or found.broken is not None:
                raise SystemExit(_shout(path, found, held, as_json=as_json))
            assert found.held is not None  # noqa: S101  what is neither broken nor contradicted is held
            if held is None or found.held.note != held.note:
                _keep(path, key, found.held)
            _report(held, found.held, path, as_json=as_json)


@log_app.command(
    "promise",
    cls=Command,
    short_help="Ask what became of a promised leaf.",
    epilog="""aos job submit "What is AI?" --json > job.json && aos log promise job.json
aos log promise job.json --trust trust.json --save conviction.json --json""",
)
def promise_command(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="What `aos job submit --json` printed, or - for standard input."),
    ],
    *,
    save: Annotated[
        Path, typer.Option(metavar="FILE", help="Where a conviction is saved, should there be one.")
    ] = Path("log-conviction.json"),
    url: Url = None,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Look for the leaf that was promised with a job. Where it is missing after its time, save what convicts the log.

    Exit codes: 0 KEPT, the leaf is in the signed tree; 11 WAITING, its time is to come; 10 BROKEN, `aos log convict` judges
    the file.
    """
    from aos.client.log import ask_promise
    from aos.core.log.conviction import write_conviction

    key = log_key(trusted_file(trust))
    promise = _promise(file)
    with log_reader(url) as reader:
        found = ask_promise(reader, key, promise)
    size = found.checkpoint.head.size
    if found.conviction is not None:
        with save.open("xb") as target:
            target.write(write_conviction(found.conviction))
        state, text, code = "BROKEN", f"the promised leaf is missing; evidence saved in {save}", CONVICTED
    elif found.index is not None:
        state, text, code = "KEPT", f"the promised leaf is number {found.index} of {size}", 0
    else:
        state, text, code = (
            "WAITING",
            f"not among {size} leaves yet; promised by {promise.statement.integrate_by}",
            WAITING,
        )
    if as_json:
        evidence = None if found.conviction is None else str(save)
        voice.data_json(
            "log.promise", {"state": state, "index": found.index, "size": size, "evidence": evidence}
        )
    else:
        voice.data(f"{state}: {text}")
    if code:
        raise SystemExit(code)


@log_app.command(
    "convict",
    cls=Command,
    short_help="Judge a file that convicts a log, offline.",
    epilog="""aos log convict log-conviction.json
aos log convict log-conviction.json --trust trust.json --json""",
)
def convict(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Conviction file, or - for standard input.")],
    *,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Judge a conviction file: signed words of one log that no honest log can all have said. A file of `aos log anchors` is
    judged by `aos log anchors --judge`, which asks the chain.

    Exit codes: 10 CONVICTED, 0 NOTHING PROVEN: no log is convicted by this file, 12 unreadable. With --trust the convicted key
    must be its log's.
    """
    from aos.cli.verify import find_trust, read_file, stdout_colour
    from aos.core.log.conviction import MAX_CONVICTION_BYTES, judge, read_conviction

    trusted = find_trust(trust)
    ours = None if trusted is None else trusted.log
    # Asked about one log by name, another's conviction proves nothing; a trust file that lies around only says whose it is.
    logs = [ours] if trust is not None and ours is not None else None
    try:
        data = read_file(file, limit=MAX_CONVICTION_BYTES)
    except OSError as error:
        missing = RuleViolation(
            "file.unreadable", f"{file}: {error.strerror}", hint="`aos log watch` saves such files"
        )
        raise SystemExit(EVIDENCE_MISSING if voice.complain(missing, as_json=as_json) else 0) from None
    try:
        conviction = read_conviction(data)
    except AOSError as error:
        voice.complain(error, as_json=as_json)
        raise SystemExit(EVIDENCE_MISSING) from None
    try:
        found = judge(conviction, logs)
    except AOSError as error:
        value: dict[str, Any] = {"state": "NOTHING PROVEN", "kind": conviction.kind, "log": conviction.log}
        if as_json:
            voice.data_json("log.convict", value | {"code": error.code, "text": error.message})
        else:
            voice.data_of_others(f"NOTHING PROVEN against {conviction.log}: {error.message} [{error.code}]")
        return
    if as_json:
        value = {
            "state": "CONVICTED",
            "kind": found.kind,
            "log": str(found.key),
            "trusted": found.key == ours,
        }
        voice.data_json("log.convict", value | {"code": None, "text": found.text})
    else:
        word = "\x1b[31mCONVICTED\x1b[0m" if stdout_colour() else "CONVICTED"
        voice.data(f"PASS signatures  every part is signed by {found.key.name}")
        voice.data(f"PASS {found.kind:<11} {found.text}")
        voice.data(f"{word}: {found.key}")
        if ours is None:
            voice.say("  whose key that is, a trust file says")
        else:
            voice.say(
                "  the log of your trust file" if found.key == ours else "  not the log of your trust file"
            )
    raise SystemExit(CONVICTED)


# --- parts


def _promise(name: str) -> Any:
    from aos.cli.verify import read_file
    from aos.core.encoding import parse_json_strict
    from aos.core.log.leaf import LogPromise
    from aos.core.statements import check_signed, read_signed

    try:
        value: Any = parse_json_strict(read_file(name, limit=MAX_STATE_BYTES), max_bytes=MAX_STATE_BYTES)
    except OSError as error:
        raise RuleViolation(
            "file.unreadable", f"{name}: {error.strerror}", hint="aos log promise FILE"
        ) from error
    value = value.get("result", value) if isinstance(value, dict) else None
    pair = value.get("log_promise") if isinstance(value, dict) else None
    if pair is None:
        raise RuleViolation(
            "log.no_promise", f"{name} holds no promise", hint="`aos job submit --json` prints one"
        )
    signed = read_signed(LogPromise, pair, where="log_promise")
    check_signed(signed, address=signed.statement.dispatcher)
    return signed


def log_reader(url: str | None) -> Any:
    from aos.client.log import LogReader
    from aos.client.settings import find_url

    return LogReader(find_url(url))


def trusted_file(named: str | None) -> Any:
    from aos.cli.verify import find_trust

    trusted = find_trust(named)
    if trusted is None:
        raise ConfigError(
            "trust.unreadable", "a log is checked against a trust file", hint="pass --trust FILE"
        )
    return trusted


def log_key(trusted: Any) -> Any:
    if trusted.log is None:
        raise ConfigError(
            "trust.no_log",
            "the trust file names no log",
            field="log_key",
            hint="enter the verifier key that the dispatcher's owner published; `aos up` writes its own",
        )
    return trusted.log


def looks(take: Callable[[], T], *, once: bool, every: int) -> Iterator[T]:
    """What ``take`` finds, every ``every`` seconds or ``once``. Who does not answer is said, and asked again; raises
    Unavailable with ``once``."""
    while True:
        try:
            found = take()
        except Unavailable as error:
            if once:
                raise
            voice.say(f"{voice.bold('unreachable')}: {error.message}; trying again in {every} s")
        else:
            yield found
            if once:
                return
        time.sleep(every)


def default_state(name: str) -> Path:
    return Path(os.environ.get("AOS_STATE_DIR") or ".aos") / f"{name}.json"


def _held(path: Path, key: Any) -> Any:
    """The checkpoint that was kept; None where there is none. Raises ConfigError ``log.state``: it never begins anew by itself."""
    from aos.core.encoding import parse_json_strict
    from aos.core.log.checkpoint import verify_checkpoint

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError("log.state", f"{path}: {error.strerror}") from error
    try:
        value = parse_json_strict(data, max_bytes=MAX_STATE_BYTES)
        if not isinstance(value, dict) or value.get("type") != "aos.log_watch":
            raise VerificationError("log.state", "not the state of a watch")
        if value.get("log") != str(key):
            raise VerificationError("log.state", "it is of another log")
        return verify_checkpoint(str(value.get("checkpoint")), key)
    except AOSError as error:
        raise ConfigError(
            "log.state", f"{path}: {error.message}", hint="choose another with --state; this one is evidence"
        ) from error


def _keep(path: Path, key: Any, checkpoint: Any) -> None:
    from aos.adapters.whole_file import write_whole
    from aos.core.encoding import canonical_json

    value = {"type": "aos.log_watch", "v": 1, "log": str(key), "checkpoint": str(checkpoint.note)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, canonical_json(value) + b"\n")


def _report(held: Any, new: Any, path: Path, *, as_json: bool) -> None:
    before = None if held is None else held.head.size
    if as_json:
        value = {"state": "CONSISTENT", "size": new.head.size, "before": before, "time_s": new.time_s}
        voice.data_json("log.watch", value | {"root": new.head.root.hex(), "evidence": None})
        return
    if before is None:
        voice.data(f"FIRST      {new.head.size} leaves; kept in {path}, compared from now on")
    else:
        voice.data(f"CONSISTENT {before} → {new.head.size} leaves: history goes on")


def _shout(path: Path, found: Any, held: Any, *, as_json: bool) -> int:
    from aos.core.encoding import canonical_json
    from aos.core.log.conviction import write_conviction

    if found.conviction is not None:
        evidence = save_evidence(path, "conviction", write_conviction(found.conviction))
        state, text, code = "HISTORY CHANGED", f"this convicts the log: {found.conviction.kind}", None
    else:
        kept = None if held is None else str(held.note)
        record = {
            "type": "aos.log_unproven",
            "v": 1,
            "held": kept,
            "seen": found.seen,
            "code": found.broken.code,
        }
        evidence = save_evidence(path, "unproven", canonical_json(record))
        state, text, code = (
            "NOT PROVEN",
            f"the log does not show that history goes on: {found.broken.message}",
            found.broken.code,
        )
    if as_json:
        value = {
            "state": state,
            "size": None,
            "before": None if held is None else held.head.size,
            "time_s": None,
        }
        voice.data_json(
            "log.watch", value | {"root": None, "evidence": str(evidence), "code": code, "text": text}
        )
        return CONVICTED
    word = f"\x1b[1;31m{state}\x1b[0m" if voice.colour() else state
    voice.data(f"{state}: {text}" + ("" if code is None else f" [{code}]"))
    voice.say(f"{word}: evidence saved in {evidence}")
    if found.conviction is not None:
        voice.say(f"  anybody can judge it: {voice.program()} log convict {evidence}")
    else:
        voice.say("  it convicts nobody by itself; ask the log's owner, and look again")
    return CONVICTED


def save_evidence(path: Path, what: str, data: bytes) -> Path:
    """A new file beside the state; one that is there is never overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        target = path.with_name(f"{path.stem}.{what}-{number}.json")
        try:
            with target.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return target
        except FileExistsError:
            number += 1
