"""TEE: rows 59, 60, 61, 64. Every enclave here is SIMULATED: whoever has the platform's key file can sign anything in its name."""

import json
import secrets
from dataclasses import replace

from nacl.signing import SigningKey

from aos.attack.forge import reattested, restate
from aos.attack.live import Live
from aos.attack.table import Trial, row
from aos.core.answer import Answer
from aos.core.tee import TeeEvidence
from aos.core.trust import TrustedTeeRoot
from aos.errors import RuleViolation


def platform(live: Live) -> SigningKey:
    """The SIMULATED platform's key, from its file."""
    content = json.loads((live.state / "simulated-platform.key").read_bytes())
    return SigningKey(bytes.fromhex(content["seed"]))


def evidence_of(answer: Answer) -> TeeEvidence:
    if answer.evidence is None:
        raise RuleViolation("attack.evidence", "this answer has no enclave evidence")
    return answer.evidence


@row(59, "simulated evidence under a production policy", "tee.policy")
async def simulated(live: Live, t: Trial) -> None:
    answer = await live.tee()
    for policy in ("default", "production"):
        t.attack(f'policy "{policy}"', "tee.policy", live.judge(answer, policy=policy))
    t.twin("a policy that names simulation", live.judge(answer))


@row(
    60,
    "document of another machine; key or job not bound",
    "tee.not_bound",
    "tee.boot_not_bound",
    "tee.answer_not_bound",
)
async def not_bound(live: Live, t: Trial) -> None:
    one, two = await live.tee(), await live.tee("second")
    evidence, other = evidence_of(one), evidence_of(two)
    t.attack("another job's evidence", "tee.not_bound", live.judge(replace(one, evidence=other)))
    foreign = reattested(evidence, platform(live), boot=lambda b: replace(b, operator="0x" + "11" * 20))
    t.attack(
        "another operator's enclave", "tee.answer_not_bound", live.judge(restate(live, one, evidence=foreign))
    )
    moved = reattested(
        evidence, platform(live), document=lambda d: replace(d, user_data=secrets.token_bytes(32))
    )
    t.attack(
        "a document for another boot", "tee.boot_not_bound", live.judge(restate(live, one, evidence=moved))
    )
    keyless = reattested(
        evidence, platform(live), document=lambda d: replace(d, public_key=secrets.token_bytes(32))
    )
    t.attack(
        "a document for another key", "tee.boot_not_bound", live.judge(restate(live, one, evidence=keyless))
    )
    t.twin("its own evidence", live.judge(one))
    t.twin(
        "bound evidence, attested again",
        live.judge(restate(live, one, evidence=reattested(evidence, platform(live)))),
    )


@row(
    61,
    "revoked, debug, expired, wrong measurement, wrong root",
    "tee.wrong_root",
    "tee.boot_expired",
    "tee.boot_not_bound",
    "tee.sequence",
    missing="revocation and debug flags: SIMULATED evidence has none",
)
async def wrong_documents(live: Live, t: Trial) -> None:
    answer = await live.tee()
    evidence, key = evidence_of(answer), platform(live)
    stranger = reattested(evidence, SigningKey.generate())
    t.attack(
        "a platform that nobody named", "tee.wrong_root", live.judge(restate(live, answer, evidence=stranger))
    )
    expired = reattested(evidence, key, boot=lambda b: replace(b, not_after=b.booted_at))
    t.attack("a boot that was over", "tee.boot_expired", live.judge(restate(live, answer, evidence=expired)))
    other = reattested(evidence, key, document=lambda d: replace(d, measurement=secrets.token_bytes(32)))
    t.attack("another measurement", "tee.boot_not_bound", live.judge(restate(live, answer, evidence=other)))
    forked = reattested(evidence, key, answer=lambda a: replace(a, sequence=9))
    t.attack("an answer out of sequence", "tee.sequence", live.judge(restate(live, answer, evidence=forked)))
    t.twin("the network's own document", live.judge(answer))
    t.twin("one like it, made today", live.judge(restate(live, answer, evidence=reattested(evidence, key))))


@row(64, "collateral service unreachable", "tee.no_trusted_root", "tee.wrong_root")
async def no_collateral(live: Live, t: Trial) -> None:
    answer = await live.tee()
    t.attack(
        "no root at hand", "tee.no_trusted_root", live.judge(answer, trust=live.changed_trust(tee_roots=()))
    )
    foreign = TrustedTeeRoot(tee="simulated", key=secrets.token_bytes(32))
    t.attack(
        "another root", "tee.wrong_root", live.judge(answer, trust=live.changed_trust(tee_roots=(foreign,)))
    )
    t.twin("the root at hand", live.judge(answer))
