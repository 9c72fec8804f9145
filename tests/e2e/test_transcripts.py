"""What a person sees who types the product's commands, word for word, with a running network.

`AOS_UPDATE_TRANSCRIPTS=1 pytest tests/e2e/test_transcripts.py` writes the files anew; read the difference before you commit it.
What differs from run to run (addresses, digests, times, ports, counts of what others did) is replaced by its kind.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from aos.local.network import RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

KEPT = Path(__file__).with_name("transcripts")
MODEL = Path(__file__).resolve().parents[2] / "models" / "aos-demo.Q8_0.gguf"
GREEDY = "--temperature 0 --seed 7 --max-tokens 24 --operators 3"
KINDS = (
    (r"aos-local-[0-9a-f]{8}", "aos-local-NETWORK"),
    (r"0x[0-9a-f]{40}", "0xADDRESS"),
    (r"0x[0-9a-f]{4}…[0-9a-f]{4}", "0xAD…SS"),
    (r"\b[0-9a-f]{64}\b", "HEX64"),
    (r"\b[0-9a-f]{6}…", "HEX…"),
    (r"(?<![\w-])[\w-]{43}(?![\w-])", "BASE64"),
    (r"\bp-[0-9a-f]{16}\b", "p-PROJECT"),
    (r"whsec_[\w+/=]+", "whsec_SECRET"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\dZ?", "TIME"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"\b\d{13}\b", "MS"),
    (r"epoch \d+", "epoch N"),
    (r'"clock": \{[^}]*\}|\{("\d+": "\d+",? ?)+\}', "CLOCK"),
    (r"\d+\.\d+ s\b", "N s"),
    (r"PASS (draw-1|vrf-1) .*", r"PASS \1 …"),  # who was selected, and who filled a seat, is the draw's
    (r"(! · \w+\n(!\n)?)+", "! · …\n"),  # which steps a follower is in time to see
    (r"leaf \d+ of \d+ in the dispatcher's log +", "leaf N of N in the dispatcher's log  "),
    (r"native engine, \w+, threads: \d+", "native engine, ISA, threads: N"),
    (r"^(draws|last_draw|jobs|node|workers|clock) +.*", r"\1 …"),
    (r"^(state +eligible);.*", r"\1; …"),
)


class Session:
    """Commands as they are typed, with all that they print."""

    def __init__(self, network: RunningNetwork, directory: Path) -> None:
        self._directory = directory
        self._environment = {
            key: value for key, value in os.environ.items() if not key.startswith("AOS_") and key != "COLUMNS"
        } | {"AOS_STATE_DIR": str(network.trust_path.parent), "COLUMNS": "100"}
        self._hidden = [
            (str(network.trust_path.parent), "STATE"),
            (str(directory), "HERE"),
            (str(MODEL), MODEL.name),
            (str(Path(sys.executable).with_name("aos")), "aos"),
        ]
        self._lines: list[str] = []

    def aos(self, line: str, *, shown: str = "", **environment: str) -> str:
        """Run `aos LINE`; its stdout."""
        done = subprocess.run(
            [sys.executable, "-m", "aos.cli.main", *shlex.split(line)],
            cwd=self._directory,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self._lines.append(f"$ aos {shown or line}")
        self._lines += [f"! {said}" for said in done.stderr.splitlines()]
        self._lines += done.stdout.splitlines()
        self._lines += [f"[exit code {done.returncode}]", ""]
        return done.stdout.strip()

    def text(self) -> str:
        text = "\n".join(self._lines)
        for secret, name in self._hidden:
            text = text.replace(secret, name)
        for pattern, kind in KINDS:
            text = re.sub(pattern, kind, text, flags=re.MULTILINE)
        lines: list[str] = []
        for of_list, group in groupby(text.splitlines(), key=lambda line: line.startswith("0xADDRESS  ")):
            found = list(group)
            lines += sorted(found) if of_list else found  # addresses decide the order
        return "\n".join(line.rstrip() for line in lines).strip() + "\n"

    def is_kept(self, name: str) -> None:
        """Assert that the transcript is the one that is kept."""
        path = KEPT / f"{name}.txt"
        if os.environ.get("AOS_UPDATE_TRANSCRIPTS") == "1":
            path.write_text(self.text(), encoding="utf-8")
        assert self.text() == path.read_text(encoding="utf-8")


@pytest.fixture
def session(network: RunningNetwork, tmp_path: Path) -> Session:
    return Session(network, tmp_path)


def test_a_requester(session: Session, tmp_path: Path) -> None:
    session.aos(f'ask "What is AI?" {GREEDY} --save answer.aos')
    session.aos("verify answer.aos")
    answer = (tmp_path / "answer.aos").read_bytes()
    forged = answer.replace(b'"text":"', b'"text":"Not ', 1)
    (tmp_path / "forged.aos").write_bytes(forged)
    session.aos("verify forged.aos")
    session.aos(f"replay answer.aos --model {MODEL}", shown=f"replay answer.aos --model {MODEL.name}")
    job = session.aos(f'job submit "What is AI?" {GREEDY} --user transcript')
    session.aos(f"job watch {job}")
    session.aos(f"job result {job}")
    session.aos(f"job detail {job}")
    session.aos("job list --user transcript --limit 1")
    session.aos("job result " + "0" * 64)
    session.is_kept("requester")


def test_an_operator(session: Session, network: RunningNetwork, tmp_path: Path) -> None:
    config = network.trust_path.parent / "operator-1" / "config-operator.yaml"
    password = {"AOS_KEYSTORE_PASSWORD": "correct horse"}
    session.aos("keys new keys", **password)
    session.aos("keys show keys --open", **password)
    own = {"AOS_STATE_DIR": str(tmp_path / "models-of-mine")}
    session.aos(f"model add {MODEL}", **own)
    session.aos("model list", **own)
    session.aos(f"model show {MODEL.name}", **own)
    session.aos(f"operator status -c {config}")
    session.aos(f"operator drain -c {config} --wait")
    session.aos(f"operator resume -c {config}")
    session.is_kept("operator")


def test_a_dispatchers_owner(session: Session, network: RunningNetwork) -> None:
    config = network.trust_path.parent / "dispatcher" / "config-dispatcher.yaml"
    made = session.aos(f"project new reader -c {config} --scope read")
    project = made.split()[1]
    session.aos(f"project token {project} -c {config} --scope submit --scope read")
    session.aos(f"project revoke {project} -c {config}")
    session.aos(f"project revoke p-0123456789abcdef -c {config}")
    session.aos(f"registry list -c {config}")
    session.aos("dispute list")
    session.aos(f"dispatcher init -c {config} --model {MODEL}")
    session.is_kept("owner")
