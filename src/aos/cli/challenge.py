"""``aos challenge FILE --model GGUF`` and ``aos dispute``: play a dispute about an answer, and look at those of others
(docs/spec/13-dispute.md, "In the network").
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from aos.cli import voice
from aos.cli.help import Command, Group, NamedByHash
from aos.cli.own_key import OwnKey, own_key
from aos.client import Client
from aos.client.settings import load_client_settings, state_dir
from aos.core.answer import Answer, Receipt
from aos.core.codec import decode
from aos.core.dispute.coarse import Aim, aim, served_tree
from aos.core.dispute.moves import Open, turn_of
from aos.core.dispute.state_opening import StateTree
from aos.core.dispute.transcript import Transcript, read_transcript
from aos.core.encoding import b64u_decode, b64u_encode, parse_canonical
from aos.core.hashes import MAX_REQUEST_BYTES
from aos.core.signing import address_of
from aos.core.statements import Request, hash_of, sign
from aos.errors import ConfigError, InvalidMessage, RuleViolation, Unavailable

CHALLENGE_EXAMPLES = """aos challenge answer.aos --model models/aos-demo.Q8_0.gguf
aos challenge answer.aos --model models/aos-demo.Q8_0.gguf --key keys/signer.json
aos challenge answer.aos --model models/aos-demo.Q8_0.gguf --save game.json --json
aos challenge answer.aos --model models/aos-demo.Q8_0.gguf --on-chain --rpc http://127.0.0.1:8545 --key keys/signer.json"""
POLL_S = 0.5
_MAX_DOCUMENT = 48 << 20

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Url = Annotated[str | None, typer.Option(help="Dispatcher; default $AOS_URL, then .aos/client.json.")]


def challenge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Answer file (.aos).")],
    *,
    model: Annotated[Path, typer.Option(help="The model's GGUF file.")],
    operator: Annotated[
        str, typer.Option(metavar="0x…", help="Whose claim in the file; default: the one whose text it is.")
    ] = "",
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save the transcript to this file; a game on a chain has none."),
    ] = None,
    wait: Annotated[int, typer.Option(min=1, max=86_400, help="Seconds to wait for each move.")] = 120,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Default: the cores that this process may use.")
    ] = None,
    key: OwnKey = None,
    on_chain: Annotated[
        bool,
        typer.Option(
            "--on-chain", help="Dispute it at the court of the claim's chain, for the operator's stake."
        ),
    ] = False,
    rpc_url: Annotated[
        str,
        typer.Option(
            "--rpc",
            metavar="URL",
            envvar="AOS_CHAIN_RPC_URL",
            show_envvar=False,
            help="The chain's node; default $AOS_CHAIN_RPC_URL.",
        ),
    ] = "",
    court: Annotated[
        str,
        typer.Option(
            metavar="0x…", help="Play at no other court than this; default: the one that the claim names."
        ),
    ] = "",
    database: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="AOS_CHALLENGER_DB_URL",
            show_envvar=False,
            help="PostgreSQL that remembers transactions; default $AOS_CHALLENGER_DB_URL, then one below .aos/challenger.",
        ),
    ] = "",
    max_fee_gwei: Annotated[
        int, typer.Option(min=1, max=100_000, help="What a unit of gas may cost at most.")
    ] = 200,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before money is put down.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compute an answer again, and where its claim differs, dispute it move by move.

    Openings show tokens, so you are the job's project (its token, scope `challenge`) or one of its operators (`--key`). A
    challenge under `--key` is taken up again where it was left; without it, a key is made for this one game.

    Exit codes are those of `aos referee`: 0 the claim is what this model computes (nothing to challenge), or the challenge was
    refuted; 10 the claim is proven wrong; 11 undecided: the claimant does not move, or the window closes.

    With `--on-chain` the game is played at the contract to which the operator signed its claim, with the account of `--key`: it
    pays gas and a bond, which is back unless the challenge is refuted, and has half of what the operator loses. Every
    transaction is recorded before it is sent: stopped at any moment and run again, the command goes on where it was. It asks
    before it opens a game (`--json` needs `--yes`), and prints the gas of every transaction. It ends when all of it is final.
    What a game around the model would be (another prompt, stop or text) has no court; without `--on-chain` it has a referee.
    Exit codes are the same, but for 11: another challenger has convicted the claim, and the bond is back.
    """
    from aos.cli.verify import read_file
    from aos.core.answer import read_answer

    if on_chain and (key is None or not rpc_url):
        raise ConfigError(
            "cli.on_chain",
            "a challenge on a chain needs an account and a node",
            field="--key" if key is None else "--rpc",
            hint="--key FILE (made by `aos keys new`), and the node's URL in AOS_CHAIN_RPC_URL",
        )
    answer = read_answer(read_file(str(file), limit=8 << 20))
    receipt = claim_in(answer, operator)
    core = receipt.core
    if not core.state_root:
        raise RuleViolation("dispute.not_disputable", "this receipt commits to no state root")
    signer = own_key(key)
    with load_client_settings(url=url, keyed=key is not None).client() as client:
        keep = state_dir() / "challenger" if on_chain else None
        player = Player(client, answer, receipt, model, threads, wait, signer, keep)
        if on_chain:
            from aos.cli.challenge_chain import OnChain, challenge_on_chain

            asked = OnChain(
                rpc_url=rpc_url,
                court=court,
                database=database,
                max_fee_gwei=max_fee_gwei,
                yes=yes,
                as_json=as_json,
            )
            raise SystemExit(challenge_on_chain(player, asked))
        found = player.aim()
        if found is None:
            if as_json:
                voice.data_json("challenge", {"state": "SAME", "exit_code": 0, "game": None})
            else:
                voice.data("SAME: this model computes what the claim says; there is nothing to challenge")
            return
        transcript = player.play(found)
    if save is not None:
        save.write_bytes(transcript)
        voice.say(f"saved the transcript to {save}; aos referee {save} judges it again")
    raise SystemExit(judged(transcript, as_json=as_json))


def claim_in(answer: Answer, operator: str) -> Receipt:
    if not operator:
        return answer.receipt
    for receipt in (answer.receipt, *answer.peers):
        if receipt.core.operator == operator.lower():
            return receipt
    raise InvalidMessage("cli.operator", f"no receipt of {operator} is in the file", field="--operator")


def judged(transcript: bytes, *, as_json: bool) -> int:
    from aos.cli.referee import judgement_json, render
    from aos.core.dispute.fine.referee import Canonical
    from aos.core.dispute.transcript import judge
    from aos.engine.around import check_with_tokenizer

    found = judge(transcript, Canonical(check_with_tokenizer))
    if as_json:
        voice.data_json("challenge", judgement_json(found, file=""))
    else:
        voice.data_of_others(render(found))
    return found.exit_code


class Player:
    """One game, from comparing to its end."""

    def __init__(
        self,
        client: Client,
        answer: Answer,
        receipt: Receipt,
        model: Path,
        threads: int | None,
        wait_s: int,
        key: bytes,
        keep: Path | None = None,
    ) -> None:
        """``keep``: a directory for what the dispatcher served of the claim, which is asked for once: a game that costs money
        can then be gone on with whether it still answers or not."""
        from aos.engine.native import NativeEngine
        from aos.engine.party import Party
        from aos.ports import SamplingParams

        core = receipt.core
        self.answer, self.core, self.key = answer, core, key
        self._client, self._wait_s, self._keep = client, wait_s, keep
        self._subject = hash_of(core)
        self._claim = b64u_encode(self._subject)
        many = threads or len(os.sched_getaffinity(0))
        engine = NativeEngine(model, progress=voice.Progress("loading the model"), threads=many)
        if engine.model_id != core.model_id:
            raise RuleViolation("replay.other_model", f"{model} is not the model of this receipt")
        described = self._object(
            self._kept("claim", lambda: self._ask(f"/claims/{self._claim}", self._subject))
        )
        self.claimed_tokens = [int(token) for token in described["tokens"]]
        """The output, as the receipt hashes it."""
        self._rules = described["rules"]
        request = decode(
            Request, parse_canonical(answer.request.encode(), max_bytes=MAX_REQUEST_BYTES), where="request"
        )
        self.params = params = request.job.params
        voice.say(f"computing {core.n_out} tokens again with {model} …")
        self.party = Party(engine, model, threads=many)
        self.known = self.party.run(
            request.job.prompt,
            self.claimed_tokens,
            SamplingParams(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                repeat_penalty=params.repeat_penalty,
                max_tokens=params.max_tokens,
                stop=params.stop,
                seed=int(core.sampling_seed),
            ),
            salt=answer.nonce,
        )

    def aim(self) -> Aim | None:
        """Where the claim differs from this model's run; None where it does not."""
        if self.known.tree.root == self.core.state_root:
            return None
        tree, prompt_tokens = self.claimed()
        found = aim(
            tree,
            self.known.tree,
            claimed_tokens=[*prompt_tokens, *self.claimed_tokens],
            own_tokens=list(self.known.tokens),
        )
        if found is None:
            raise RuleViolation("dispute.no_difference", "the claim differs nowhere that can be challenged")
        return found

    def claimed(self) -> tuple[StateTree, list[int]]:
        """The claim's leaves, and the tokens of its prompt, as the claimant serves them."""
        served = self._object(self._kept("leaves", self._served))
        graph = self.known.run.manifest.graph
        assert graph is not None  # noqa: S101  the engine is canonical
        tree = served_tree(
            self.core.state_root,
            b64u_decode(served["header"]),
            [b64u_decode(unit) for unit in served["units"]],
            n_layers=graph.n_layers,
        )
        return tree, [int(token) for token in served["prompt_tokens"]]

    def chain_claim(self) -> bytes:
        """The claim that the operator signed for a court, as JSON. Raises RuleViolation ``chain_claim.none``."""
        return self._kept("chain", lambda: self._ask(f"/claims/{self._claim}/chain", self._subject))

    def play(self, found: Aim) -> bytes:
        """The transcript, once nothing more is to be expected."""
        core = self.core
        opening = Open(
            network=core.network,
            challenger=address_of(self.key),
            claimant=core.operator,
            claim=hash_of(core),
            job_ref=core.job_ref,
            attempt=core.attempt,
            kind=found.kind,
            position=found.position,
            unit=found.unit,
            state_root=self.known.tree.root,
            leaf=found.leaf,
            bond=int(self._rules["bond"]) << 4,
        )
        where = f" {found.unit} at position {found.position}" if found.kind == "unit" else ""
        voice.say(f"challenging {core.operator}: {found.kind}{where}")
        game = self._object(self._client.disputes(value=sign(self.key, opening).to_json()))
        until, seen = time.monotonic() + self._wait_s, 1
        while game["state"] == "open" and time.monotonic() < until:
            if game["moves"] != seen:
                until, seen = time.monotonic() + self._wait_s, game["moves"]
                voice.say(f"· {seen} moves")
            if game["mover"] == opening.challenger:
                game = self._move(game["game"])
                continue
            time.sleep(POLL_S)
            game = self._get(f"/{game['game']}", b"")
        return self._transcript(game["game"])

    def _move(self, game: str) -> dict[str, Any]:
        transcript = self._transcript(game)
        held: Transcript = read_transcript(transcript)
        move = self.party.move(self.known, "challenger", transcript)
        if turn_of(move) != len(held.moves):
            raise RuleViolation("dispute.turn", "the dispatcher's transcript is of another turn")
        return self._object(self._client.disputes(f"/{game}/moves", value=sign(self.key, move).to_json()))

    def _kept(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        if self._keep is None:
            return fetch()
        path = self._keep / f"{self._subject.hex()}.{name}.json"
        if path.is_file():
            return path.read_bytes()
        data = fetch()
        self._keep.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_suffix(".new")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        partial.replace(path)
        return data

    def _served(self) -> bytes:
        until = time.monotonic() + self._wait_s
        while True:
            try:
                return self._ask(f"/claims/{self._claim}/leaves", self._subject)
            except RuleViolation as error:
                if error.code != "dispute.not_served":
                    raise
                if time.monotonic() > until:
                    raise Unavailable(
                        "dispute.not_served",
                        "the claimant serves no leaves; whoever serves none in time is taken as silent",
                    ) from error
            time.sleep(POLL_S)

    def _ask(self, path: str, subject: bytes) -> bytes:
        return self._client.disputes(path, key=self.key, subject=subject)

    def _get(self, path: str, subject: bytes) -> dict[str, Any]:
        return self._object(self._ask(path, subject))

    def _transcript(self, game: str) -> bytes:
        return self._client.disputes(
            f"/{game}/transcript", key=self.key, subject=b64u_decode(game, length=32)
        )

    @staticmethod
    def _object(data: bytes) -> dict[str, Any]:
        if len(data) > _MAX_DOCUMENT:
            raise InvalidMessage("encoding.too_large", "the dispatcher's answer is too large")
        value: dict[str, Any] = json.loads(data)
        return value


dispute_app = typer.Typer(
    help="Look at disputes: who challenged what, and how it ended.",
    cls=Group,
    epilog="aos dispute list\naos dispute show GAME --save game.json",
    no_args_is_help=True,
)


@dispute_app.command(
    "list", cls=Command, short_help="Games and audits, newest first.", epilog="aos dispute list --json"
)
def list_games(*, url: Url = None, as_json: AsJson = False) -> None:
    """List the newest games and audits of the dispatcher, and who is convicted."""
    with load_client_settings(url=url).client() as client:
        games = json.loads(client.disputes())["games"]
        audits = json.loads(client.audits())["audits"]
        convictions = json.loads(client.disputes("/convictions"))["convictions"]
    if as_json:
        voice.data_json("dispute.list", {"games": games, "audits": audits, "convictions": convictions})
        return
    for game in games:
        voice.data_of_others(voice.plain(_line(game)))
    for each in audits:
        refused = f" [{each['refused']}]" if each["refused"] else ""
        voice.data_of_others(
            voice.plain(
                f"{each['audit']}  {each['auditor']} audits {each['operator']}  {each['layers']} layers: "
                f"{each['state']}{refused}"
            )
        )
    for each in convictions:
        voice.data_of_others(
            voice.plain(f"CONVICTED {each['node_id']} [{each['code']}] in game {each['game']}")
        )
    if not games and not audits:
        voice.say("no disputes")


@dispute_app.command(
    "show",
    cls=NamedByHash,
    short_help="One game's moves and verdict.",
    epilog="aos dispute show GAME --save game.json",
)
def show_game(
    game: Annotated[
        str, typer.Argument(metavar="GAME", help="The game's name, as `aos dispute list` shows it.")
    ],
    *,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the transcript.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a game's transcript, with the project's token, and judge it here. Exit codes are those of `aos referee`."""
    with load_client_settings(url=url).client() as client:
        transcript = client.disputes(f"/{game}/transcript")
    if save is not None:
        save.write_bytes(transcript)
    raise SystemExit(judged(transcript, as_json=as_json))


def _line(game: dict[str, Any]) -> str:
    where = f"unit {game['unit']} at position {game['position']}" if game["kind"] == "unit" else game["kind"]
    verdict = game["state"] if not game["against"] else f"{game['state']} against the {game['against']}"
    code = f" [{game['code']}]" if game["code"] else ""
    return f"{game['game']}  {game['challenger']} v {game['claimant']}  {where}: {verdict}{code}, {game['moves']} moves"
