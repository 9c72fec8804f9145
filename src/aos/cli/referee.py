"""``aos referee FILE``: judge a dispute's transcript offline, with the code that every referee uses
(docs/spec/13-dispute.md).

Check lines and judgement go to stdout, talk to stderr. Imports the core and nothing else: no model file, no network.
"""

import argparse
from typing import NoReturn

from aos.cli import voice
from aos.cli.verify import stdout_colour
from aos.core.codec import encode
from aos.core.dispute.case import Arithmetic
from aos.core.dispute.transcript import MAX_TRANSCRIPT_BYTES, Judgement, judge
from aos.core.encoding import b64u_encode
from aos.errors import AOSError, RuleViolation

_EVIDENCE_MISSING = 12
_TEXT_WIDTH = 62
_COLOURS = {"PASS": "32", "FAIL": "31", "SKIP": "33"}
_EXAMPLES = """examples:
  aos referee game.json                       one line a move, exit 10 where the claim is proven wrong
  aos referee game.json --json | jq .result.state"""
_EXIT_CODES = """exit codes: 0 REFUTED (this challenge failed), 10 CONVICTED (the claim is proven wrong),
11 UNDECIDED (open, late by the referee's clock, or not to be recomputed here), 12 NOT A GAME or unreadable, 2 usage"""


def referee_command(argv: list[str], arithmetic: Arithmetic | None = None) -> int:
    """Run the command; returns its exit code. ``arithmetic`` is the canonical one where not given."""
    try:
        return _referee(_parser().parse_args(argv), arithmetic)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except AOSError as error:
        return voice.complain(error, as_json="--json" in argv)


def _referee(options: argparse.Namespace, arithmetic: Arithmetic | None) -> int:
    try:
        data = _read(options.file)
    except OSError as error:
        missing = RuleViolation(
            "file.unreadable",
            f"{options.file}: {error.strerror}",
            hint="name a dispute's transcript; the dispatcher serves it under /v1/aos/disputes",
        )
        voice.complain(missing, as_json=options.json)
        return _EVIDENCE_MISSING
    if arithmetic is None:
        from aos.core.dispute.fine.referee import Canonical
        from aos.engine.around import check_with_tokenizer

        arithmetic = Canonical(check_with_tokenizer)
    found = judge(data, arithmetic)
    if options.json:
        voice.data_json("referee", judgement_json(found, file=str(options.file)))
    else:
        voice.data_of_others(render(found, colour=stdout_colour()))
    return found.exit_code


def _read(name: str) -> bytes:
    from aos.cli.verify import read_file

    return read_file(name, limit=MAX_TRANSCRIPT_BYTES)


def render(found: Judgement, *, colour: bool = False) -> str:
    """The check list, one line a check, and the judgement."""

    def paint(word: str, text: str) -> str:
        return f"\x1b[{_COLOURS[word]}m{text}\x1b[0m" if colour else text

    lines = []
    for check in found.checks:
        what = f"{check.text} [{check.code}]" if check.code else check.text
        detail = f"{what:<{_TEXT_WIDTH}} {check.detail}" if check.detail else what
        lines.append(f"{paint(check.status, check.status)} {check.id:<11} {voice.plain(detail)}")
    word = {"REFUTED": "PASS", "UNDECIDED": "SKIP"}.get(found.state, "FAIL")
    lines.append(paint(word, voice.plain(found.headline)))
    return "\n".join(lines)


def judgement_json(found: Judgement, *, file: str) -> dict[str, object]:
    """A judgement as ``--json`` prints it under ``result``, schema ``aos.cli.referee/1``."""
    game, verdict = found.game, found.verdict
    return {
        "file": file,
        "state": found.state,
        "exit_code": found.exit_code,
        "game": None
        if game is None
        else {
            "id": b64u_encode(game.id),
            "claim": b64u_encode(game.open.claim),
            "claimant": game.open.claimant,
            "challenger": game.open.challenger,
            "kind": game.open.kind,
            "position": game.open.position,
            "unit": game.open.unit,
            "moves": game.turn,
            "bytes": game.size,
        },
        "verdict": None if verdict is None else encode(verdict),
        "contradictions": [encode(each) for each in found.contradictions],
        "checks": [
            {"id": c.id, "status": c.status, "text": c.text, "detail": c.detail, "code": c.code or None}
            for c in found.checks
        ],
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise voice.usage(message, hint="aos referee FILE; `aos referee -h` has examples")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aos referee",
        description="Judge a dispute's transcript offline: one line a move, exit 10 where the claim is proven wrong.\n\n"
        + _EXAMPLES,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="transcript of a dispute, or - for standard input")
    parser.add_argument("--json", action="store_true", help="machine-readable, schema aos.cli.referee/1")
    return parser
