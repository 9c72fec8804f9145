"""``aos ask`` and ``aos job …``: a requester's commands."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from aos.cli import voice
from aos.cli.help import Command, Group
from aos.client import Accepted, Client, Submission, encode_acceptance
from aos.client.answer import ShownText
from aos.client.settings import ClientSettings, load_client_settings, load_trust
from aos.errors import InvalidMessage, RuleViolation

ASK_EXAMPLES = """aos ask "What is AI?" --save answer.aos && aos verify answer.aos
aos ask "What is AI?" --type tee --attested
aos ask "What is AI?" --chat
aos ask "What is AI?" --temperature 0 --operators 3 --json | jq -r .result.text"""

job_app = typer.Typer(
    help="Submit a job and read its results, as the seed's API does.",
    cls=Group,
    epilog="""aos job submit "What is AI?" --operators 3
aos job result JOB_ID
aos job answer JOB_ID --save answer.aos""",
    no_args_is_help=True,
)

JobType = Annotated[str, typer.Option("--type", help="opml (bit-exact, comparable) or tee (enclave).")]
Model = Annotated[str, typer.Option(help="Model name; default: the network's demo model.")]
Temperature = Annotated[str, typer.Option(help="Decimal, at most six places; 0 is greedy.")]
TopP = Annotated[str, typer.Option("--top-p", help="Decimal, above 0 and at most 1.")]
TopK = Annotated[int, typer.Option("--top-k", help="0: off.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")]
Seed = Annotated[str, typer.Option(help="Unsigned 64-bit; default: the draw gives it.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string; may be repeated.")]
Operators = Annotated[int, typer.Option("--operators", help="Seats wanted; 0: the network's default.")]
Tag = Annotated[str, typer.Option(help="suspicion or malicious: flag this user's jobs.")]
User = Annotated[str, typer.Option(help="User or device id that the job belongs to.")]
Url = Annotated[str | None, typer.Option(help="Dispatcher; default: $AOS_URL or the local network.")]
Trust = Annotated[Path | None, typer.Option(help="Trust file; default: $AOS_TRUST or .aos/trust.json.")]
Attested = Annotated[
    bool, typer.Option("--attested", help="tee: send the prompt only to enclaves that are believed first.")
]
Blind = Annotated[bool, typer.Option("--blind", help="All seats generate; nothing is streamed.")]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt, fed to the model as it is.")]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="What `aos job submit` printed.")]
Answer = Annotated[Path, typer.Option("--save", metavar="FILE", help="Where to save the answer file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def _params(options: dict[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {
        "temperature": _number(options["temperature"], "temperature"),
        "top_p": _number(options["top_p"], "top_p"),
        "max_tokens": options["max_tokens"],
    }
    if options["top_k"]:
        params["top_k"] = options["top_k"]
    if options["seed"]:
        params["seed"] = _integer(options["seed"], "seed")
    if options["stop"]:
        params["stop"] = options["stop"]
    return params


def _submission(
    settings: ClientSettings, prompt: str, params: dict[str, Any], options: dict[str, Any]
) -> Submission:
    return Submission(
        prompt=[{"role": "user", "content": prompt}] if options.get("chat") else prompt,
        model=options["model"] or settings.model,
        job_type=options["job_type"],
        user=options["user"],
        tag=options["tag"],
        params=params,
        min_operators=options["operators"] or None,
        blind=options["blind"],
        attested=options["attested"],
    )


def _check_place(save: Path) -> None:
    """An answer that cannot be saved must not be asked for first. Raises AOSError ``cli.usage``."""
    if save.is_dir() or not os.access(save if save.exists() else save.parent, os.W_OK):
        raise voice.usage(f"cannot write {save}", hint="--save FILE, in a directory that you may write")


def _number(text: str, field: str) -> float:
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text, re.ASCII) is None:
        raise InvalidMessage(
            "cli.number",
            f"{field}: {text!r} is not a decimal number",
            field=field,
            hint="such as 0.7, with at most six places",
        )
    return float(text)


def _integer(text: str, field: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise InvalidMessage("cli.number", f"{field}: {text!r} is not an unsigned integer", field=field)
    return int(text)


_SUPERSEDED = "[superseded: the text above is not the answer; this is]"


class _Shown:
    """The streamed text on stdout. What does not count any more cannot be taken back: it is marked, there and on stderr."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._text = ShownText()

    def __bool__(self) -> bool:
        return bool(self._text.shown)

    @property
    def superseded(self) -> bool:
        return self._text.superseded

    def push(self, attempt: int, text: str) -> None:
        self._write(*self._text.push(attempt, text))

    def finish(self, text: str) -> None:
        """The text that the receipt is about."""
        self._write(*self._text.finish(text))
        self.end()

    def end(self) -> None:
        """Nothing more comes."""
        if self._wanted and self:
            voice.data("")

    def _write(self, new: str, again: bool) -> None:
        if not self._wanted:
            return
        if again:
            voice.data(f"\n\n{_SUPERSEDED}")
            voice.say(
                voice.bold("superseded: another operator's result stands, and the text shown first does not")
            )
        voice.data_of_others(new, end="")


def follow(client: Client, accepted: Accepted, shown: _Shown) -> str:
    """Print progress to stderr and the streamed text to ``shown``; returns the job's last status."""
    status = "created"
    for event in client.events(accepted.job_id):
        if event.kind == "status":
            status = str(event.data.get("status", status))
            if not shown:
                voice.say(voice.dim(f"· {status}"))
        elif event.kind == "text":
            shown.push(int(event.data.get("attempt", 0)), str(event.data.get("text", "")))
        elif event.kind == "done":
            status = str(event.data.get("status", status))
    return status


def ask(
    prompt: Prompt,
    *,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save answer and receipt to this file.")
    ] = None,
    job_type: JobType = "opml",
    model: Model = "",
    temperature: Temperature = "1.0",
    top_p: TopP = "0.5",
    top_k: TopK = 0,
    max_tokens: MaxTokens = 512,
    seed: Seed = "",
    stop: Stop = None,
    operators: Operators = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send it as a message, through the model's chat template.")
    ] = False,
    blind: Blind = False,
    attested: Attested = False,
    user: User = "local",
    tag: Tag = "",
    url: Url = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Ask the network: streams the answer, then says what it is worth."""
    options = dict(locals())
    params = _params(options)
    if save is not None:
        _check_place(save)
    settings = load_client_settings(url=url, trust=trust)
    with settings.client() as client:
        accepted = client.submit(_submission(settings, prompt, params, options))
        shown = _Shown(wanted=not as_json)
        status = follow(client, accepted, shown)
        if status not in ("verified", "disputed"):
            detail = client.detail(accepted.job_id)
            shown.end()
            raise RuleViolation(
                f"job.{status}", f"the job ended {status}: {detail.get('error') or 'no reason given'}"
            )
        answer = client.answer(accepted.job_id)
    shown.finish(json.loads(answer)["text"])
    voice.say(voice.dim(f"· {status}"))
    report = _report(answer, settings)
    if save is not None:
        save.write_bytes(answer)
    if as_json:
        voice.data_json(
            "ask",
            encode_acceptance(accepted)
            | {
                "text": json.loads(answer)["text"],
                "status": status,
                "superseded": shown.superseded,
                "verdict": report.verdict,
                "levels": list(report.levels),
                "saved": None if save is None else str(save),
            },
        )
    else:
        voice.say(f"{report.headline}")
        if save is not None:
            voice.say(f"saved {save}; every check: {voice.program()} verify {shlex.quote(str(save))}")
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _report(answer: bytes, settings: ClientSettings) -> Any:
    from aos.core.receipt import verify_answer
    from aos.core.trust import load_policy

    trust = None if settings.trust is None else load_trust(settings.trust)
    policy = load_policy(trust.policy if trust is not None else "default")
    return verify_answer(answer, trust=trust, policy=policy)


@job_app.command(
    "submit",
    cls=Command,
    short_help="Submit a job and print its id.",
    epilog='aos job submit "What is AI?" --operators 3',
)
def job_submit(
    prompt: Prompt,
    *,
    job_type: JobType = "opml",
    model: Model = "",
    temperature: Temperature = "1.0",
    top_p: TopP = "0.5",
    top_k: TopK = 0,
    max_tokens: MaxTokens = 512,
    seed: Seed = "",
    stop: Stop = None,
    operators: Operators = 0,
    blind: Blind = False,
    attested: Attested = False,
    user: User = "local",
    tag: Tag = "",
    url: Url = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job and print its id (a secret of yours: who has it can read the result)."""
    options = dict(locals())
    params = _params(options)
    settings = load_client_settings(url=url, trust=trust)
    with settings.client() as client:
        accepted = client.submit(_submission(settings, prompt, params, options))
    if as_json:
        voice.data_json("job.submit", encode_acceptance(accepted))
    else:
        voice.data(accepted.job_id)


@job_app.command(
    "result", cls=Command, short_help="Print a job's result rows.", epilog="aos job result JOB_ID --json"
)
def job_result(job_id: JobId, *, url: Url = None, as_json: AsJson = False) -> None:
    """Print a job's result rows, as /api/job/result gives them."""
    with load_client_settings(url=url).client() as client:
        rows = client.result(job_id)
    if as_json:
        voice.data_json("job.result", rows)
        return
    if not rows:
        voice.say("no result yet")
    for row in rows:
        voice.say(voice.dim(f"operator {row['operator']}  receipt {row.get('receipt_id') or 'none'}"))
        voice.data_of_others(row["result"])


@job_app.command(
    "detail", cls=Command, short_help="Print a job's request and status.", epilog="aos job detail JOB_ID"
)
def job_detail(job_id: JobId, *, url: Url = None, as_json: AsJson = False) -> None:
    """Print a job's request and status, as /api/job/detail gives them."""
    with load_client_settings(url=url).client() as client:
        detail = client.detail(job_id)
    if as_json:
        voice.data_json("job.detail", detail)
        return
    for name, value in detail.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        voice.data_of_others(f"{name:<12} {shown}")


@job_app.command("cancel", cls=Command, epilog="aos job cancel JOB_ID")
def job_cancel(job_id: JobId, *, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel a job that has not been committed."""
    with load_client_settings(url=url).client() as client:
        outcome = client.cancel(job_id)
    if as_json:
        voice.data_json("job.cancel", outcome)
    else:
        voice.data(outcome if isinstance(outcome, str) else json.dumps(outcome, ensure_ascii=False))


@job_app.command("answer", cls=Command, epilog="aos job answer JOB_ID --save answer.aos")
def job_answer(
    job_id: JobId,
    save: Answer,
    *,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a finished job's answer file."""
    _check_place(save)
    with load_client_settings(url=url).client() as client:
        size = save.write_bytes(client.answer(job_id))
    if as_json:
        voice.data_json("job.answer", {"saved": str(save), "size": size})
    else:
        voice.say(f"saved {save}; check it: {voice.program()} verify {shlex.quote(str(save))}")
