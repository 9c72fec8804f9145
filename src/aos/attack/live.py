"""The network under attack, with every key that an attacker could have stolen: those in its state directory."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from aos.attack.engines import Damage, damaged_copy, load, under_name
from aos.attack.liars import liar
from aos.attack.table import ACCEPTED
from aos.client import Accepted, Client, Submission
from aos.core.answer import Answer, read_answer, write_answer
from aos.core.codec import decode
from aos.core.encoding import b64u_decode, parse_json_strict
from aos.core.keys import parse_key
from aos.core.receipt import Replay, verify_answer
from aos.core.report import Report
from aos.core.signing import address_of
from aos.core.statements import SnapshotEntry
from aos.core.trust import Policy, Trust, load_policy, read_trust
from aos.engine import read_manifest
from aos.engine.native import NativeEngine
from aos.engine.party import Party
from aos.errors import AOSError, ConfigError, RuleViolation

if TYPE_CHECKING:
    from aos.attack.court import Hearing
    from aos.attack.guest import Guest
    from aos.ports import Engine

PARAMS: Mapping[str, Any] = {"temperature": 1.0, "top_p": 0.5, "max_tokens": 24}
PROMPT = "What is AI?"
HTTP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stolen:
    """One party's two secrets, 32 bytes each."""

    signer: bytes
    vrf: bytes

    def __repr__(self) -> str:
        return f"Stolen({address_of(self.signer)})"


@dataclass(slots=True, kw_only=True)
class Live:
    """One network. ``operators`` and ``dispatcher_keys`` are its parties' keys; ``guests`` are operators of ours."""

    state: Path
    url: str
    project: str
    token: str
    model: str
    model_path: Path
    network: str
    dispatcher: str
    dispatcher_keys: Stolen
    operators: Mapping[str, Stolen]
    trust: Trust
    http: httpx.AsyncClient
    guests: tuple["Guest", ...] = ()
    guest_model: str = ""
    guest_model_path: Path | None = None
    engine: "Engine | None" = None
    """Of the guests' model."""
    liars: tuple["Guest", ...] = ()
    """Guests that offer the network's own model. They have no link but where a row seats them."""
    honest_operators: int = 0
    """Operators of the network that offer its model in the tag opml, beside ``liars``."""
    fair: "Hearing | None" = None
    """The honest twin of the liars' jobs, once it was played."""
    traced: bool = False
    """Every operator has served a claim's leaves."""
    stop: str = "zebra"
    chain: "Live | None" = None
    """The second network, whose beacon is a block; None where there is no node."""
    chain_url: str = ""
    """That node's."""
    begun: dict[int, Any] = field(default_factory=dict)
    """By row: what its ``begin`` left for it."""
    _answers: dict[str, Answer] = field(default_factory=dict)
    _engines: "dict[str, Engine]" = field(default_factory=dict)
    _players: "dict[str | None, tuple[Engine, Party]]" = field(default_factory=dict)

    # --- asking, as an honest requester does

    def client(self) -> Client:
        return Client(self.url, project=self.project, token=self.token, dispatcher=self.dispatcher)

    def submission(self, **changes: Any) -> Submission:
        """The demo's question to all opML operators, with ``changes``."""
        base: dict[str, Any] = {
            "prompt": PROMPT,
            "model": self.model,
            "user": "attack",
            "params": PARAMS,
        }
        return Submission(**(base | changes))

    async def submit(self, **changes: Any) -> Accepted:
        """Submit through the product's client."""

        def run() -> Accepted:
            with self.client() as client:
                return client.submit(self.submission(**changes))

        return await asyncio.to_thread(run)

    async def follow(self, job_id: str) -> str:
        """The job's last status, or ``disputed`` as soon as it is: what games make of it later is another matter."""

        def run() -> str:
            with self.client() as client:
                for event in client.events(job_id):
                    status = str(event.data.get("status", ""))
                    if event.kind == "done" or (event.kind == "status" and status == "disputed"):
                        return status
            raise RuleViolation("attack.job", "the job's events ended before the job did")

        return await asyncio.to_thread(run)

    async def answer_of(self, job_id: str) -> bytes:
        """The job's answer file."""

        def run() -> bytes:
            with self.client() as client:
                return client.answer(job_id)

        return await asyncio.to_thread(run)

    async def ask(self, **changes: Any) -> Answer:
        """Ask, wait, fetch. Raises RuleViolation ``attack.job`` where the job does not end verified."""
        accepted = await self.submit(**changes)
        status = await self.follow(accepted.job_id)
        if status != "verified":
            raise RuleViolation("attack.job", f"an honest job ended {status}")
        return read_answer(await self.answer_of(accepted.job_id))

    async def opml(self, which: str = "first") -> Answer:
        """An honest opML answer; ``which`` names one of several."""
        return await self._kept(f"opml {which}", min_operators=3)

    async def blind(self) -> Answer:
        """An honest answer that every seat generated by itself."""
        return await self._kept("blind", min_operators=3, blind=True)

    async def accented(self) -> Answer:
        """An honest answer to a prompt that Unicode can write in two ways."""
        return await self._kept("accented", prompt="Café? What is AI?", min_operators=1)

    async def stopped(self) -> Answer:
        """An honest answer under a stop string."""
        return await self._kept("stopped", params={**PARAMS, "stop": [self.stop]}, min_operators=3)

    async def single(self) -> Answer:
        """An honest answer for which one operator was asked."""
        return await self._kept("single", min_operators=1)

    async def tee(self, which: str = "first") -> Answer:
        """An honest answer of a SIMULATED enclave."""
        return await self._kept(f"tee {which}", job_type="tee")

    async def _kept(self, name: str, **changes: Any) -> Answer:
        for _ in range(3):
            if name not in self._answers:
                answer = await self.ask(**changes)
                if len(answer.peers) + 1 < changes.get("min_operators", 1):
                    continue  # a seat was too slow for this network's deadlines
                self._answers[name] = answer
            return self._answers[name]
        raise RuleViolation("attack.slow", "three times in a row an operator was too slow to commit")

    async def models_of(self, node_id: str) -> tuple[bytes, ...]:
        """What an operator offers, as the registry says. Raises RuleViolation ``attack.registry``."""
        answer = await self.http.get(f"{self.url}/v1/aos/registry")
        for entry in answer.json()["entries"]:
            if entry["node_id"] == node_id:
                return decode(SnapshotEntry, entry).models
        raise RuleViolation("attack.registry", f"the registry does not list {node_id}")

    async def rows_of(self, job_id: str) -> list[dict[str, Any]]:
        """The guide's result rows of a job."""

        def run() -> list[dict[str, Any]]:
            with self.client() as client:
                rows: list[dict[str, Any]] = client.result(job_id)
                return rows

        return await asyncio.to_thread(run)

    # --- a worker, as its operator sees it

    def worker_token(self) -> str:
        """The bearer token of the first opML operator's worker."""
        return (self.state / "operator-1" / "worker.token").read_text().strip()

    async def worker_status(self, token: str) -> str:
        """What that worker says to a caller with ``token``."""
        port = (self.state / "ports" / "operator-1-worker").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        return code_of(await self.http.get(f"http://127.0.0.1:{port}/api/v1/status", headers=headers))

    # --- engines

    async def own_engine(self) -> "Engine":
        """The network's model, as a verifier has it."""
        return await self._engine("own", self.model_path)

    async def _engine(self, name: str, path: Path) -> "Engine":
        if name not in self._engines:
            self._engines[name] = await load(path, self.state / "cache")
        return self._engines[name]

    def guests_engine(self) -> "Engine":
        """The guests' model. Raises RuleViolation ``attack.engine``."""
        if self.engine is None:
            raise RuleViolation("attack.engine", "this network has no guests, so nothing is run here")
        return self.engine

    async def wrong_engine(self, name: str, damage: Damage, *, all_tensors: bool) -> "Engine":
        """The guests' model damaged, saying that it is not: made once for each ``name``."""
        if self.guest_model_path is None:
            raise RuleViolation("attack.engine", "this network has no guests, and they no model")
        if name not in self._engines:
            with tempfile.TemporaryDirectory(prefix="aos-attack-") as directory:
                path = Path(directory) / "wrong.gguf"
                await asyncio.to_thread(
                    damaged_copy, self.guest_model_path, path, damage, all_tensors=all_tensors
                )
                engine = await self._engine(name, path)
            under_name(engine, self.guests_engine().model_id)
        return self._engines[name]

    async def player(self, kind: str | None) -> "tuple[Engine, Party]":
        """Engine and party of a liar of the network's model; with None, of an honest operator. One of each kind is made."""
        if kind not in self._players:
            honest = await self.own_engine()
            if not isinstance(honest, NativeEngine):
                raise RuleViolation("attack.engine", "the network's model is of no canonical arithmetic")
            if kind is None:
                self._players[kind] = honest, Party(honest, self.model_path, cache_dir=self.state / "cache")
            else:
                self._players[kind] = await asyncio.to_thread(
                    liar, self.model_path, honest, kind, directory=self.state / "cache"
                )
        return self._players[kind]

    # --- judging, as a stranger does

    def report(
        self,
        answer: Answer | bytes,
        *,
        policy: str | Policy = "dev",
        trust: Trust | None = None,
        replay: Replay | None = None,
    ) -> Report:
        """What `aos verify` says; a replay that is asked for is required."""
        data = answer if isinstance(answer, bytes) else write_answer(answer)
        rules = load_policy(policy) if isinstance(policy, str) else policy
        if replay is not None:
            rules = replace(rules, required=(*rules.required, "local-1"))
        return verify_answer(data, trust=trust or self.trust, policy=rules, replay=replay)

    def judge(self, answer: Answer | bytes, **how: Any) -> tuple[str, ...]:
        """``accepted`` where VERIFIED, else the codes of the checks that failed, or the required ones that could not be made."""
        report = self.report(answer, **how)
        if report.verdict == "VERIFIED":
            return (ACCEPTED,)
        failed = tuple(check.code for check in report.checks if check.status == "FAIL")
        return failed or tuple(f"unchecked {name}" for name in report.missing)

    # --- raw HTTP, written by hand

    async def post(self, path: str, body: bytes | Mapping[str, Any], **headers: str) -> str:
        """POST bytes; the error's code, or ``accepted``."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.http.post(
            self.url + path, content=data, headers={"content-type": "application/json"} | named
        )
        return code_of(answer)

    def seed_body(self, **changes: Any) -> dict[str, Any]:
        """The developer guide's own submission, by hand."""
        job = {"tag": "opml", "prompt": PROMPT, "model": self.model, "params": dict(PARAMS)}
        return {
            "from": self.project,
            "tag": "",
            "user": "attack",
            "job": job,
            "verify": self.token,
            "min_operators": 1,
        } | changes

    def changed_trust(self, **changes: Any) -> Trust:
        return replace(self.trust, **changes)


def code_of(answer: httpx.Response) -> str:
    """The stable code of a refusal in either envelope; ``accepted`` for a success."""
    if answer.is_success:
        return ACCEPTED
    try:
        body = answer.json()
    except ValueError:
        return f"http {answer.status_code}"
    if not isinstance(body, dict):
        return f"http {answer.status_code}"
    return str(body.get("error") or body.get("title") or f"http {answer.status_code}")


def refusal(action: Callable[[], object]) -> str:
    """The code that ``action`` raises; ``accepted`` where it raises nothing."""
    try:
        action()
    except AOSError as error:
        return error.code
    return ACCEPTED


def read_state(state: Path, http: httpx.AsyncClient, model_path: Path) -> Live:
    """A network by its state directory.

    Raises ConfigError ``attack.state`` where nothing that `aos up` made is there, ``attack.model`` where it has another model.
    """
    try:
        client = json.loads((state / "client.json").read_bytes())
        founded = json.loads((state / "founded.json").read_bytes())
        names, model_id = founded["operators"], b64u_decode(founded["model_id"], length=32)
        trust = read_trust((state / "trust.json").read_bytes())
        keys = {name: stolen(state / name) for name in names}
        dispatcher = stolen(state / "dispatcher")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            "attack.state",
            f"{state} is not the state directory of a network: {error}",
            hint="start one with `aos up`, or leave --state out",
        ) from error
    if read_manifest(model_path, cache_dir=state / "cache").model_id != model_id:
        raise ConfigError(
            "attack.model",
            f"{model_path} is not the model of the network in {state}",
            hint="give the network's own file with --model",
        )
    return Live(
        state=state,
        url=client["url"],
        project=client["project"],
        token=client["token"],
        model=client["model"],
        model_path=model_path,
        network=trust.network,
        dispatcher=address_of(dispatcher.signer),
        dispatcher_keys=dispatcher,
        operators={address_of(stolen.signer): stolen for stolen in keys.values()},
        trust=trust,
        http=http,
    )


def stolen(directory: Path) -> Stolen:
    """The two keys of the party whose directory this is."""
    signer, vrf = ((directory / f"{name}.key").read_text().strip() for name in ("signer", "vrf"))
    return Stolen(signer=parse_key(signer, name="signer"), vrf=parse_key(vrf, name="vrf"))


def members(data: bytes) -> dict[str, Any]:
    """An answer file as plain JSON values, to be damaged by hand."""
    value = parse_json_strict(data, max_bytes=len(data))
    if not isinstance(value, dict):
        raise RuleViolation("attack.file", "an answer file is an object")
    return value
