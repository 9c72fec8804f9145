"""What is around the model: who is wrong about the header, the tokens, the trap, the prompt, the end or the text of a run
(docs/spec/11-trace.md, "Around the model").
"""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from dispute_runs import GREEDY, SALT, SAMPLED, TinyRun, flipped, tiny_run
from engine_models import maker
from simulated_run import Network
from tokenizer_cases import bpe_metadata, spm_metadata

from aos.core.codec import decode, encode
from aos.core.dispute.case import Case
from aos.core.dispute.fine.around import prove_header, prove_tokens, prove_trap
from aos.core.dispute.fine.referee import Canonical
from aos.core.dispute.moves import Kind
from aos.core.dispute.state_opening import Place, StateTree
from aos.core.dispute.state_tree import TOKEN, tokens_root, trap_leaf
from aos.core.encoding import canonical_json
from aos.core.hashes import prompt_tokens_hash, response_hash, tokens_hash
from aos.core.manifest import Manifest
from aos.core.statements import ChatMessage, Params, Request, RequestJob
from aos.engine.around import check_with_tokenizer, write_tables
from aos.engine.conversation import Conversations
from aos.engine.manifest import template_digest
from aos.engine.tokenizer import Tokenizer, decode_vocabulary, read_vocabulary
from aos.errors import InvalidMessage, Unavailable, VerificationError

PROMPT = "what is the meaning"
REFEREE = Canonical(check_with_tokenizer)


class Claim:
    """A run with the receipt and the disclosed data of its operator."""

    def __init__(self, name: str, prompt: str, members: dict[str, Any]) -> None:
        self.run: TinyRun = tiny_run(name, prompt, members)
        header = self.run.known.tree.header
        sampling = asdict(maker().sampling_params(members))
        params = Params(**{**sampling, "seed": str(sampling["seed"])})
        template = Network().run().receipt.core
        self.tokens = tuple(self.run.known.tokens[header.n_prompt :])
        self.text = self._text(prompt, members)
        core = replace(
            template,
            state_root=self.run.known.tree.root,
            **{
                name: getattr(header, name)
                for name in (
                    "model_id",
                    "prompt_tokens_hash",
                    "tokens_hash",
                    "response_hash",
                    "n_prompt",
                    "n_out",
                )
            },
            sampling_seed=str(header.sampling_seed),
            finish_reason=header.finish_reason,
        )
        request = Request(
            network=core.network,
            dispatcher=core.dispatcher,
            project="",
            user="",
            job=RequestJob(tag="opml", prompt=prompt, model=name, model_id=header.model_id, params=params),
            min_operators=3,
            blind=False,
            nonce_source="client",
            issued_at=1,
        )
        self.case = Case(
            core=core,
            signature=bytes(65),
            manifest=self.run.engine.manifest.json().decode(),
            nonce=SALT,
            params=params,
            request=canonical_json(encode(request)).decode(),
            prompt_tokens=tuple(self.run.known.tokens[: header.n_prompt]),
            tokens=self.tokens,
            text=self.text,
            tokenizer=self.run.engine.tokenizer.vocabulary.encoded(),
        )

    def _text(self, prompt: str, members: dict[str, Any]) -> str:
        return self.run.engine.generate(prompt, maker().sampling_params(members), salt=SALT).text

    def tail(self, position: int) -> bytes:
        """The proof of ``tokens`` at a position."""
        trace = self.run.trace(position, self.run.tail)
        opening = trace.open_state(Place(position=position, unit=self.run.tail, part=TOKEN, tile=0))
        return prove_tokens(self.run.known.tree, self.run.known.tokens, position, None, opening)

    def committing(self, **members: Any) -> "Claim":
        """The claim of who committed to another header, and signed that."""
        tree = self.run.known.tree
        self.run = self.run.with_tree(StateTree(replace(tree.header, **members), tree.units))
        core = {name: value for name, value in members.items() if name not in ("tokens_root", "params_hash")}
        self.case = replace(
            self.case, core=replace(self.case.core, state_root=self.run.known.tree.root, **core)
        )
        return self

    @property
    def header(self) -> bytes:
        """The proof of ``header``."""
        return prove_header(self.run.known.tree)


def judged(claim: Claim, kind: Kind, proof: bytes, position: int = 0) -> str:
    """The code with which the claimant is wrong, empty where it is right."""
    try:
        REFEREE.check_around(claim.case, kind, position, 0, proof)
    except (VerificationError, InvalidMessage) as error:
        return error.code
    return ""


CLAIMS = [
    ("tiny-q4_0", PROMPT, SAMPLED),
    ("tiny-ends", "b", {"temperature": 0, "max_tokens": 8}),
    ("tiny-trap", "is it so? yes", GREEDY),
]


@pytest.mark.parametrize(("name", "prompt", "members"), CLAIMS)
def test_an_honest_claimant_is_right_about_everything(
    name: str, prompt: str, members: dict[str, Any]
) -> None:
    claim = Claim(name, prompt, members)
    trap = claim.run.known.trap
    for kind in ("header", "prompt", "stop", "text"):
        assert judged(claim, kind, claim.header) == ""  # type: ignore[arg-type]
    assert judged(claim, "trap", prove_trap(claim.run.known.tree, trap)) == ""
    tree = claim.run.known.tree
    unchosen = prove_tokens(tree, claim.run.known.tokens, 0, None if trap is None else trap[0], None)
    assert judged(claim, "tokens", unchosen, 0) == ""
    for position in range(tree.header.n_prompt - 1, tree.header.n_positions):
        if trap is None:
            assert judged(claim, "tokens", claim.tail(position), position) == ""


def test_any_flipped_bit_of_a_proof_convicts() -> None:
    claim, rng = Claim(*CLAIMS[0]), random.Random(3)
    last = claim.run.last
    for kind, proof, position in (
        ("header", claim.header, 0),
        ("tokens", claim.tail(last), last),
        ("trap", prove_trap(claim.run.known.tree, None), 0),
    ):
        for bit in rng.sample(range(8 * len(proof)), 60):
            assert judged(claim, kind, flipped(proof, bit), position) != ""  # type: ignore[arg-type]
        for other in (b"", proof[:-1], proof + b"\0"):
            assert judged(claim, kind, other, position) != ""  # type: ignore[arg-type]


def other_tokens(claim: Claim) -> Claim:
    tokens = [*claim.tokens[:-1], claim.tokens[-1] ^ 1]
    prompt = list(claim.case.prompt_tokens or ())
    claim.committing(tokens_root=tokens_root([*prompt, *tokens]), tokens_hash=tokens_hash(SALT, tokens))
    claim.case = replace(claim.case, tokens=tuple(tokens))
    claim.run = replace(claim.run, known=replace(claim.run.known, tokens=[*prompt, *tokens]))
    return claim


HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"params_hash": bytes(32)}, "tile.header"),
    ({"n_prompt": 400, "n_positions": 27, "n_out": 200}, "tile.header"),
    ({"n_positions": 3}, "state.positions"),
]


@pytest.mark.parametrize(("members", "code"), HEADERS)
def test_a_header_that_is_not_the_runs_convicts(members: dict[str, Any], code: str) -> None:
    claim = Claim(*CLAIMS[0])
    if members.get("n_positions"):
        header, count = replace(claim.run.known.tree.header, **members), members["n_positions"]
        units = [[bytes(32)]] * count
        claim.run = claim.run.with_tree(StateTree(header, units))
        core = {name: value for name, value in members.items() if name != "n_positions"}
        claim.case = replace(
            claim.case, core=replace(claim.case.core, state_root=claim.run.known.tree.root, **core)
        )
    else:
        claim.committing(**members)
    assert judged(claim, "header", claim.header) == code


@pytest.mark.parametrize(
    "member", ["n_out", "finish_reason", "sampling_seed", "tokens_hash", "response_hash"]
)
def test_a_receipt_that_its_own_header_contradicts_convicts(member: str) -> None:
    claim = Claim(*CLAIMS[0])
    other = {"n_out": 1, "finish_reason": "stop", "sampling_seed": "1"}.get(member, bytes(32))
    claim.case = replace(claim.case, core=replace(claim.case.core, **{member: other}))
    for kind, proof in (("header", claim.header), ("trap", prove_trap(claim.run.known.tree, None))):
        assert judged(claim, kind, proof) == "dispute.header"  # type: ignore[arg-type]


def test_a_token_that_the_tail_did_not_choose_convicts() -> None:
    claim = other_tokens(Claim(*CLAIMS[0]))
    assert judged(claim, "tokens", claim.tail(claim.run.last), claim.run.last) == "around.tokens"
    assert judged(claim, "tokens", claim.tail(claim.run.last - 1), claim.run.last - 1) == ""


def test_tokens_that_the_header_does_not_commit_to_convict() -> None:
    claim = Claim(*CLAIMS[0]).committing(tokens_root=bytes(32))
    proof = prove_tokens(claim.run.known.tree, claim.run.known.tokens, 0, None, None)
    assert judged(claim, "tokens", proof) == "around.tokens"


def test_a_run_that_trapped_must_show_its_trap_and_no_other_may() -> None:
    claim = Claim(*CLAIMS[2])
    trap = claim.run.known.trap
    assert trap is not None
    assert judged(claim, "trap", prove_trap(claim.run.known.tree, (trap[0], trap[1] + 1))) == "state.opening"
    assert judged(claim, "trap", prove_trap(claim.run.known.tree, (trap[0], 99))) == "around.trap"
    early = Claim(*CLAIMS[0])
    tree = early.run.known.tree
    units = [*tree.units[:-1], [*tree.units[-1][:-1], trap_leaf(early.run.last, early.run.tail, 21)]]
    units[-1] = units[-1][:2]
    early.run = early.run.with_tree(StateTree(tree.header, units))
    early.case = replace(early.case, core=replace(early.case.core, state_root=early.run.known.tree.root))
    assert judged(early, "trap", prove_trap(early.run.known.tree, None)) != ""


def with_tokens(claim: Claim, tokens: tuple[int, ...], finish: str | None = None) -> Claim:
    """The claim of who says that the run was these tokens."""
    members: dict[str, Any] = {
        "n_out": len(tokens),
        "tokens_hash": tokens_hash(SALT, tokens),
        "n_positions": len(claim.case.prompt_tokens or ()) + len(tokens) - 1,
    }
    if finish is not None:
        members["finish_reason"] = finish
    header = replace(claim.run.known.tree.header, **members)
    units = ([list(each) for each in claim.run.known.tree.units] + [[bytes(32)]] * 10)[: header.n_positions]
    claim.run = claim.run.with_tree(StateTree(header, units))
    members.pop("n_positions")
    core = replace(claim.case.core, state_root=claim.run.known.tree.root, **members)
    claim.case = replace(claim.case, core=core, tokens=tokens)
    return claim


def test_a_run_that_stops_early_late_or_for_another_reason_convicts() -> None:
    sampled: Callable[[], Claim] = lambda: Claim(*CLAIMS[0])  # noqa: E731
    tokens = sampled().tokens
    for wrong in (
        with_tokens(sampled(), tokens[:-1]),
        with_tokens(sampled(), tokens[:-1], "stop"),
        with_tokens(sampled(), (*tokens, 70)),
        with_tokens(sampled(), tokens, "stop"),
        with_tokens(sampled(), (2, *tokens[1:])),  # the end token, then more
    ):
        assert judged(wrong, "stop", wrong.header) == "around.stop"
    ends = Claim(*CLAIMS[1])
    assert ends.case.core.finish_reason == "stop"
    late = with_tokens(ends, (*ends.tokens, 70))
    assert judged(late, "stop", late.header) == "around.stop"


def test_a_stop_string_ends_a_run() -> None:
    claim = Claim("tiny-q4_0", PROMPT, SAMPLED | {"max_tokens": 12})
    text = claim.text
    stopped = Claim("tiny-q4_0", PROMPT, SAMPLED | {"max_tokens": 12, "stop": [text[2:4]]})
    assert stopped.case.core.finish_reason == "stop"
    for kind in ("stop", "text"):
        assert judged(stopped, kind, stopped.header) == ""  # type: ignore[arg-type]
    past = with_tokens(stopped, claim.tokens, "length")
    assert judged(past, "stop", past.header) == "around.stop"


def test_other_prompt_tokens_and_another_text_convict() -> None:
    claim = Claim(*CLAIMS[0])
    prompt = list(claim.case.prompt_tokens or ())
    wrong = [*prompt[:-1], prompt[-1] ^ 1]
    claim.committing(prompt_tokens_hash=prompt_tokens_hash(SALT, wrong))
    claim.case = replace(claim.case, prompt_tokens=tuple(wrong))
    assert judged(claim, "prompt", claim.header) == "around.prompt"
    claim = Claim(*CLAIMS[0]).committing(response_hash=response_hash(SALT, "other"))
    claim.case = replace(claim.case, text="other")
    assert judged(claim, "text", claim.header) == "around.text"


@pytest.mark.parametrize("member", ["tokenizer", "request", "prompt_tokens", "params", "manifest"])
def test_without_the_data_nobody_is_wrong(member: str) -> None:
    claim = Claim(*CLAIMS[0])
    empty: Any = "" if member in ("request", "manifest") else None
    claim.case = replace(claim.case, **{member: empty})
    with pytest.raises(Unavailable):
        REFEREE.check_around(claim.case, "prompt", 0, 0, claim.header)


def asking(claim: Claim, *turns: tuple[str, str]) -> Case:
    """The claim's case with another request: these turns of a conversation."""
    request = json.loads(claim.case.request)
    request["job"]["prompt"] = [{"role": role, "content": content} for role, content in turns]
    return replace(claim.case, request=canonical_json(request).decode())


TEMPLATE = b"{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}!{% endfor %}"


def test_a_conversation_s_prompt_is_judged_through_the_model_s_template() -> None:
    claim = Claim(*CLAIMS[0])
    tokenizer = claim.run.engine.tokenizer
    manifest = json.loads(claim.case.manifest)
    manifest["chat_template"] = encode(template_digest(TEMPLATE))
    text = canonical_json(manifest).decode()
    claim.case = replace(claim.case, manifest=text, tokenizer=write_tables(tokenizer, TEMPLATE))
    model = decode(Manifest, manifest)
    graph, params = model.graph, claim.case.params
    assert graph is not None
    assert params is not None

    def check(case: Case) -> None:
        check_with_tokenizer(case, "prompt", model, graph, params)

    said = Conversations(tokenizer, {"tokenizer.chat_template": TEMPLATE}).tokenize(
        [ChatMessage(role="user", content="what is the meaning")]
    )
    right = replace(asking(claim, ("user", "what is the meaning")), prompt_tokens=said)
    check(right)
    wrong = (
        replace(right, prompt_tokens=said[:-1]),
        replace(right, prompt_tokens=tokenizer.encode("what is the meaning")),  # without the template
        asking(claim, ("user", "something else")),
        asking(claim, ("tool", "what is the meaning")),  # which the template refuses
    )
    for case in wrong:
        with pytest.raises(VerificationError) as caught:
            check(case)
        assert caught.value.code == "around.prompt"
    tables, no = right.tokenizer or b"", write_tables(tokenizer, b"")
    for other in (
        no,
        write_tables(tokenizer, TEMPLATE + b" "),
        tables[:-1],
        tables + b"\0",
        tables[-4:],
        b"",
    ):
        with pytest.raises(Unavailable) as refusal:
            check(replace(right, tokenizer=other))
        assert (refusal.value.code, refusal.value.field) == ("dispute.undisclosed", "tokenizer")


def test_a_conversation_with_a_model_without_a_template_has_no_run() -> None:
    claim = Claim(*CLAIMS[0])
    claim.case = asking(claim, ("user", "x"))
    assert judged(claim, "prompt", claim.header) == "around.prompt"


def test_foreign_or_broken_tokenizer_tables_convict_nobody() -> None:
    claim = Claim(*CLAIMS[0])
    tables = claim.case.tokenizer or b""
    for other in (flipped(tables, 800), tables[:-1], tables + b"\0", b"", b"AOS/tokenizer/v1\0"):
        claim.case = replace(claim.case, tokenizer=other)
        with pytest.raises(Unavailable):
            REFEREE.check_around(claim.case, "prompt", 0, 0, claim.header)
    with pytest.raises(Unavailable):
        Canonical().check_around(claim.case, "prompt", 0, 0, claim.header)


def test_tokenizer_tables_come_back_whole() -> None:
    merges = (("a", "b"), ("ab", "c"), (" ", "a"))
    for metadata in (
        spm_metadata(("ab", -1.0, 1)),
        {**spm_metadata(), "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.eot_token_id": 5},
        bpe_metadata(merges, pre="llama-bpe"),
        {**bpe_metadata(merges, pre="smollm"), "tokenizer.ggml.eos_token_id": 3},
        bpe_metadata(),
    ):
        vocabulary = read_vocabulary(metadata)
        again = decode_vocabulary(vocabulary.encoded())
        assert again.encoded() == vocabulary.encoded()
        assert replace(again, rules=vocabulary.rules) == vocabulary
        text = "abc ab, a! \u00e9\n"
        assert Tokenizer(again).encode(text) == Tokenizer(vocabulary).encode(text)
