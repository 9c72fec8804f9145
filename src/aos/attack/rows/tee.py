"""TEE: rows 59 to 64. Every enclave here is SIMULATED: whoever has the platform's file can sign anything in its name."""

import asyncio
import secrets
from dataclasses import replace

from aos.adapters.simulated_nsm import SimulatedPlatform, load_simulated_platform
from aos.attack.engines import replayer
from aos.attack.forge import reattested, restate
from aos.attack.live import Live
from aos.attack.table import ACCEPTED, Trial, row
from aos.client import Client
from aos.core import hashes
from aos.core.answer import Answer
from aos.core.tee import TeeEvidence, public_key_info
from aos.core.trust import Trust, TrustedTeeRoot, load_policy
from aos.errors import AOSError, RuleViolation


def platform(live: Live) -> SimulatedPlatform:
    """The SIMULATED platform, from its file."""
    return load_simulated_platform(live.state / "simulated-platform.key")


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
    "attest.nonce",
)
async def not_bound(live: Live, t: Trial) -> None:
    one, two = await live.tee(), await live.tee("second")
    evidence, other = evidence_of(one), evidence_of(two)
    own = platform(live)
    t.attack("another job's evidence", "tee.not_bound", live.judge(replace(one, evidence=other)))
    foreign = reattested(evidence, own, boot=lambda b: replace(b, operator="0x" + "11" * 20))
    t.attack(
        "another operator's enclave", "tee.answer_not_bound", live.judge(restate(live, one, evidence=foreign))
    )
    drawn = reattested(evidence, own, boot=lambda b: replace(b, vrf_key=secrets.token_bytes(32)))
    t.attack("another draw key", "tee.not_bound", live.judge(restate(live, one, evidence=drawn)))
    booted = reattested(evidence, own)
    mixed = replace(
        evidence, boot=booted.boot, boot_signature=booted.boot_signature, document=booted.document
    )
    t.attack(
        "the boot of one enclave, the answer of another",
        "tee.answer_not_bound",
        live.judge(restate(live, one, evidence=mixed)),
    )
    moved = reattested(evidence, own, document=lambda d: replace(d, user_data=secrets.token_bytes(32)))
    t.attack(
        "a document for another boot", "tee.boot_not_bound", live.judge(restate(live, one, evidence=moved))
    )
    keyless = reattested(
        evidence, own, document=lambda d: replace(d, public_key=public_key_info(secrets.token_bytes(32)))
    )
    t.attack(
        "a document for another key", "tee.boot_not_bound", live.judge(restate(live, one, evidence=keyless))
    )
    replayed = reattested(evidence, own, document=lambda d: replace(d, nonce=secrets.token_bytes(32)))
    t.attack(
        "a document over another challenge",
        "attest.nonce",
        live.judge(restate(live, one, evidence=replayed)),
    )
    t.twin("its own evidence", live.judge(one))
    t.twin("bound evidence, attested again", live.judge(restate(live, one, evidence=booted)))


@row(
    61,
    "revoked, debug, expired, wrong measurement, wrong root",
    "attest.root",
    "attest.debug",
    "attest.signature",
    "tee.boot_expired",
    "tee.lifetime",
    "tee.clock",
    "tee.measurement",
    "tee.sequence",
    missing="revocation: nothing lists a platform's revoked keys",
)
async def wrong_documents(live: Live, t: Trial) -> None:
    answer = await live.tee()
    evidence, own = evidence_of(answer), platform(live)

    def judged(forged: TeeEvidence) -> tuple[str, ...]:
        return live.judge(restate(live, answer, evidence=forged))

    stranger = reattested(evidence, SimulatedPlatform(secrets.token_bytes(32)))
    t.attack("a platform that nobody named", "attest.root", judged(stranger))
    debug = reattested(evidence, own, document=lambda d: replace(d, pcrs=dict.fromkeys(range(3), bytes(48))))
    t.attack("a debug enclave", "attest.debug", judged(debug))
    unsigned = reattested(evidence, own, document=lambda d: replace(d, unsigned=True))
    t.attack("an emulator's document, signed by nobody", "attest.signature", judged(unsigned))
    expired = reattested(evidence, own, boot=lambda b: replace(b, not_after=b.booted_at + 1))
    t.attack("a boot that was over", "tee.boot_expired", judged(expired))
    endless = reattested(evidence, own, boot=lambda b: replace(b, not_after=b.booted_at + 86_400_000))
    t.attack("a boot that lasts for a day", "tee.lifetime", judged(endless))
    old = reattested(evidence, own, document=lambda d: replace(d, time=d.time - 3_600_000))
    t.attack("a document from before the boot", "tee.clock", judged(old))
    other = reattested(
        evidence, own, document=lambda d: replace(d, pcrs={**d.pcrs, 2: secrets.token_bytes(48)})
    )
    t.attack("another image", "tee.measurement", judged(other))
    forked = reattested(evidence, own, answer=lambda a: replace(a, sequence=9))
    t.attack("an answer out of sequence", "tee.sequence", judged(forked))
    t.twin("the network's own document", live.judge(answer))
    t.twin("one like it, made today", judged(reattested(evidence, own)))


@row(62, "genuine evidence with a wrong output", "local.tokens")
async def wrong_output(live: Live, t: Trial) -> None:
    answer = await live.tee()
    evidence, replay = evidence_of(answer), replayer(await live.own_engine())
    tokens = (*answer.tokens[:-1], answer.tokens[-1] ^ 1)
    spoken = hashes.tokens_hash(answer.nonce, tokens)
    lie = reattested(evidence, platform(live), answer=lambda a: replace(a, tokens_hash=spoken))
    told = restate(live, answer, evidence=lie, tokens=tokens)
    t.attack(
        "a replay overrules the enclave",
        "local.tokens",
        await asyncio.to_thread(live.judge, told, replay=replay),
    )
    t.twin("the enclave's own output, replayed", await asyncio.to_thread(live.judge, answer, replay=replay))


@row(63, "evidence checked after the prompt was sent", "tee.policy", "tee.measurement", "attest.root")
async def unbelieved(live: Live, t: Trial) -> None:
    images = tuple(replace(image, pcr2=secrets.token_hex(48)) for image in live.trust.tee_measurements)
    roots = (TrustedTeeRoot(tee="simulated", root=secrets.token_bytes(32)),)

    async def asked(policy: str, trust: Trust) -> str:
        def run() -> str:
            with Client(
                live.url,
                project=live.project,
                token=live.token,
                dispatcher=live.dispatcher,
                trust=trust,
                policy=load_policy(policy),
            ) as client:
                try:
                    client.submit(live.submission(job_type="tee", attested=True))
                except AOSError as error:
                    return error.code
            return ACCEPTED

        return await asyncio.to_thread(run)

    t.attack("simulation under production", "tee.policy", await asked("production", live.trust))
    t.attack(
        "an image that nobody named",
        "tee.measurement",
        await asked("dev", live.changed_trust(tee_measurements=images)),
    )
    t.attack(
        "a platform that nobody named", "attest.root", await asked("dev", live.changed_trust(tee_roots=roots))
    )
    t.twin("an enclave that is believed", await asked("dev", live.trust))


@row(64, "collateral service unreachable", "tee.no_trusted_root", "attest.root")
async def no_collateral(live: Live, t: Trial) -> None:
    answer = await live.tee()
    t.attack(
        "no root at hand", "tee.no_trusted_root", live.judge(answer, trust=live.changed_trust(tee_roots=()))
    )
    foreign = TrustedTeeRoot(tee="simulated", root=secrets.token_bytes(32))
    t.attack(
        "another root", "attest.root", live.judge(answer, trust=live.changed_trust(tee_roots=(foreign,)))
    )
    t.twin("the root at hand", live.judge(answer))
