"""``aos demo``: the whole story on one machine, in one sitting.

Starts a local network, asks the developer guide's own question once as ``opml`` and once as ``tee``, checks both receipts, shows a
tampered copy failing, ends the network. It prints only what happened.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from aos.client import Client, Submission
from aos.core.receipt import verify_answer
from aos.core.trust import load_policy, read_trust
from aos.errors import AOSError, RuleViolation
from aos.local.network import Found, LocalNetwork, RunningNetwork

PROMPT = "What is AI?"
PARAMS = {"temperature": 1.0, "top_p": 0.5, "max_tokens": 1024}
DEMO_OPML_OPERATORS = 3

Say = Callable[[str], None]


def run_demo(
    state_dir: Path, *, found: Found, say: Say, write: Callable[[str], None], render: Callable[..., str]
) -> int:
    """Run the demo in ``state_dir``; returns the exit code.

    ``say`` prints a line, ``write`` a piece of streamed text, ``render`` turns a receipt's report into its check list.
    """
    begun = time.monotonic()
    say("AOS demo: a whole network on this machine. Everything below is really run; the TEE is SIMULATED.\n")
    network = LocalNetwork(
        state_dir, found=found, opml_operators=DEMO_OPML_OPERATORS, tee_operators=1, say=say
    )
    with network.running() as running:
        say(f"\nnetwork {running.network_id} is up after {time.monotonic() - begun:.1f} s\n")
        answers = state_dir / "answers"
        answers.mkdir(exist_ok=True)
        opml = _ask(running, "opml", answers / "opml.aos", say=say, write=write, render=render)
        _ask(running, "tee", answers / "tee.aos", say=say, write=write, render=render)
        _tamper(running, opml, answers / "tampered.aos", say=say, render=render)
    kept = Path("demo-answers")
    if kept.exists():
        shutil.rmtree(kept)
    shutil.copytree(answers, kept)
    shutil.copy(state_dir / "trust.json", kept / "trust.json")
    say(
        f"\ndone in {time.monotonic() - begun:.1f} s; the network is stopped. Answers are in {kept}/. Try next:\n"
    )
    for command, why in (
        (
            f"aos verify {kept}/opml.aos --trust {kept}/trust.json",
            "the same checks, offline, whenever you like",
        ),
        (
            f"aos verify {kept}/opml.aos --trust {kept}/trust.json --replay --model models/aos-demo.Q8_0.gguf",
            "run it again yourself, bit for bit",
        ),
        (f"aos verify {kept}/tampered.aos --trust {kept}/trust.json", "see it refused again"),
        ("aos up", "a network that stays up; it prints its URL and where the API token is"),
        ('aos ask "What is a receipt?" --save answer.aos', "ask it (in a second terminal)"),
    ):
        say(f"  .venv/bin/{command}\n      {why}")
    return 0


def _ask(
    running: RunningNetwork,
    job_type: str,
    save: Path,
    *,
    say: Say,
    write: Callable[[str], None],
    render: Callable[..., str],
) -> Path:
    label = (
        "three opML operators, bit-exact engine"
        if job_type == "opml"
        else "one TEE operator, SIMULATED enclave"
    )
    say(f'── {job_type}: "{PROMPT}" · temperature 1.0, top_p 0.5 · {label}')
    begun = time.monotonic()
    submission = Submission(
        prompt=PROMPT,
        model=running.model_name,
        job_type=job_type,
        user="demo",
        params=PARAMS,
        min_operators=DEMO_OPML_OPERATORS if job_type == "opml" else None,
    )
    with running.client() as client:
        accepted = client.submit(submission)
        status = _follow(client, accepted.job_id, say=say, write=write)
        if status != "verified":
            raise RuleViolation("demo.job", f"the {job_type} job ended {status}")
        save.write_bytes(client.answer(accepted.job_id))
    say(
        f"  answered in {time.monotonic() - begun:.1f} s; receipt and answer: {save.stat().st_size:,} bytes\n"
    )
    say(_checked(running, save, render) + "\n")
    return save


def _follow(client: Client, job_id: str, *, say: Say, write: Callable[[str], None]) -> str:
    status, writing = "created", False
    for event in client.events(job_id):
        if event.kind == "text":
            writing = True
            write(str(event.data["text"]))
            continue
        if writing:
            write("\n")
            writing = False
        status = str(event.data.get("status", status))
        say(f"  · {status}")
    return status


def _checked(running: RunningNetwork, path: Path, render: Callable[..., str]) -> str:
    trust = read_trust(running.trust_path.read_bytes())
    report = verify_answer(path.read_bytes(), trust=trust, policy=load_policy(trust.policy))
    return render(report)


def _tamper(
    running: RunningNetwork, honest: Path, save: Path, *, say: Say, render: Callable[..., str]
) -> None:
    answer = json.loads(honest.read_bytes())
    words = answer["text"].split(" ")
    index = next(i for i, word in enumerate(words) if len(word) > 3 and word.isalpha())
    before, words[index] = words[index], "bananas"
    answer["text"] = " ".join(words)
    save.write_bytes(json.dumps(answer, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode())
    say(f'── tampered: one word of the opml answer changed, "{before}" → "bananas"\n')
    try:
        listing = _checked(running, save, render)
    except AOSError as error:
        listing = f"REFUSED: {error}"
    say(listing)
