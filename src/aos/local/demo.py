"""``aos demo``: the whole story on one machine, in one sitting.

Starts a local network, asks the developer guide's own question once as ``opml`` and once as ``tee``, checks both receipts, shows a
tampered copy failing, ends the network. It prints only what happened.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aos.client import Client, Submission
from aos.core.answer import Answer, read_answer
from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.trust import load_policy, read_trust
from aos.errors import ConfigError, RuleViolation
from aos.local.network import DEMO_MODEL, Found, LocalNetwork, RunningNetwork

PROMPT = "What is AI?"
PARAMS = {"temperature": 1.0, "top_p": 0.5, "max_tokens": 1024}
DEMO_OPML_OPERATORS = 3
KEPT = Path("demo-answers")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where the demo is shown: ``say`` prints a line, ``write`` a piece of streamed text, ``render`` gives a receipt's check
    list, ``program`` is what a shell calls this program.
    """

    say: Say
    write: Callable[[str], None]
    render: Callable[[Report], str]
    program: str


def run_demo(state_dir: Path, *, found: Found, stage: Stage) -> dict[str, Any]:
    """Run the demo in ``state_dir``, keep the answers in ``demo-answers`` here; returns what came out, for ``--json``.

    Raises ConfigError ``demo.answers`` (this directory cannot be written), RuleViolation ``demo.job``, and what a network
    raises that cannot start.
    """
    begun, say = time.monotonic(), stage.say
    try:
        KEPT.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "demo.answers",
            f"cannot make {KEPT.absolute()}: {error.strerror}",
            hint="run the demo in a directory that you may write",
        ) from error
    say("AOS demo: a whole network on this machine. Everything below is really run;")
    say("the TEE is SIMULATED.\n")
    instruction_sets = _instruction_sets()
    network = LocalNetwork(
        state_dir,
        found=found,
        opml_operators=DEMO_OPML_OPERATORS,
        tee_operators=1,
        say=say,
        isas=instruction_sets[-DEMO_OPML_OPERATORS:],
    )
    with network.running() as running:
        say(f"\nnetwork {running.network_id} is up after {time.monotonic() - begun:.1f} s\n")
        shutil.copyfile(running.trust_path, KEPT / "trust.json")
        reports = {
            "opml": _ask(running, "opml", stage),
            "tee": _ask(running, "tee", stage),
            "tampered": _tamper(running, stage),
        }
        isas = sorted(set(running.isas.values()))
    seconds = time.monotonic() - begun
    say(f"\ndone in {seconds:.1f} s; the network is stopped. Answers are in {KEPT}/. Try next:\n")
    for command, why in _next_commands():
        say(f"  {stage.program} {command}\n      {why}")
    return {
        "network": running.network_id,
        "seconds": round(seconds, 1),
        "instruction_sets": isas,
        "answers": {
            name: {
                "file": str(KEPT / f"{name}.aos"),
                "verdict": report.verdict,
                "levels": list(report.levels),
                "exit_code": report.exit_code,
            }
            for name, report in reports.items()
        },
    }


def _instruction_sets() -> list[str]:
    """What the native engine has here. Raises ConfigError ``engine.native_missing``."""
    from aos.engine import native_instruction_sets

    return native_instruction_sets()


def _next_commands() -> tuple[tuple[str, str], ...]:
    trust = f"--trust {KEPT}/trust.json"
    return (
        (f"verify {KEPT}/opml.aos {trust}", "the same checks, offline, whenever you like"),
        (
            f"verify {KEPT}/opml.aos {trust} --replay --model {DEMO_MODEL}",
            "run it again yourself, bit for bit",
        ),
        (f"verify {KEPT}/tampered.aos {trust}", "see it refused again"),
        ("up", "a network that stays up; it prints its URL and where the API token is"),
        ('ask "What is a receipt?" --save answer.aos', "ask it (in a second terminal)"),
    )


def _ask(running: RunningNetwork, job_type: str, stage: Stage) -> Report:
    say = stage.say
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
    save = KEPT / f"{job_type}.aos"
    with running.client() as client:
        accepted = client.submit(submission)
        status = _follow(client, accepted.job_id, stage)
        if status != "verified":
            raise RuleViolation("demo.job", f"the {job_type} job ended {status}")
        save.write_bytes(client.answer(accepted.job_id))
    report = _checked(running, save)
    say(
        f"  answered in {time.monotonic() - begun:.1f} s; receipt and answer: {save.stat().st_size:,} bytes\n"
    )
    say(stage.render(report) + "\n")
    if job_type == "opml":
        _show_state_roots(read_answer(save.read_bytes()), running.isas, say)
    return report


def _show_state_roots(answer: Answer, isas: dict[str, str], say: Say) -> None:
    """Every signed state root with the instruction set that its operator was forced to.

    Raises RuleViolation ``demo.state_root`` where they are not one.
    """
    cores = [receipt.core for receipt in (answer.receipt, *answer.peers)]
    for core in cores:
        say(f"  {isas[core.operator]:<8} operator {core.operator}  state root {core.state_root.hex()}")
    used = sorted({isas[core.operator] for core in cores})
    if len({core.state_root for core in cores}) != 1:
        raise RuleViolation("demo.state_root", f"the state roots of {', '.join(used)} differ")
    if len(used) < 2:
        say(f"  equal state roots, but of one instruction set only ({used[0]}): this machine shows no more\n")
    else:
        say(f"  equal state roots from {len(used)} instruction sets: {', '.join(used)}\n")


def _follow(client: Client, job_id: str, stage: Stage) -> str:
    status, writing = "created", False
    for event in client.events(job_id):
        if event.kind == "text":
            writing = True
            stage.write(str(event.data["text"]))
            continue
        if writing:
            stage.write("\n")
            writing = False
        status = str(event.data.get("status", status))  # the last one comes with `done`
        stage.say(f"  · {status}")
    return status


def _checked(running: RunningNetwork, path: Path) -> Report:
    trust = read_trust(running.trust_path.read_bytes())
    return verify_answer(path.read_bytes(), trust=trust, policy=load_policy(trust.policy))


def _tamper(running: RunningNetwork, stage: Stage) -> Report:
    """Change one word of the opml answer, and check the copy like any other file."""
    answer = json.loads((KEPT / "opml.aos").read_bytes())
    words = answer["text"].split(" ")
    index = next(i for i, word in enumerate(words) if len(word) > 3 and word.isalpha())
    before, words[index] = words[index], "bananas"
    answer["text"] = " ".join(words)
    save = KEPT / "tampered.aos"
    save.write_bytes(json.dumps(answer, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode())
    stage.say(f'── tampered: one word of the opml answer changed, "{before}" → "bananas"\n')
    report = _checked(running, save)
    stage.say(stage.render(report))
    return report
