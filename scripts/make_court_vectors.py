"""Write ``vectors/aos/dispute/court.json``: ``python scripts/make_court_vectors.py``. What the court judges around the model in
one transaction (docs/spec/16-chain-disputes.md, "Tokens, receipt and parameters"), from runs of a tiny model.

A case is a call of the contract; ``holds`` is its answer, null where nothing is shown, then ``error`` is the referee's code.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from dispute_real import NONCE, Job  # noqa: E402
from dispute_toy import Key  # noqa: E402
from liar_games import case_about  # noqa: E402
from liars import Claim, honest, swapped_token  # noqa: E402

from aos.core.codec import encode  # noqa: E402
from aos.core.dispute.fine.around import prove_header  # noqa: E402
from aos.core.dispute.fine.bounds import state_shape  # noqa: E402
from aos.core.dispute.fine.chain_around import (  # noqa: E402
    MEMBERS,
    open_token,
    params_are_asked,
    receipt_states,
    token_is_chosen,
    tokens_are_hashed,
)
from aos.core.dispute.state_opening import StateTree  # noqa: E402
from aos.core.encoding import b64u_encode, canonical_json  # noqa: E402
from aos.core.hashes import params_hash, run_params_hash, token_bytes  # noqa: E402
from aos.core.statements import ReceiptCore, hash_of  # noqa: E402
from aos.errors import AOSError  # noqa: E402

VECTORS = ROOT / "vectors" / "aos" / "dispute" / "court.json"
JOB = Job("tiny-q4_0", prompt="what is it", max_tokens=3, temperature=800_000, top_k=40, seed=5)


def flipped(data: bytes, at: int) -> bytes:
    """One bit of a byte is another."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def verdict(judge: Callable[[], bool]) -> dict[str, Any]:
    """The referee's."""
    try:
        return {"holds": judge(), "error": None}
    except AOSError as error:
        return {"holds": None, "error": error.code}


class Maker:
    """Collects cases."""

    def __init__(self) -> None:
        self.run = honest(JOB)
        self.cases: list[dict[str, Any]] = []
        tokens = self.run.known.tokens
        swapped = swapped_token(JOB, len(tokens) - 2, 70, disclosed=True)
        hidden = swapped_token(JOB, len(tokens) - 1, 70, disclosed=False)
        if swapped is None or hidden is None:
            raise ValueError("the run has this token")
        self.swapped, self.hidden = swapped, hidden

    def tokens(self) -> None:
        """``tokenIsChosen``."""
        run, n_prompt = self.run, self.run.header.n_prompt
        last = len(run.known.tokens) - 2
        good = self._opened(run, last)
        for name, claim, position, proof in (
            ("the first that was chosen", run, n_prompt - 1, self._opened(run, n_prompt - 1)),
            ("the last", run, last, good),
            ("none before the prompt's end", run, 0, self._opened(run, 0)),
            ("none behind the last", run, last + 1, self._opened(run, last + 1)),
            ("another than the tail chose", self.swapped, last - 1, self._opened(self.swapped, last - 1)),
            ("what follows from another", self.swapped, last, self._opened(self.swapped, last)),
            ("of another position", run, last - 1, good),
            ("none where one was", run, last, self._opened(run, 0)),
            ("one where none was", run, 0, good),
            ("of another run", self.swapped, last, good),
            ("another chosen token", run, last, flipped(good, len(prove_header(run.known.tree)))),
            ("another last token", run, last, flipped(good, len(good) - 4)),
            ("another header", run, last, flipped(good, 133)),
            ("too short", run, last, good[:-1]),
            ("too long", run, last, good + b"\0"),
            ("empty", run, last, b""),
        ):
            known, root = claim.known.run, claim.known.tree.root
            self.cases.append(
                {
                    "name": name,
                    "call": "tokenIsChosen",
                    "state_root": b64u_encode(root),
                    "position": position,
                    "proof": b64u_encode(proof),
                    **verdict(
                        lambda known=known, root=root, position=position, proof=proof: token_is_chosen(  # type: ignore[misc]
                            known.manifest, known.graph, root, position, proof
                        )
                    ),
                }
            )

    def _opened(self, claim: Claim, position: int) -> bytes:
        """The claimant's proof."""
        header, tree = claim.header, claim.known.tree
        if not header.n_prompt <= position + 1 < header.n_prompt + header.n_out:
            return prove_header(tree)
        tail = claim.n_layers + 1
        payload = claim.at(position, tail).payload(position, tail)
        return open_token(
            tree, state_shape(claim.known.run, header, None), claim.known.tokens, position, payload
        )

    def hashes(self) -> None:
        """``tokensAreHashed``."""
        run, n_prompt = self.run, self.run.header.n_prompt
        ids = token_bytes(run.known.tokens)
        good = prove_header(run.known.tree)
        for name, claim, opened, nonce, count, shown in (
            ("right", run, good, NONCE, n_prompt, ids),
            (
                "the root is of others",
                self.hidden,
                prove_header(self.hidden.known.tree),
                NONCE,
                n_prompt,
                ids,
            ),
            ("another nonce", run, good, flipped(NONCE, 0), n_prompt, ids),
            ("one less of the prompt", run, good, NONCE, n_prompt - 1, ids),
            ("another token", run, good, NONCE, n_prompt, flipped(ids, 0)),
            ("one less", run, good, NONCE, n_prompt, ids[:-4]),
            ("half a token", run, good, NONCE, n_prompt, ids[:-2]),
            ("more of the prompt than there are", run, good, NONCE, len(ids), ids),
            ("of another run", self.hidden, good, NONCE, n_prompt, ids),
            ("a header too long", run, good + bytes(32), NONCE, n_prompt, ids),
        ):
            root = claim.known.tree.root
            args = (opened, nonce, count, shown)
            self.cases.append(
                {
                    "name": name,
                    "call": "tokensAreHashed",
                    "state_root": b64u_encode(root),
                    "header": b64u_encode(opened),
                    "nonce": b64u_encode(nonce),
                    "n_prompt": count,
                    "ids": b64u_encode(shown),
                    **verdict(lambda root=root, args=args: tokens_are_hashed(root, *args)),  # type: ignore[misc]
                }
            )

    def receipts(self) -> None:
        """``receiptStates`` and ``paramsAreAsked``."""
        tree = self.run.known.tree
        core = case_about(self.run, Key("real claimant")).core
        core = replace(core, params_hash=params_hash(NONCE, JOB.params), engine=',"tokens_hash":"x",')
        for member, name in enumerate(MEMBERS):
            self._receipt(f"right: {name}", tree, core, member)
        others: dict[str, Any] = {"n_out": 30, "n_prompt": 1, "sampling_seed": "51", "finish_reason": "stop"}
        for member, name in enumerate(MEMBERS):
            wrong = replace(core, **{name: others.get(name, bytes(32))})
            self._receipt(f"another {name}", tree, wrong, member)
        self._receipt("a member that is none", tree, core, len(MEMBERS))
        self._receipt("begins elsewhere", tree, core, 2, shift=1)
        self._receipt("begins within a text", tree, core, 2, at=b'tokens_hash\\"')
        self._receipt("of another receipt", tree, core, 2, receipt=bytes(32))
        self._params("right", tree, core)
        header = replace(tree.header, params_hash=run_params_hash(NONCE, replace(JOB.params, max_tokens=2)))
        self._params("fewer tokens than asked", StateTree(header, tree.units), core)
        self._params("that the receipt does not hash", tree, core, top_k=41)
        self._params("another seed", tree, core, seed="6")

    def _receipt(
        self, name: str, tree: StateTree, core: ReceiptCore, member: int, *, shift: int = 0, at: bytes = b"",
        receipt: bytes | None = None,
    ) -> None:  # fmt: skip
        text = canonical_json(encode(core))
        key = at or f',"{MEMBERS[min(member, len(MEMBERS) - 1)]}":'.encode()
        args = (prove_header(tree), receipt or hash_of(core), text, member, text.index(key) + shift)
        self.cases.append(
            {
                "name": name,
                "call": "receiptStates",
                "state_root": b64u_encode(tree.root),
                "header": b64u_encode(args[0]),
                "receipt": b64u_encode(args[1]),
                "core": text.decode(),
                "member": member,
                "begin": args[4],
                **verdict(lambda: receipt_states(tree.root, *args)),
            }
        )

    def _params(self, name: str, tree: StateTree, core: ReceiptCore, **other: Any) -> None:
        text, params = canonical_json(encode(core)), replace(JOB.params, **other)
        args = (prove_header(tree), hash_of(core), text, text.index(b',"params_hash":'))
        self.cases.append(
            {
                "name": name,
                "call": "paramsAreAsked",
                "state_root": b64u_encode(tree.root),
                "header": b64u_encode(args[0]),
                "receipt": b64u_encode(args[1]),
                "core": text.decode(),
                "begin": args[3],
                "nonce": b64u_encode(NONCE),
                "params": encode(params),
                **verdict(lambda: params_are_asked(tree.root, *args, NONCE, params)),
            }
        )


def made() -> str:
    """The file's text."""
    maker = Maker()
    maker.tokens()
    maker.hashes()
    maker.receipts()
    vector = {
        "source": "scripts/make_court_vectors.py",
        "manifest": maker.run.known.run.manifest.json().decode(),
        "cases": maker.cases,
    }
    return json.dumps(vector, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    VECTORS.write_text(made())
