"""`aos audit`: it draws, makes what an operator opens, and checks it; what it prints and how it exits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_models import model_bytes
from simulated_run import Network, Result, params, secret

from aos.cli.app import app
from aos.core.answer import Answer, read_answer, write_answer
from aos.core.codec import decode
from aos.core.dispute.audit import AuditRequest
from aos.core.statements import Request
from aos.engine import load_engine
from aos.engine.audit import bundle_of_answer
from aos.engine.gguf import read_gguf
from aos.engine.manifest import tensor_leaves
from aos.engine.reference import ReferenceEngine
from aos.ports import SamplingParams

MODEL = "tiny-q8_0"
BEACON = "5a" * 32


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["audit", *words], prog_name="aos")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def answer_of(engine: Any, network: Network) -> Answer:
    """A signed answer of what this engine computes."""
    sampling = params(max_tokens=6, seed="5")
    ours = SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=6, seed=5)
    generation = engine.generate("What is AI?", ours, salt=secret("job 1 nonce"))
    result = Result(
        text=generation.text,
        tokens=generation.tokens,
        prompt_tokens=generation.prompt_tokens,
        state_root=generation.state_root,
        finish_reason=generation.finish_reason,
    )
    return network.run(sampling=sampling, results={f"opml-{n}": result for n in range(4)})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").write_bytes(model_bytes(MODEL))
    return "model.gguf"


@pytest.fixture
def answer(model: str) -> Answer:
    engine = load_engine(model, kind="reference")
    made = answer_of(engine, Network(model_id=engine.model_id))
    Path("answer.aos").write_bytes(write_answer(made))
    return made


def common(model: str, *more: str) -> list[str]:
    return ["answer.aos", "--model", model, "--layers", "1", *more]


def test_it_draws_makes_and_checks(answer: Answer, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*common(model, "--json")) == 0
    drawn = json.loads(capsys.readouterr().out)["result"]
    assert (drawn["mode"], drawn["verdict"], len(drawn["drawn"])) == ("draw", None, 1)
    beacon = drawn["beacon"]
    assert run(*common(model, "--beacon", beacon, "--make", "bundle.bin")) == 0
    assert f"bundle  {Path('bundle.bin').stat().st_size} bytes" in capsys.readouterr().out
    for engine in ("native", "reference"):
        assert run(*common(model, "--beacon", beacon, "--bundle", "bundle.bin", "--engine", engine)) == 0
        out = capsys.readouterr().out
        assert [line[:16].split()[1] for line in out.splitlines() if line.startswith("PASS")] == [
            "receipt-1",
            "open-1",
            "around-1",
            "embed-1",
            f"layer-{drawn['drawn'][0]}",
            "tail-1",
        ]
        assert out.splitlines()[-1] == "AUDITED: 1 of 2 layers and both edges are right, bit for bit"
        assert " 50.00%           1/2  one layer skipped" in out
        assert "a beacon that the operator knew" in out
    assert run(*common(model, "--beacon", beacon, "--bundle", "bundle.bin", "--json")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "aos.cli.audit/1"
    assert shown["result"]["verdict"] == "AUDITED"
    assert {"cheat": "one layer skipped", "probability": "1/2"} in shown["result"]["detections"]


def test_a_lie_is_shown_with_its_place(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    liar = ReferenceEngine(model)
    liar._model.output_norm = liar._model.output_norm * 2
    Path("answer.aos").write_bytes(write_answer(answer_of(liar, Network(model_id=liar.model_id))))
    assert (
        run(*common(model, "--beacon", BEACON, "--make", "bundle.bin")) == 11
    )  # it cannot open what it does not compute
    assert "another state root" in capsys.readouterr().err
    lie = read_answer(Path("answer.aos").read_bytes())
    request = decode(Request, json.loads(lie.request), where="request")
    asked = AuditRequest(
        state_root=lie.receipt.core.state_root or b"", beacon=bytes.fromhex(BEACON), layers=1
    )
    leaves, _ = tensor_leaves(read_gguf(model))
    Path("bundle.bin").write_bytes(bundle_of_answer(lie, request, liar, leaves, asked))
    assert run(*common(model, "--beacon", BEACON, "--bundle", "bundle.bin")) == 10
    out = capsys.readouterr().out
    first = lie.receipt.core.n_prompt - 1
    assert f"FAIL tail-1      logits, sampler record or token are others (position {first}, unit 3)" in out
    assert out.splitlines()[-1].startswith("NOT VERIFIED: tail-1:")
    assert run(*common(model, "--beacon", BEACON, "--bundle", "bundle.bin", "--json")) == 10
    shown = json.loads(capsys.readouterr().out)["result"]
    assert shown["difference"] == {"unit": 3, "position": first}
    assert [check["code"] for check in shown["checks"] if check["status"] == "FAIL"] == ["audit.different"]


def test_what_is_not_a_bundle_for_this_draw_is_refused(
    answer: Answer, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*common(model, "--beacon", BEACON, "--make", "bundle.bin")) == 0
    assert run(*common(model, "--beacon", "00" * 32, "--bundle", "bundle.bin")) == 12
    assert "FAIL open-1" in capsys.readouterr().out
    data = bytearray(Path("bundle.bin").read_bytes())
    data[-1] ^= 1
    Path("changed.bin").write_bytes(data)
    assert run(*common(model, "--beacon", BEACON, "--bundle", "changed.bin")) == 10
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("NOT VERIFIED: open-1:")
    assert "[audit.opening]" in out
    assert run(*common(model, "--beacon", BEACON, "--bundle", "absent.bin")) == 12
    Path("other.gguf").write_bytes(model_bytes("tiny-f32"))
    assert run(*common("other.gguf", "--beacon", BEACON, "--bundle", "bundle.bin")) == 11
    assert "SKIP model-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        ["--bundle", "b", "--make", "c", "--beacon", BEACON],
        ["--bundle", "b"],
        ["--make", "b"],
        ["--beacon", "xyz"],
        ["--beacon", "5a"],
        ["--layers", "3"],  # the model has two
    ],
)
def test_wrong_use_exits_2(answer: Answer, model: str, more: list[str]) -> None:
    from aos.errors import AOSError

    with pytest.raises(AOSError) as refused:
        app(["audit", *common(model, *more)], prog_name="aos", standalone_mode=False)
    assert refused.value.exit_code == 2


def test_a_file_that_the_operator_did_not_sign_is_not_audited(answer: Answer, model: str) -> None:
    Path("answer.aos").write_bytes(write_answer(replace(answer, text="AI is magic.")))
    assert run(*common(model)) == 10
    assert run("absent.aos", "--model", model, "--layers", "1") == 12
