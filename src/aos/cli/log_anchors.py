"""``aos log anchors``: a dispatcher's log beside what it wrote into a contract (docs/spec/15-log.md, "Anchors")."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aos.cli import voice
from aos.cli.help import Command
from aos.cli.log import (
    CONVICTED,
    EVIDENCE_MISSING,
    MAX_STATE_BYTES,
    WAITING,
    AsJson,
    TrustFile,
    Url,
    default_state,
    log_app,
    log_key,
    log_reader,
    looks,
    save_evidence,
    trusted_file,
)
from aos.errors import AOSError, ConfigError, RuleViolation, VerificationError

if TYPE_CHECKING:
    from aos.adapters.chain.anchors import RegistryName, Seen
    from aos.client.log import Anchored
    from aos.core.log.anchor import Anchor
    from aos.core.log.checkpoint import Checkpoint
    from aos.core.log.note import NoteKey


@log_app.command(
    "anchors",
    cls=Command,
    short_help="Compare the log with what its dispatcher wrote on a chain.",
    epilog="""aos log anchors --once --rpc http://127.0.0.1:8545 --registry eip155:31337:0x…
AOS_CHAIN_RPC_URL=http://127.0.0.1:8545 aos log anchors --registry eip155:1:0x… --every 3600
aos log anchors --judge .aos/log-anchors.fork-1.json --registry eip155:1:0x… --json""",
)
def anchors(
    *,
    registry: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The network's OperatorRegistry: eip155:CHAIN_ID:0xADDRESS (`aos chain status`).",
        ),
    ],
    rpc_url: Annotated[
        str,
        typer.Option(
            "--rpc",
            envvar="AOS_CHAIN_RPC_URL",
            show_envvar=False,
            metavar="URL",
            help="A JSON-RPC node of that chain, best your own; default $AOS_CHAIN_RPC_URL.",
        ),
    ],
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Compare nothing: judge a file that this command saved, or another's."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where is kept what was read; default log-anchors.json beside the trust file.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    every: Annotated[int, typer.Option(min=1, max=86_400, help="Seconds between two looks.")] = 600,
    url: Url = None,
    trust: TrustFile = None,
    as_json: AsJson = False,
) -> None:
    """Read the anchors from final blocks, and ask the log to prove that its tree begins with each of them. Take the contract's
    name from somebody else than the dispatcher: it could name each stranger another one.

    Exit codes: 0 every anchor holds (--once); 10 one does not: what proves it, or what the log could not show, is saved beside the
    state; with --judge: CONVICTED; 11 nothing is anchored yet (--once); 12 --judge cannot read the file; 20 node or log does not
    answer (--once; without it the watch goes on); 30 no trust file, or a damaged state.
    """
    from aos.adapters.chain.anchors import read_registry_name

    name = read_registry_name(registry)
    if judge is not None:
        raise SystemExit(_judge(judge, name, rpc_url, trust, as_json=as_json))
    look = _Look(key=log_key(trusted_file(trust)), name=name, rpc_url=rpc_url, url=url)
    path = state or default_state("log-anchors")
    for found in looks(lambda: look.take(_held(path, look.key, name)), once=once, every=every):
        if found.compared.fork is not None or found.compared.broken is not None:
            raise SystemExit(_shout(path, found, as_json=as_json))
        _keep(path, look.key, name, found.seen)
        code = _report(found, as_json=as_json)
        if once:
            raise SystemExit(code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    anchors: "list[Anchor]"
    seen: "Seen"
    text: str
    checkpoint: "Checkpoint | None"
    compared: "Anchored"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One comparison after the other, of one log with one contract."""

    key: "NoteKey"
    name: "RegistryName"
    rpc_url: str
    url: str | None

    def take(self, seen: "Seen | None") -> _Found:
        from aos.client.log import Anchored, look_at_anchors
        from aos.core.log.checkpoint import verify_checkpoint

        # The chain first: what is anchored by then was signed by the log before.
        new, now = asyncio.run(_read(self.name, self.rpc_url, self.key, seen))
        # The last one again: the log may have been exchanged since.
        listed = ([] if seen is None or seen.last is None else [seen.last]) + new
        with log_reader(self.url) as reader:
            text = reader.checkpoint()
            try:
                checkpoint = verify_checkpoint(text, self.key)
            except AOSError as error:
                broken = Anchored(compared=0, broken=error)
                return _Found(anchors=listed, seen=now, text=text, checkpoint=None, compared=broken)
            compared = look_at_anchors(
                reader, self.key, checkpoint, listed, chain_id=self.name.chain_id, registry=self.name.address
            )
        return _Found(anchors=listed, seen=now, text=text, checkpoint=checkpoint, compared=compared)


async def _read(
    name: "RegistryName", rpc_url: str, key: "NoteKey", seen: "Seen | None"
) -> "tuple[list[Anchor], Seen]":
    from aos.adapters.chain.anchors import AnchorReader
    from aos.adapters.chain.node import ChainNode

    node = ChainNode(rpc_url, chain_id=name.chain_id)
    try:
        return await AnchorReader(node, name, _dispatcher_of(key)).since(seen)
    finally:
        await node.close()


def _dispatcher_of(key: "NoteKey") -> str:
    """Whose log it is: the end of its origin."""
    return key.name.rpartition("/")[2]


def _report(found: _Found, *, as_json: bool) -> int:
    assert found.checkpoint is not None  # noqa: S101  what was compared was verified
    last, size = found.seen.last, found.checkpoint.head.size
    state = "NOT ANCHORED" if last is None else "ANCHORED"
    if as_json:
        value = {
            "state": state,
            "size": size,
            "anchored": last.size if last else 0,
            "block": found.seen.number,
        }
        voice.data_json("log.anchors", value | {"compared": len(found.anchors), "evidence": None})
    elif last is None:
        voice.data(f"NOT ANCHORED: final block {found.seen.number} holds no root of this log")
    else:
        many = f"{len(found.anchors)} anchors" if len(found.anchors) != 1 else "one anchor"
        voice.data(
            f"ANCHORED   {size} leaves begin with the {last.size} that the chain holds (block {last.block}); {many} compared"
        )
    return WAITING if last is None else 0


def _shout(path: Path, found: _Found, *, as_json: bool) -> int:
    from aos.core.encoding import canonical_json
    from aos.core.log.anchor import FORK_CODE, write_anchor_fork

    fork, broken = found.compared.fork, found.compared.broken
    if fork is not None:
        evidence = save_evidence(path, "fork", write_anchor_fork(fork))
        state, code = "HISTORY CHANGED", FORK_CODE
        text = f"the log signed a tree that does not begin with the {fork.size} leaves anchored in block {fork.block}"
    else:
        assert broken is not None  # noqa: S101  the caller has looked
        anchor = found.anchors[found.compared.compared] if found.anchors else None
        record: dict[str, Any] = {"type": "aos.log_unproven", "v": 1, "seen": found.text, "code": broken.code}
        record["anchor"] = anchor and {"size": anchor.size, "root": anchor.root.hex(), "block": anchor.block}
        evidence = save_evidence(path, "unproven", canonical_json(record))
        state, code = "NOT PROVEN", broken.code
        text = f"the log does not show that it begins with what was anchored: {broken.message}"
    if as_json:
        size = None if found.checkpoint is None else found.checkpoint.head.size
        anchored = found.seen.last.size if found.seen.last else 0
        value = {"state": state, "size": size, "anchored": anchored, "block": found.seen.number}
        told = {"evidence": str(evidence), "code": code, "text": text}
        voice.data_json("log.anchors", value | {"compared": found.compared.compared} | told)
        return CONVICTED
    word = f"\x1b[1;31m{state}\x1b[0m" if voice.colour() else state
    voice.data(f"{state}: {text} [{code}]")
    voice.say(f"{word}: evidence saved in {evidence}")
    if fork is not None:
        voice.say(
            f"  anybody with a node of the chain can judge it: {voice.program()} log anchors --judge {evidence}"
        )
    else:
        voice.say("  it convicts nobody by itself; ask the log's owner, and look again")
    return CONVICTED


# --- judging what somebody saved


def _judge(file: Path, name: "RegistryName", rpc_url: str, trust: str | None, *, as_json: bool) -> int:
    from aos.cli.verify import find_trust, read_file
    from aos.core.log.anchor import MAX_ANCHOR_FORK_BYTES, check_anchor_fork, read_anchor_fork

    trusted = find_trust(trust)
    try:
        fork = read_anchor_fork(read_file(str(file), limit=MAX_ANCHOR_FORK_BYTES))
    except OSError as error:
        voice.complain(RuleViolation("file.unreadable", f"{file}: {error.strerror}"), as_json=as_json)
        return EVIDENCE_MISSING
    except AOSError as error:
        voice.complain(error, as_json=as_json)
        return EVIDENCE_MISSING
    try:
        key = check_anchor_fork(fork)
        if trust is not None and trusted is not None and key != trusted.log:
            raise VerificationError(
                "conviction.untrusted_log", "the file is about another log than the trust file's"
            )
        if (fork.chain_id, fork.registry) != (name.chain_id, name.address):
            raise VerificationError("conviction.foreign", f"the file is about another contract than {name}")
        held = asyncio.run(_of_size(name, rpc_url, key, fork.size))
        if held is None or held.root != fork.root:
            raise VerificationError(
                "conviction.not_anchored", f"no final block has this root for {fork.size} leaves of the log"
            )
    except VerificationError as error:
        if error.code.startswith("chain."):
            raise
        if as_json:
            value = {"state": "NOTHING PROVEN", "log": fork.log, "code": error.code, "text": error.message}
            voice.data_json("log.anchors.judge", value)
        else:
            voice.data_of_others(f"NOTHING PROVEN against {fork.log}: {error.message} [{error.code}]")
        return 0
    text = f"it signed a tree that does not begin with the {fork.size} leaves anchored in block {held.block} of {name}"
    if as_json:
        voice.data_json(
            "log.anchors.judge", {"state": "CONVICTED", "log": str(key), "code": None, "text": text}
        )
    else:
        voice.data(f"CONVICTED: {key}\n  {text}")
    return CONVICTED


async def _of_size(name: "RegistryName", rpc_url: str, key: "NoteKey", size: int) -> "Anchor | None":
    from aos.adapters.chain.anchors import AnchorReader
    from aos.adapters.chain.node import ChainNode

    node = ChainNode(rpc_url, chain_id=name.chain_id)
    try:
        return await AnchorReader(node, name, _dispatcher_of(key)).of_size(size)
    finally:
        await node.close()


# --- the state


def _held(path: Path, key: "NoteKey", name: "RegistryName") -> "Seen | None":
    """What was kept; None where there is nothing. Raises ConfigError ``log.state``: it never begins anew by itself."""
    from aos.adapters.chain.anchors import Seen
    from aos.core.encoding import b64u_decode, parse_json_strict
    from aos.core.log.anchor import Anchor

    try:
        value: Any = parse_json_strict(path.read_bytes(), max_bytes=MAX_STATE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError("log.state", f"{path}: {error.strerror}") from error
    except AOSError as error:
        raise ConfigError("log.state", f"{path}: {error.message}") from error
    try:
        if not isinstance(value, dict) or value.get("type") != "aos.log_anchors":
            raise ValueError("not the state of this command")
        if (value["log"], value["registry"]) != (str(key), str(name)):
            raise ValueError("it is of another log or contract")
        last = value["last"]
        return Seen(
            number=int(value["block"]),
            hash=b64u_decode(value["hash"], length=32),
            last=last
            and Anchor(
                size=int(last["size"]), root=b64u_decode(last["root"], length=32), block=int(last["block"])
            ),
        )
    except (AOSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "log.state",
            f"{path}: {error}",
            hint="choose another with --state; this one says what was anchored",
        ) from error


def _keep(path: Path, key: "NoteKey", name: "RegistryName", seen: "Seen") -> None:
    from aos.adapters.whole_file import write_whole
    from aos.core.encoding import b64u_encode, canonical_json

    last = seen.last and {
        "size": seen.last.size,
        "root": b64u_encode(seen.last.root),
        "block": seen.last.block,
    }
    value = {"type": "aos.log_anchors", "v": 1, "log": str(key), "registry": str(name), "last": last}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, canonical_json(value | {"block": seen.number, "hash": b64u_encode(seen.hash)}) + b"\n")
