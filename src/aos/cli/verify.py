"""``aos verify FILE``: check an answer file offline and say what it is worth (docs/verify-a-receipt.md).

Check lines and verdict go to stdout, talk to stderr. Imports the core and nothing else; the engine is loaded only by
``--replay``. The checks themselves are ``aos.core.receipt``'s.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from aos.cli import voice
from aos.core.answer import MAX_ANSWER_BYTES
from aos.core.receipt import Replay, verify_answer
from aos.core.report import Report
from aos.core.trust import Trust, load_policy, read_trust
from aos.errors import AOSError, ConfigError, RuleViolation

_EVIDENCE_MISSING = 12
_TEXT_WIDTH = 62
_COLOURS = {"PASS": "32", "FAIL": "31", "SKIP": "33"}
_HINTS = {
    "file-1": "this is not the file that the dispatcher served; fetch it again: aos job answer JOB_ID --save FILE",
    "trust-1": "the answer is of another network: is --trust the right file?",
    "receipt-1": "the operator did not sign this receipt as it stands: it was changed, or made by somebody else",
    "receipt-2": "the dispatcher did not countersign this receipt",
    "io-1": "the saved request is not the one that was signed",
    "io-2": "the text or its tokens are not those that the operator signed",
    "agree-1": "operators did not sign the same result: do not rely on this answer",
    "tee-2": 'a simulated enclave proves nothing about hardware; only a policy such as "dev" accepts it',
    "tee-3": "the enclave runs an image that the trust file does not name: do not believe what it says of itself",
    "local-1": "this machine computed something else: keep the file, it is evidence",
}
_EXAMPLES = """examples:
  aos verify answer.aos                                   with .aos/trust.json or $AOS_TRUST
  aos verify answer.aos --trust network-trust.json --policy production
  aos verify answer.aos --replay --model models/aos-demo.Q8_0.gguf   re-execute it here
  aos verify answer.aos --json | jq .result.verdict"""
_EXIT_CODES = """exit codes: 0 VERIFIED, 10 NOT VERIFIED, 11 PARTIAL (a required check was skipped),
12 evidence missing or unreadable, 2 usage, 30 broken trust file or unknown policy"""


def main() -> int:
    """The program ``aos-verify`` of the small distribution (packages/aos-verify): ``aos verify`` by itself."""
    return verify_command(sys.argv[1:], program="aos-verify")


def verify_command(argv: list[str], *, program: str = "aos verify") -> int:
    """Run the command; returns its exit code."""
    parser = _parser(program)
    try:
        return _verify(parser.parse_args(argv))
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except AOSError as error:
        return voice.complain(error, as_json="--json" in argv)


def _verify(options: argparse.Namespace) -> int:
    if options.replay and options.model is None:
        raise _usage("--replay needs --model PATH, the model's GGUF file")
    if options.model is not None and not options.replay:
        raise _usage("--model is only for --replay")
    try:
        data = read_file(options.file)
    except OSError as error:
        missing = RuleViolation(
            "file.unreadable",
            f"{options.file}: {error.strerror}",
            hint="name an answer file; aos job answer JOB_ID --save FILE fetches one",
        )
        voice.complain(missing, as_json=options.json)
        return _EVIDENCE_MISSING
    trust = find_trust(options.trust)
    policy = load_policy(options.policy or (trust.policy if trust is not None else "default"))
    replay: Replay | None = None
    if options.replay:
        policy = replace(policy, required=(*policy.required, "local-1"))
        replay = _replayer(options.model)
    report = verify_answer(data, trust=trust, policy=policy, replay=replay)
    if options.json:
        document = report_json(report, file=str(options.file))
        if options.explain:
            document["hashes"] = _hashes(data)
        voice.data_json("verify", document)
        return report.exit_code
    if options.explain:
        from aos.cli.explain import explain

        voice.data(explain(data))
    voice.data(render_report(report, colour=stdout_colour()))
    for hint in _hints(report, trust):
        voice.say(f"  hint: {hint}")
    return report.exit_code


def _replayer(model: str) -> Replay:
    try:
        from aos.cli.replay import Replayer
    except ModuleNotFoundError as error:
        raise voice.usage(
            "--replay needs an engine, and this is the small distribution aos-verify, which has none",
            hint="install aos, and run `aos verify --replay --model PATH`",
        ) from error
    return Replayer(Path(model))


def _hashes(data: bytes) -> list[dict[str, str | None]]:
    """What ``--explain`` shows; nothing where the file cannot be read, which ``file-1`` says."""
    from aos.cli.explain import explained

    try:
        return [row.to_json() for row in explained(data)]
    except AOSError:
        return []


def render_report(report: Report, *, colour: bool = False) -> str:
    """The check list, one line a check, and the verdict."""

    def paint(word: str, text: str) -> str:
        return f"\x1b[{_COLOURS[word]}m{text}\x1b[0m" if colour else text

    lines = []
    for check in report.checks:
        what = f"{check.text} [{check.code}]" if check.code else check.text
        detail = f"{what:<{_TEXT_WIDTH}} {check.detail}" if check.detail else what
        lines.append(f"{paint(check.status, check.status)} {check.id:<11} {detail}")
    word = {"VERIFIED": "PASS", "PARTIAL": "SKIP"}.get(report.verdict, "FAIL")
    lines.append(paint(word, report.headline))
    return "\n".join(lines)


def report_json(report: Report, *, file: str) -> dict[str, object]:
    """A report as ``--json`` prints it under ``result``: docs/schemas/aos.cli.verify-1.json."""
    return {
        "file": file,
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "levels": list(report.levels),
        "policy": report.policy,
        "required_but_skipped": list(report.missing),
        "checks": [
            {"id": c.id, "status": c.status, "text": c.text, "detail": c.detail, "code": c.code or None}
            for c in report.checks
        ],
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _usage(message)


def _parser(program: str = "aos verify") -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        description="Check an answer file offline: one line a check, exit 0 only when VERIFIED.\n\n"
        + _EXAMPLES.replace("aos verify", program),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="answer file (.aos), or - for standard input")
    parser.add_argument("--trust", metavar="FILE", help="trust file; default: $AOS_TRUST or .aos/trust.json")
    parser.add_argument(
        "--policy", metavar="NAME", help="dev, default or production; default: the trust file's"
    )
    parser.add_argument(
        "--json", action="store_true", help="machine-readable report, schema aos.cli.verify/1"
    )
    parser.add_argument("--replay", action="store_true", help="re-execute the request here (needs --model)")
    parser.add_argument("--model", metavar="PATH", help="the model's GGUF file, for --replay")
    parser.add_argument(
        "--explain", action="store_true", help="also print every byte string that is hashed, and its digest"
    )
    return parser


def _usage(message: str) -> AOSError:
    return voice.usage(message, hint="aos verify FILE; `aos verify -h` has examples")


def read_file(name: str, *, limit: int = MAX_ANSWER_BYTES) -> bytes:
    """A file's bytes, ``-`` for standard input; no more of them than a reader of ``limit`` refuses. Raises OSError."""
    # One byte more than allowed is enough for the reader to refuse it.
    if name == "-":
        return sys.stdin.buffer.read(limit + 1)
    with open(name, "rb") as file:
        return file.read(limit + 1)


def find_trust(named: str | None) -> Trust | None:
    """The trust file that is named, else $AOS_TRUST, else that of the state directory; None where there is none.

    Raises ConfigError ``trust.unreadable``, ``trust.invalid``.
    """
    path = named or os.environ.get("AOS_TRUST") or ""
    if not path:
        found = Path(os.environ.get("AOS_STATE_DIR") or ".aos") / "trust.json"
        if not found.is_file():
            return None
        path = str(found)
    try:
        return read_trust(Path(path).read_bytes())
    except ConfigError as error:
        error.message = f"{path}: {error.message}"
        raise
    except OSError as error:
        raise ConfigError(
            "trust.unreadable", f"{path}: {error.strerror}", hint="pass --trust FILE"
        ) from error


def _hints(report: Report, trust: Trust | None) -> list[str]:
    failed = [check.id for check in report.checks if check.status == "FAIL"]
    hints = [_HINTS[name] for name in failed if name in _HINTS][:1]
    if trust is None and report.verdict == "PARTIAL":
        hints.append("no trust file: name the network that you trust with --trust FILE or $AOS_TRUST")
    if "local-1" in report.missing:
        hints.append("--replay asks for local-1: give the model that the receipt names")
    if "registry-1" in report.missing and trust is not None:
        hints.append(
            "the registry changed since the trust file was written: get the network's new trust file"
        )
    return hints


def stdout_colour() -> bool:
    """True where stdout is a terminal that wants colour."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
