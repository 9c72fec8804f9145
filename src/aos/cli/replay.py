"""``aos replay FILE --model GGUF``: run a signed answer again here, in one prefill, and compare.

docs/spec/07-inference.md, "State root", says what a replay is.

``aos verify --replay`` is the same code. Neither believes a cache: what the model file is, is computed from its bytes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aos.cli import voice
from aos.core.answer import Answer
from aos.core.checks.case import Replayed
from aos.core.checks.result import Comparison, compared
from aos.core.receipt import verify_answer
from aos.core.report import Report
from aos.core.statements import Request
from aos.core.trust import load_policy
from aos.errors import RuleViolation

REPLAY_EXAMPLES = """aos replay answer.aos --model models/aos-demo.Q8_0.gguf
aos replay answer.aos --model models/aos-demo.Q8_0.gguf --engine reference
AOS_ISA=scalar aos replay answer.aos --model models/aos-demo.Q8_0.gguf --json"""
_EVIDENCE_MISSING = 12
_REQUIRED = ("receipt-1", "io-1", "io-2", "local-1")
"""What a replay asks of a file: that it is what the operator signed, and what this machine computes."""


class EngineName(StrEnum):
    """Engines that can replay: the two of the canonical arithmetic."""

    NATIVE = "native"
    REFERENCE = "reference"


@dataclass(slots=True)
class Replayer:
    """Re-executes an answer's request with a model file, and keeps what was compared."""

    model: Path
    engine: EngineName = EngineName.NATIVE
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    isa: str = ""
    comparisons: tuple[Comparison, ...] = ()

    def __call__(self, answer: Answer, request: Request) -> Replayed:
        """An ``aos.core.receipt.Replay``.

        Raises RuleViolation ``replay.other_model``, ``replay.other_engine``, and as ``load_engine`` does.
        """
        from aos.engine import isa_of, load_engine
        from aos.ports import SamplingParams

        core, params = answer.receipt.core, request.job.params
        voice.say(f"re-executing {core.n_out} tokens with {self.model} …")
        engine = load_engine(
            self.model,
            kind=self.engine.value,
            progress=voice.Progress("loading the model"),
            threads=self.threads,
        )
        self.isa = isa_of(engine)
        if engine.model_id != core.model_id:
            raise RuleViolation("replay.other_model", f"{self.model} is not the model of this receipt")
        if engine.profile != core.engine:
            raise RuleViolation("replay.other_engine", f"the receipt is of engine {core.engine}")
        generation = engine.replay(
            request.job.prompt,
            answer.tokens,
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
        replayed = Replayed(
            prompt_tokens=generation.prompt_tokens,
            tokens=generation.tokens,
            text=generation.text,
            finish_reason=generation.finish_reason,
            state_root=generation.state_root,
        )
        self.comparisons = compared(answer, replayed)
        return replayed


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Answer file (.aos), or - for standard input.")
    ],
    *,
    model: Annotated[Path, typer.Option(help="The model's GGUF file.")],
    engine: Annotated[
        EngineName, typer.Option(help="The reference engine is slow and gives the same bits.")
    ] = EngineName.NATIVE,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Default: the cores that this process may use.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Run a signed answer again on this machine and compare tokens, text, finish reason and state root.

    Exit codes are those of `aos verify`: 0 the same bits, 10 not, 11 it could not be replayed here (another model, a TEE's
    answer), 12 evidence missing or unreadable. Who signed it, and under which draw, `aos verify` says.
    """
    from aos.cli.verify import read_file

    try:
        data = read_file(str(file))
    except OSError as error:
        missing = RuleViolation(
            "file.unreadable",
            f"{file}: {error.strerror}",
            hint="name an answer file; aos job answer JOB_ID --save FILE fetches one",
        )
        voice.complain(missing, as_json=as_json)
        raise typer.Exit(_EVIDENCE_MISSING) from None
    replayer = Replayer(model, engine)
    if threads is not None:
        replayer.threads = threads
    policy = replace(load_policy("dev"), required=_REQUIRED)
    report = verify_answer(data, trust=None, policy=policy, replay=replayer)
    if as_json:
        voice.data_json("replay", _as_json(report, replayer, str(file)))
    else:
        _show(report, replayer, voice.data)
    raise typer.Exit(report.exit_code)


def _show(report: Report, replayer: Replayer, write: Callable[[str], None]) -> None:
    for item in replayer.comparisons:
        word = "same" if item.equal else "DIFFERENT"
        write(f"{word:<10} {item.name:<14} {item.signed}" + ("" if item.equal else f"  here: {item.here}"))
    notes = [
        c for c in report.checks if c.status == "FAIL" or (c.id in report.missing and c.status == "SKIP")
    ]
    for check in notes:
        code = f" [{check.code}]" if check.code else ""
        write(f"{check.status:<10} {check.id:<14} {voice.plain(check.text)}{code}")
    write(_headline(report, replayer))


def _headline(report: Report, replayer: Replayer) -> str:
    if report.verdict == "VERIFIED":
        where = (
            f"native engine, {replayer.isa}, threads: {replayer.threads}"
            if replayer.isa
            else "reference engine"
        )
        return f"REPLAYED: this machine ({where}) gives the signed result, bit for bit"
    words = {
        "PARTIAL": "NOT REPLAYED: it could not be re-executed here",
        "EVIDENCE MISSING": "EVIDENCE MISSING",
    }
    return words.get(report.verdict, "NOT THE SAME: this file does not hold what this machine computes")


def _as_json(report: Report, replayer: Replayer, file: str) -> dict[str, object]:
    return {
        "file": file,
        "model": str(replayer.model),
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "engine": replayer.engine.value,
        "isa": replayer.isa or None,
        "threads": replayer.threads,
        "compared": [
            {"name": item.name, "signed": item.signed, "here": item.here, "equal": item.equal}
            for item in replayer.comparisons
        ],
        "checks": [
            {"id": c.id, "status": c.status, "text": c.text, "code": c.code or None}
            for c in report.checks
            if c.status == "FAIL" or c.id in _REQUIRED
        ],
    }
