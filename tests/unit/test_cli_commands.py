"""Every command of `aos`: its help, its `--json`, its exit codes, and that no wrong use ever ends in a traceback.

The commands run in this process, through the real entry point; what needs a process of its own has one.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer

from aos.adapters.keystore import load_keystore
from aos.cli import main as entry
from aos.cli import voice
from aos.cli.app import app
from aos.errors import AOSError, ConfigError, InvalidMessage, RuleViolation, Unavailable, VerificationError

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "aos-demo.Q8_0.gguf"
NOWHERE = {"AOS_URL": "http://127.0.0.1:1", "AOS_PROJECT": "p", "AOS_TOKEN": "t"}
RUNS_UNTIL_STOPPED = {"operator run", "dispatcher run", "log witness"}
"""Their output is a log, which is JSON on stderr."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, Any]:
        document = json.loads(self.out)
        assert document["schema"] == "aos.cli.error/1"
        error: dict[str, Any] = document["error"]
        return error

    @property
    def result(self) -> Any:
        return json.loads(self.out)["result"]


Aos = Callable[..., Done]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AOS_") and name != "AOS_CI"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def aos(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Aos:
    """``aos("model", "list", AOS_URL=…)``: the command run to its end."""

    def run(*arguments: str, **environment: str) -> Done:
        if arguments[0] in ("operator", "dispatcher"):  # they configure this process's logging
            done = subprocess.run(
                [program(), *arguments],
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            return Done(done.returncode, done.stdout, done.stderr)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["aos", *arguments])
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                entry.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def leaves(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its path."""
    command = command or typer.main.get_command(app)
    for name, child in getattr(command, "commands", {}).items():
        if getattr(child, "commands", None):
            yield from leaves(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


LEAVES = dict(leaves())
GROUPS = [
    "",
    "attest",
    "job",
    "keys",
    "model",
    "operator",
    "dispatcher",
    "registry",
    "chain",
    "project",
    "config",
    "log",
]


def test_the_commands_that_the_product_names_are_there() -> None:
    named = (
        "demo|up|ask|verify|draw|doctor|job submit|job result|job detail|job cancel|job answer|"
        "job watch|job list|keys new|keys show|project new|project token|project list|"
        "project revoke|config show|attest verify|tee pcrs|tee measure|tee challenge|"
        "tee report|referee|attack|audit|challenge|dispute list|dispute show|replay|model add|"
        "model pull|model list|model show|operator init-db|operator run|operator status|"
        "operator drain|operator resume|operator register|dispatcher init|dispatcher run|"
        "registry list|registry admit"
    )
    named += "|log checkpoint|log show|log watch|log convict|log promise|log key|log witness|log anchors"
    named += "|chain deploy|chain status|operator stake|operator exit|demo-chain"
    assert set(named.split("|")) == set(LEAVES)


# --- help


@pytest.mark.parametrize("path", [*LEAVES, *GROUPS])
def test_help_shows_examples_before_arguments_and_options(path: str, aos: Aos) -> None:
    done = aos(*path.split(), "--help")
    assert (done.code, done.err) == (0, "")
    text = done.out.lower()
    assert "examples:" in text
    for later in ("arguments:", "options:", "commands:"):
        assert later not in text or text.index("examples:") < text.index(later)
    assert done == aos(*path.split(), "-h")


@pytest.mark.parametrize("path", [*LEAVES, *GROUPS])
def test_examples_name_commands_and_options_that_exist(path: str, aos: Aos) -> None:
    lines = aos(*path.split(), "--help").out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.lower() == "examples:") + 1
    examples = []
    for line in lines[begin:]:
        if not line.startswith("  "):
            break
        examples += [part.split("|")[0] for part in line.split("&&")]
    assert examples
    for example in examples:
        words = [word for word in shlex.split(example, comments=True) if not word.startswith("AOS_")]
        assert words.pop(0) == "aos", example
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in LEAVES or n == "operator"), None)
        assert name is not None, example
        options = {"-i", "-c"} if name == "operator" else {o for p in LEAVES[name].params for o in p.opts}
        assert {word for word in words if word.startswith("-")} <= options, example


@pytest.mark.parametrize("path", ["", *GROUPS[1:]])
def test_the_list_of_commands_cuts_no_line_short(path: str, aos: Aos) -> None:
    assert "..." not in aos(*path.split(), "--help").out.split("Commands:")[1]


def test_every_option_is_explained() -> None:
    dumb = [
        f"{name} {param.name}"
        for name, command in LEAVES.items()
        if name not in ("verify", "referee")  # their help is argparse's
        for param in command.params
        if not param.help
    ]
    assert dumb == []


def test_no_option_takes_a_secret() -> None:
    given: list[Any] = [param for command in LEAVES.values() for param in command.params]
    # A path names a file, whose mode says who may read it: no secret is in the list of processes.
    options = {option for param in given if param.metavar != "FILE" for option in param.opts}
    assert "--json" in options
    assert "--key" not in options
    words = {"token", "password", "secret", "key", "private"}
    assert [option for option in options if words & set(option.strip("-").split("-"))] == []


def test_every_command_that_outputs_data_has_json() -> None:
    without = {
        name
        for name, command in LEAVES.items()
        if "--json" not in {option for param in command.params for option in param.opts}
    }
    assert without == RUNS_UNTIL_STOPPED


@pytest.mark.parametrize("name", ["verify", "referee"])
def test_what_completion_knows_of_a_command_without_typer_are_its_options(name: str, aos: Aos) -> None:
    known = {option for param in LEAVES[name].params for option in param.opts if option.startswith("--")}
    shown = set(re.findall(r"--[a-z]+", aos(name, "-h").out))
    assert known == shown - {"--help"}


def test_the_version_is_shown(aos: Aos) -> None:
    done = aos("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("aos ")


# --- wrong use


@dataclass(frozen=True)
class Wrong:
    command: str
    code: int
    error: str
    environment: dict[str, str] | None = None


WRONG = [
    Wrong("ask hi", 30, "config.client"),
    Wrong("ask hi", 20, "client.unreachable", NOWHERE | {"AOS_TRUST": "trust.json"}),
    Wrong("ask hi", 30, "client.no_trust", NOWHERE),
    Wrong("ask hi --url nonsense", 30, "config.url", NOWHERE),
    Wrong("ask hi --url ftp://x", 30, "config.url", NOWHERE),
    Wrong("ask hi --url http://[::1", 30, "config.url", NOWHERE),
    Wrong("ask hi --url http://x:99999", 30, "config.url", NOWHERE),
    Wrong("ask hi --trust absent.json", 30, "trust.unreadable", NOWHERE),
    Wrong("ask hi --trust text", 30, "trust.invalid", NOWHERE),
    Wrong("ask hi --trust .", 30, "trust.unreadable", NOWHERE),
    Wrong("ask hi --temperature warm", 2, "cli.number"),
    Wrong("ask hi --temperature nan", 2, "cli.number"),
    Wrong("ask hi --top-p -1", 2, "cli.number"),
    Wrong("ask hi --seed -1", 2, "cli.number"),
    Wrong("ask hi --save absent/answer.aos", 2, "cli.usage", NOWHERE),
    Wrong("ask hi --save .", 2, "cli.usage", NOWHERE),
    Wrong("ask hi", 30, "config.client", {"AOS_STATE_DIR": "damaged"}),
    Wrong("ask hi", 30, "config.client", {"AOS_STATE_DIR": "list"}),
    Wrong("ask hi", 30, "config.client", {"AOS_STATE_DIR": "directory"}),
    Wrong("job submit hi", 20, "client.unreachable", NOWHERE | {"AOS_TRUST": "trust.json"}),
    Wrong("job result x", 20, "client.unreachable", NOWHERE),
    Wrong("job watch x", 20, "client.unreachable", NOWHERE),
    Wrong("job list", 20, "client.unreachable", NOWHERE),
    Wrong("dispute show -w5PrVNK_n1gI6pGQCtuRmDkAJkF49Of42QYiJxwBoE", 20, "client.unreachable", NOWHERE),
    Wrong("keys show absent", 30, "keystore.unreadable"),
    Wrong("model show absent", 2, "cli.usage"),
    Wrong("model show truncated.gguf", 2, "gguf.tensor_range"),
    Wrong("project list -c absent.yaml", 30, "config.file"),
    Wrong("project revoke p-1 -c absent.yaml", 30, "config.file"),
    Wrong("job detail x", 20, "client.unreachable", NOWHERE),
    Wrong("job cancel x", 20, "client.unreachable", NOWHERE),
    Wrong("job answer x --save answer.aos", 20, "client.unreachable", NOWHERE),
    Wrong("job answer x --save absent/answer.aos", 2, "cli.usage", NOWHERE),
    Wrong("verify", 2, "cli.usage"),
    Wrong("verify absent.aos", 12, "file.unreadable"),
    Wrong("verify .", 12, "file.unreadable"),
    Wrong("verify text --trust absent.json", 30, "trust.unreadable"),
    Wrong("verify text --trust text", 30, "trust.invalid"),
    Wrong("verify text --policy lenient", 30, "trust.policy"),
    Wrong("verify text --policy ../../policies/dev", 30, "trust.policy"),
    Wrong("verify text --replay", 2, "cli.usage"),
    Wrong("verify text --wrong", 2, "cli.usage"),
    Wrong("referee", 2, "cli.usage"),
    Wrong("referee absent.json", 12, "file.unreadable"),
    Wrong("referee .", 12, "file.unreadable"),
    Wrong("referee text --wrong", 2, "cli.usage"),
    Wrong("replay absent.aos --model truncated.gguf", 12, "file.unreadable"),
    Wrong("replay . --model truncated.gguf", 12, "file.unreadable"),
    Wrong("audit absent.aos --model truncated.gguf --layers 1", 12, "file.unreadable"),
    Wrong("audit absent.aos --model truncated.gguf --layers 1 --make x", 2, "cli.usage"),
    Wrong("attest verify absent.cbor --policy policy.json", 12, "file.unreadable"),
    Wrong("challenge text --model truncated.gguf --on-chain", 30, "cli.on_chain"),
    Wrong("challenge text --model truncated.gguf --on-chain --key signer.json", 30, "cli.on_chain"),
    Wrong("attest verify text --policy absent.json", 30, "attest.policy_unreadable"),
    Wrong("attest verify text --policy text", 30, "attest.policy_invalid"),
    Wrong("attest verify text --policy policy.json --nonce xyz", 2, "cli.usage"),
    Wrong("attest verify object --policy policy.json", 2, "field.missing"),
    Wrong("attest verify http://127.0.0.1:1/report --policy policy.json", 12, "file.unreadable"),
    Wrong("model add absent.gguf", 2, "cli.usage"),
    Wrong("model add .", 2, "cli.usage"),
    Wrong("model add text", 2, "gguf.magic"),
    Wrong("model add truncated.gguf", 2, "gguf.tensor_range"),
    Wrong("model add truncated.gguf --name ../x", 2, "model.name"),
    Wrong("model add truncated.gguf", 30, "model.registry", {"AOS_STATE_DIR": "damaged"}),
    Wrong("model list", 30, "model.registry", {"AOS_STATE_DIR": "damaged"}),
    Wrong("model pull unknown.gguf", 30, "model.unknown"),
    Wrong("model pull x.gguf --url file:///etc/passwd", 30, "model.url"),
    Wrong("model pull x.gguf --url http://example.org/x", 30, "model.url"),
    Wrong("model pull ../x", 2, "model.name"),
    Wrong("model pull --sha256 12", 2, "model.sha256"),
    Wrong("keys new", 30, "keystore.password_missing"),
    Wrong("keys new", 30, "keystore.password_empty", {"AOS_KEYSTORE_PASSWORD": ""}),
    Wrong("keys new text", 1, "system.refused", {"AOS_KEYSTORE_PASSWORD": "x"}),
    Wrong("keys new", 30, "keystore.unreadable", {"AOS_KEYSTORE_PASSWORD_FILE": "absent"}),
    Wrong("keys new", 30, "keystore.mode", {"AOS_KEYSTORE_PASSWORD_FILE": "text"}),
    Wrong("operator init-db nonsense", 30, "config.value"),
    Wrong("operator init-db postgres://a:b@127.0.0.1:1/x", 20, "store.unavailable"),
    Wrong("operator status -c absent.yaml", 30, "config.file"),
    Wrong("operator status -c text", 30, "config.file"),
    Wrong("operator drain -c .", 30, "config.file"),
    Wrong("operator run -c absent.yaml", 30, "config.file"),
    Wrong("operator -c absent.yaml", 30, "config.file"),
    Wrong("dispatcher run -c absent.yaml", 30, "config.file"),
    Wrong("dispatcher init -c absent.yaml --model truncated.gguf", 2, "gguf.tensor_range"),
    Wrong("dispatcher init -c absent.yaml --model absent.gguf", 2, "cli.usage"),
    Wrong("operator drain -c absent.yaml --timeout 3", 2, "cli.usage"),
    Wrong("operator resume -c absent.yaml", 30, "config.file"),
    Wrong("project new x -c absent.yaml", 30, "config.file"),
    Wrong("registry list -c absent.yaml", 30, "config.file"),
    Wrong("registry admit 0x00 -c absent.yaml", 30, "config.file"),
    Wrong("operator register -c absent.yaml", 30, "config.file"),
    Wrong("config show -c absent.yaml", 30, "config.file"),
    Wrong("config show -c truncated.gguf", 30, "config.file"),
    Wrong("up", 30, "local.model"),
    Wrong("up --model absent.gguf", 30, "model.not_found"),
    Wrong("up --model directory/absent.gguf", 30, "local.model"),
    Wrong("up --model truncated.gguf", 2, "gguf.tensor_range"),
    Wrong("up --model truncated.gguf --state-dir text", 30, "local.state_dir"),
    Wrong("up --model truncated.gguf --state-dir text/below", 30, "local.state_dir"),
    Wrong("demo", 30, "local.model"),
]


@pytest.fixture
def wrong_things(tmp_path: Path) -> None:
    """What the commands of ``WRONG`` are given."""
    (tmp_path / "text").write_text("no model, no trust file, no answer\n")
    (tmp_path / "text").chmod(0o644)
    (tmp_path / "object").write_text("{}")
    shutil.copy(ROOT / "vectors" / "aos" / "attest" / "policy-nitro.json", tmp_path / "policy.json")
    (tmp_path / "truncated.gguf").write_bytes(MODEL.read_bytes()[:1_000_000])
    for name, content in (("damaged", "{"), ("list", "[1]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "client.json").write_text(content)
        (tmp_path / name / "models.json").write_text(content)
    (tmp_path / "directory" / "client.json").mkdir(parents=True)
    key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    trust = {
        "type": "aos.trust",
        "v": 1,
        "network": "test-net",
        "dispatchers": [{"address": "0x" + "11" * 20, "vrf_key": key}],
        "genesis": 1,
        "epoch_ms": 1000,
        "beacon": {"anchor": key, "length": 1},
        "registry_roots": [],
        "tee_roots": [],
        "tee_measurements": [],
        "policy": "dev",
    }
    (tmp_path / "trust.json").write_text(json.dumps(trust))


@pytest.mark.usefixtures("wrong_things")
@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: f"{w.command} → {w.error}")
def test_a_wrong_use_has_its_exit_code_a_stable_code_and_a_next_step(wrong: Wrong, aos: Aos) -> None:
    done = aos(*shlex.split(wrong.command), **(wrong.environment or {}))
    first, *rest = [line for line in done.err.splitlines() if line.startswith(("error: ", "  hint: "))]
    assert f"[{wrong.error}]" in first
    assert done.code == wrong.code
    assert len(rest) == 1
    assert len(rest[0]) > len("  hint: ")
    assert done.out == "" or wrong.command == "demo"


@pytest.mark.usefixtures("wrong_things")
@pytest.mark.parametrize(
    "wrong",
    [w for w in WRONG if not w.command.startswith(("operator run", "operator -c", "dispatcher run"))],
    ids=lambda w: f"{w.command} → {w.error}",
)
def test_with_json_an_error_is_one_document_on_stdout(wrong: Wrong, aos: Aos) -> None:
    done = aos(*shlex.split(wrong.command), "--json", **(wrong.environment or {}))
    assert (done.error["code"], done.code) == (wrong.error, wrong.code)
    assert done.error["message"]
    assert done.error["hint"]
    assert "error" not in done.err


@pytest.mark.parametrize(
    "cls", [AOSError, InvalidMessage, VerificationError, RuleViolation, Unavailable, ConfigError]
)
def test_an_error_that_says_no_next_step_gets_one(
    cls: type[AOSError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert voice.complain(cls("unheard.of", "something")) == cls.exit_code
    assert len(capsys.readouterr().err.partition("hint: ")[2]) > 10


def test_the_words_of_another_party_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    voice.complain(InvalidMessage("x\x1b[31m", "a\x1b]0;title\x07b\u202e", hint="\x9b2J"))
    assert not any(c in capsys.readouterr().err for c in "\x1b\x07\x9b\u202e")
    assert voice.plain("line\n\tUmlaut ä 日本 \x1b[2J") == "line\n\tUmlaut ä 日本 \\x1b[2J"


def test_a_server_that_is_no_dispatcher_is_named_as_that(aos: Aos) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        serving = Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        done = aos("job", "result", "x", **(NOWHERE | {"AOS_URL": f"http://127.0.0.1:{server.server_port}"}))
        server.shutdown()
        serving.join()
    assert done.code == 2
    assert "[client.not_aos]" in done.err


def test_a_dispatcher_on_this_machine_is_not_asked_through_a_proxy(aos: Aos) -> None:
    environment = NOWHERE | {
        "HTTP_PROXY": "http://proxy.invalid:3128",
        "ALL_PROXY": "http://proxy.invalid:3128",
    }
    assert "ConnectError" in aos("job", "result", "x", **environment).err


# --- honest use


def test_a_model_is_added_by_its_file_name_in_models_and_listed(aos: Aos, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").symlink_to(MODEL)
    added = aos("model", "add", "tiny.gguf", "--json")
    assert (added.code, added.err) == (0, "")
    assert added.result["name"] == "tiny.gguf"
    assert bytes.fromhex(added.result["sha256"])
    assert aos("model", "list", "--json").result == [added.result]
    assert added.result["sha256"] in aos("model", "add", "tiny.gguf").out
    assert aos("model", "list").out.startswith("tiny.gguf ")


def test_an_empty_list_is_empty_data_and_talk_beside_it(aos: Aos) -> None:
    plain = aos("model", "list")
    assert (plain.code, plain.out) == (0, "")
    assert "aos model add" in plain.err
    assert aos("model", "list", "--json").result == []


def test_keys_are_made_both_or_none_and_never_replaced(aos: Aos, tmp_path: Path) -> None:
    made = aos("keys", "new", "k", "--json", AOS_KEYSTORE_PASSWORD="correct horse")
    assert made.code == 0
    signer, vrf = tmp_path / "k" / "signer.json", tmp_path / "k" / "vrf.json"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (signer, vrf)] == [0o600, 0o600]
    assert len(load_keystore(signer, b"correct horse", kind="signer")) == 32
    assert "correct horse" not in made.out + made.err
    before = vrf.read_bytes()
    signer.unlink()
    again = aos("keys", "new", "k", AOS_KEYSTORE_PASSWORD="correct horse")
    assert (again.code, "[keystore.exists]" in again.err) == (30, True)
    assert vrf.read_bytes() == before
    assert not signer.exists(), "a signing key without its VRF key is of no use"


def test_keys_are_shown_without_a_password_and_checked_with_one(aos: Aos, tmp_path: Path) -> None:
    made = aos("keys", "new", "k", "--json", AOS_KEYSTORE_PASSWORD="correct horse").result
    shown = aos("keys", "show", "k", "--json")
    assert shown.result == {**made, "opened": False}
    assert aos("keys", "show", "k", "--open", AOS_KEYSTORE_PASSWORD="correct horse").code == 0
    assert "[keystore.wrong_password]" in aos("keys", "show", "k", "--open", AOS_KEYSTORE_PASSWORD="x").err
    signer, vrf = tmp_path / "k" / "signer.json", tmp_path / "k" / "vrf.json"
    kept = signer.read_text()
    signer.write_text(kept.replace(made["node_id"].removeprefix("0x"), "11" * 20))
    assert aos("keys", "show", "k").code == 0, "what a file says of itself"
    assert (
        "[keystore.mismatch]" in aos("keys", "show", "k", "--open", AOS_KEYSTORE_PASSWORD="correct horse").err
    )
    signer.write_text(kept.replace(made["node_id"].removeprefix("0x"), "\\u001b[2J"))
    assert "[keystore.format]" in aos("keys", "show", "k").err
    shutil.copy(vrf, signer)
    assert "[keystore.kind]" in aos("keys", "show", "k").err


def test_a_model_that_has_changed_since_it_was_registered_is_told(aos: Aos, tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "tiny.gguf")
    added = aos("model", "add", "tiny.gguf", "--json").result
    shown = aos("model", "show", "tiny.gguf", "--json")
    assert (shown.code, shown.result["model_id"], shown.result["as_registered"]) == (
        0,
        added["model_id"],
        True,
    )
    with (tmp_path / "tiny.gguf").open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(b"\0" * 8)
    changed = aos("model", "show", "tiny.gguf")
    assert (changed.code, "NO: the file has changed" in changed.out) == (10, True)


def test_config_show_masks_secrets_and_says_where_values_come_from(aos: Aos) -> None:
    template = ROOT / "docs" / "template" / "config-operator.yaml"
    shown = aos("config", "show", "-c", str(template), "--origin")
    assert shown.code == 0
    assert "(default)" in shown.out
    assert ":***@" in shown.out
    rows = aos("config", "show", "-c", str(template), "--json").result
    assert {"key", "value", "origin", "note"} == set(rows[0])


# --- the program as a process


def program() -> str:
    return str(Path(sys.executable).with_name("aos"))


def test_a_reader_that_goes_away_ends_a_command_quietly() -> None:
    """`aos … | head -1`, with the pipe closed before the first byte is written."""
    reading, writing = os.pipe()
    os.close(reading)
    template = str(ROOT / "docs" / "template" / "config-operator.yaml")
    for arguments in (["config", "show", "-c", template], ["verify", template], ["doctor", "--json"]):
        done = subprocess.run(
            [program(), *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == voice.BROKEN_PIPE, arguments
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["verify", "x"], ["model", "list", "--json"]])
def test_a_full_disk_behind_stdout_is_an_error_and_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no answer file")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [program(), *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert "[system.refused]" in done.stderr
    assert "Exception" not in done.stderr


def test_a_locale_without_our_signs_ends_no_command() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [program(), "doctor"], env=environment, capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in done.stderr
    assert b"\\u2192" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_generated_for_each_shell_and_completes_commands_and_options(shell: str) -> None:
    def complete(line: str) -> str:
        environment = os.environ | {
            "_AOS_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        done = subprocess.run(
            [program()], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    script = subprocess.run(
        [program()],
        env=os.environ | {"_AOS_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert f"complete_{shell}" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, timeout=60, check=True)
    assert "verify" in complete("aos ver")
    assert "submit" in complete("aos job s")
    assert "--trust" in complete("aos verify answer.aos --tr")


def test_completion_is_installed_in_the_home_directory_and_nowhere_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(program())} --install-completion"],
        env=os.environ | {"HOME": str(home), "SHELL": "/bin/bash"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.relative_to(home).parts[0] for path in home.rglob("*")} == {".bashrc", ".bash_completions"}


def test_no_command_hides_an_error_of_ours() -> None:
    """`main` turns what the world refuses into an error; a fault of the program still shows as what it is."""
    source = inspect.getsource(entry)
    assert "except Exception" not in source
    assert "except BaseException" not in source
