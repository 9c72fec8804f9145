"""`aos verify`: what it prints where, and how it exits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from engine_models import model_bytes
from simulated_run import Network, Result, params, secret

from aos.cli.app import app
from aos.cli.verify import render_report, verify_command
from aos.core.answer import Answer, write_answer
from aos.core.codec import encode
from aos.core.receipt import verify_answer
from aos.core.trust import load_policy
from aos.engine import load_engine
from aos.engine.native import instruction_sets
from aos.ports import MILLION, SamplingParams

NETWORK = Network()


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without .aos, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("AOS_TRUST", "AOS_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


def saved(answer: Answer, name: str = "answer.aos") -> str:
    Path(name).write_bytes(write_answer(answer))
    return name


def trust_file(policy: str = "dev", name: str = "trust.json") -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(json.dumps(encode(NETWORK.trust(policy)), indent=2))
    return name


def test_a_verified_answer_exits_0_with_one_line_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_command([saved(NETWORK.run()), "--trust", trust_file()]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 24
    assert lines[0] == "PASS file-1      strict canonical JSON, exact members"
    assert lines[-2].startswith("SKIP local-1     not re-executed here (use --replay --model PATH)")
    assert lines[-1].startswith('VERIFIED at level "redundant:3": 16 checks passed, 7 skipped')
    assert {line[:4] for line in lines[:-1]} == {"PASS", "SKIP"}
    assert all(line[5:16].strip() and line[16:17] == " " for line in lines[:-1])
    assert err == ""
    assert "\x1b" not in out


def test_a_tampered_answer_exits_10_and_says_what_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    tampered = replace(NETWORK.run(), text="AI is magic.")
    assert verify_command([saved(tampered), "--trust", trust_file()]) == 10
    out, err = capsys.readouterr()
    assert "FAIL io-2" in out
    assert out.splitlines()[-1] == (
        "NOT VERIFIED: io-2 failed: the response hash is not that of the saved text [io.response_hash]"
    )
    assert "hint:" in err


def test_without_trust_it_exits_11_and_hints_at_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_command([saved(NETWORK.run())]) == 11
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("PARTIAL at level")
    assert "--trust FILE" in err


@pytest.mark.parametrize("damage", ["truncated", "empty", "absent"])
def test_an_unreadable_file_exits_12(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"truncated": write_answer(NETWORK.run())[:-100], "empty": b""}.get(damage)
    if data is not None:
        Path("answer.aos").write_bytes(data)
    assert verify_command(["answer.aos", "--trust", trust_file()]) == 12
    out, err = capsys.readouterr()
    assert ("EVIDENCE MISSING" in out) if data is not None else ("file.unreadable" in err)
    assert "hint:" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "b"],
        ["answer.aos", "--replay"],
        ["answer.aos", "--model", "m.gguf"],
        ["answer.aos", "--no-such"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    saved(NETWORK.run())
    assert verify_command(arguments) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"type":"aos.trust","v":2}'])
def test_a_broken_trust_file_exits_30_and_is_never_ignored(
    content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.json").write_bytes(content)
    assert verify_command([saved(NETWORK.run()), "--trust", "broken.json"]) == 30
    assert "[trust.invalid]" in capsys.readouterr().err


def test_an_absent_trust_file_exits_30(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_command([saved(NETWORK.run()), "--trust", "absent.json"]) == 30
    assert "[trust.unreadable]" in capsys.readouterr().err


def test_an_unknown_policy_exits_30(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [saved(NETWORK.run()), "--trust", trust_file(), "--policy", "../dev"]
    assert verify_command(arguments) == 30
    assert "[trust.policy]" in capsys.readouterr().err


def test_the_trust_file_is_found_in_the_state_directory_and_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = saved(NETWORK.run())
    trust_file(name=".aos/trust.json")
    assert verify_command([answer]) == 0
    Path(".aos/trust.json").rename(tmp_path / "elsewhere.json")
    assert verify_command([answer]) == 11
    monkeypatch.setenv("AOS_TRUST", str(tmp_path / "elsewhere.json"))
    assert verify_command([answer]) == 0


def test_the_policy_flag_overrules_the_trust_file() -> None:
    answer, trust = saved(NETWORK.run(job_type="tee")), trust_file("dev")
    assert verify_command([answer, "--trust", trust]) == 0
    assert verify_command([answer, "--trust", trust, "--policy", "default"]) == 10


def test_json_is_one_versioned_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_command([saved(NETWORK.run()), "--trust", trust_file(), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["schema"] == "aos.cli.verify/1"
    result = document["result"]
    assert (result["verdict"], result["exit_code"], result["policy"]) == ("VERIFIED", 0, "dev")
    assert result["levels"] == ["signed", "redundant:3"]
    assert [set(check) for check in result["checks"]] == [{"id", "status", "text", "detail", "code"}] * 23
    assert err == ""


def test_json_names_the_code_of_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    tampered = replace(NETWORK.run(), text="AI is magic.")
    assert verify_command([saved(tampered), "--trust", trust_file(), "--json"]) == 10
    checks = json.loads(capsys.readouterr().out)["result"]["checks"]
    assert [(c["id"], c["code"]) for c in checks if c["status"] == "FAIL"] == [("io-2", "io.response_hash")]


def test_json_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_command(["absent.aos", "--json"]) == 12
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "file.unreadable"


def test_explain_shows_every_hash_and_where_the_file_states_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = NETWORK.run()
    verify_command([saved(answer), "--trust", trust_file(), "--explain"])
    honest = capsys.readouterr().out
    assert answer.receipt.core.response_hash.hex() in honest
    assert "≠" not in honest
    verify_command([saved(replace(answer, text="AI is magic.")), "--trust", trust_file(), "--explain"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "≠" in line] == ["response_hash"]


def test_standard_input_is_read_for_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_answer(NETWORK.run())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert verify_command(["-", "--trust", trust_file()]) == 0


def test_a_model_file_that_is_not_there_skips_the_replay_and_is_partial(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [saved(NETWORK.run()), "--trust", trust_file(), "--replay", "--model", "absent.gguf"]
    assert verify_command(arguments) == 11
    out = capsys.readouterr().out
    assert "SKIP local-1     could not be re-executed here" in out
    assert "requires local-1" in out


@pytest.mark.parametrize("honest", [True, False], ids=["the run that it was", "a state root made up"])
def test_replay_recomputes_the_run_with_the_model_file(
    honest: bool, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = repository / "models" / "aos-demo.Q8_0.gguf"
    engine = load_engine(model, kind="reference")
    sampling = params(max_tokens=12, seed="5")
    ours = SamplingParams(temperature=MILLION, top_p=sampling.top_p, max_tokens=12, seed=5)
    generation = engine.generate("What is AI?", ours, salt=secret("job 1 nonce"))
    assert generation.state_root is not None
    result = Result(
        text=generation.text,
        tokens=generation.tokens,
        prompt_tokens=generation.prompt_tokens,
        state_root=generation.state_root if honest else secret("made up"),
        finish_reason=generation.finish_reason,
    )
    network = Network(model_id=engine.model_id)
    answer = network.run(sampling=sampling, results={f"opml-{n}": result for n in range(4)})
    Path("trust.json").write_text(json.dumps(encode(network.trust())))
    with pytest.raises(SystemExit) as ended:
        app(["replay", saved(answer), "--model", str(model), "--json"], prog_name="aos")
    replayed = json.loads(capsys.readouterr().out)
    assert replayed["schema"] == "aos.cli.replay/1"
    shown = replayed["result"]
    assert shown["exit_code"] == ended.value.code == (0 if honest else 10)
    assert (shown["engine"], shown["isa"]) == ("native", instruction_sets()[-1])
    equal = {item["name"]: item["equal"] for item in shown["compared"]}
    names = ("prompt tokens", "tokens", "text", "finish reason", "state root")
    assert equal == {name: honest or name != "state root" for name in names}
    state_root = shown["compared"][-1]
    assert state_root["here"] == generation.state_root.hex()
    assert state_root["signed"] == result.state_root.hex()
    arguments = [saved(answer), "--trust", "trust.json", "--replay", "--model", str(model)]
    assert verify_command(arguments) == (0 if honest else 10)
    out = capsys.readouterr().out
    if honest:
        assert "PASS local-1     re-executed here: the same 12 tokens, text and state root" in out
        assert 'levels "redundant:3" and "replayed"' in out
    else:
        assert "FAIL local-1     re-execution gave another state root [local.state_root]" in out


def test_a_replay_with_another_model_is_none_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.gguf").write_bytes(model_bytes("tiny-q4_0"))
    with pytest.raises(SystemExit) as ended:
        app(["replay", saved(NETWORK.run()), "--model", "other.gguf"], prog_name="aos")
    assert ended.value.code == 11
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(
        "SKIP       local-1        could not be re-executed here: other.gguf is not the model"
    )
    assert out[-1].startswith("NOT REPLAYED")


def test_a_changed_answer_is_not_replayed_as_the_signed_one(capsys: pytest.CaptureFixture[str]) -> None:
    tampered = replace(NETWORK.run(), text="AI is magic.")
    with pytest.raises(SystemExit) as ended:
        app(["replay", saved(tampered), "--model", "absent.gguf"], prog_name="aos")
    assert ended.value.code == 10
    out = capsys.readouterr().out
    assert "FAIL       io-2" in out
    assert "NOT THE SAME" in out


def test_colours_are_only_for_a_terminal_that_wants_them() -> None:
    report = verify_answer(write_answer(NETWORK.run()), trust=NETWORK.trust(), policy=load_policy("dev"))
    assert "\x1b[32mPASS\x1b[0m file-1" in render_report(report, colour=True)
    assert "\x1b" not in render_report(report)


def test_the_installed_command_verifies_offline(tmp_path: Path) -> None:
    answer, trust = saved(NETWORK.run()), trust_file()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("aos")), "verify", answer, "--trust", trust],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "VERIFIED at level" in done.stdout
