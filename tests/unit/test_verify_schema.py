"""`aos verify --json` against its published schema (docs/schemas), and `--explain` against whoever hashes its bytes again."""

from __future__ import annotations

import ast
import json
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from Crypto.Hash import keccak
from jsonschema import Draft202012Validator

from aos.cli.explain import explain, explained
from aos.cli.verify import verify_command
from aos.core.encoding import b64u_decode, canonical_json

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs/schemas/aos.cli.verify-1.json").read_text())
ANSWERS = json.loads((ROOT / "vectors/aos/receipt/answers.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a trust file, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("AOS_TRUST", "AOS_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    Path("trust.json").write_text(json.dumps(ANSWERS["trust"]))


def file_of(case: dict[str, Any]) -> bytes:
    document = json.loads(ANSWERS["files"][case["file"]])
    for path, value in case["changes"]:
        place = document
        for step in path[:-1]:
            place = place[step]
        if value == {"absent": True}:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    return canonical_json(document)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = verify_command([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    document: dict[str, Any] = json.loads(out)
    return code, document


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_every_report_and_every_error_is_of_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    codes = set()
    for case in ANSWERS["cases"]:
        Path("answer.aos").write_bytes(file_of(case))
        for arguments in (["--trust", "trust.json", "--policy", case["policy"]], ["--policy", "production"]):
            code, document = printed(capsys, "answer.aos", *arguments)
            VALIDATOR.validate(document)
            assert document["result"]["exit_code"] == code
            codes.add(code)
    for arguments in (["absent.aos"], ["answer.aos", "--trust", "answer.aos"], ["answer.aos", "--no-such"]):
        code, document = printed(capsys, *arguments)
        VALIDATOR.validate(document)
        assert "error" in document
        codes.add(code)
    for data in (b"", b"{}", b"\xff", ANSWERS["files"]["one"].encode() + b"\n"):
        Path("answer.aos").write_bytes(data)
        code, document = printed(capsys, "answer.aos", "--trust", "trust.json", "--explain")
        VALIDATOR.validate(document)
        assert document["result"]["hashes"] == []
        codes.add(code)
    assert codes == {0, 2, 10, 11, 12, 30}


def genuine_report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    Path("answer.aos").write_text(ANSWERS["files"]["three"])
    code, document = printed(capsys, "answer.aos", "--trust", "trust.json", "--explain")
    assert code == 0
    VALIDATOR.validate(document)
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "aos.cli.verify/2"),
        (("result", "verdict"), "verified"),
        (("result", "verdict"), "PARTIAL"),
        (("result", "exit_code"), 10),
        (("result", "exit_code"), 1),
        (("result", "levels"), ["trusted"]),
        (("result", "levels"), ["signed", "signed"]),
        (("result", "checks"), []),
        (("result", "checks", 0, "status"), "FAIL"),
        (("result", "checks", 0, "status"), "OK"),
        (("result", "checks", 0, "code"), "io.response_hash"),
        (("result", "checks", 0, "more"), ""),
        (("result", "required_but_skipped"), ["registry-1"]),
        (("result", "hashes", 0, "digest"), "00"),
        (("result", "more"), None),
    ],
)
def test_what_no_report_can_be_is_not_of_the_schema(
    path: tuple[Any, ...], value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    document = deepcopy(genuine_report(capsys))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(document)


def test_no_member_of_a_report_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    document = genuine_report(capsys)
    for name in set(document["result"]) - {"hashes"}:
        changed = deepcopy(document)
        del changed["result"][name]
        assert not VALIDATOR.is_valid(changed), name


HASHES = {
    "SHA-256": lambda data: sha256(data).hexdigest(),
    "Keccak-256": lambda data: keccak.new(digest_bits=256, data=data).hexdigest(),
}


@pytest.mark.parametrize("name", ANSWERS["files"])
def test_every_explained_byte_string_hashes_to_what_the_file_states(name: str) -> None:
    data = ANSWERS["files"][name].encode()
    rows = explained(data)
    assert [row.name for row in rows if row.stated not in (None, row.digest)] == []
    stated = {row.name for row in rows if row.stated is not None}
    assert stated >= {
        *("request_hash", "response_hash", "tokens_hash", "params_hash", "tag_commitment", "snapshot_root"),
        *("draw_call", "alpha_hash", "draw_record", "vrf_claim", "commitment", "commit", "commit_set"),
        *("receipt", "receipt_signature"),
    }
    lines = explain(data).splitlines()
    assert len(lines) == 3 * len(rows)
    for row, head, what, literal in zip(rows, lines[::3], lines[1::3], lines[2::3], strict=True):
        algorithm, _, rest = what.strip().partition(" of ")
        shown = ast.literal_eval(literal.strip())
        assert rest.endswith(f", {len(shown)} bytes:")
        assert head.startswith(row.name)
        assert HASHES[algorithm](shown) in head
        assert b64u_decode(str(row.to_json()["bytes"])) == shown


def test_every_digest_that_a_statement_holds_is_explained() -> None:
    """A digest of a genuine file that no row has is of something that is not in the file, and is named here."""
    document = json.loads(ANSWERS["files"]["three"])
    known = {row.digest for row in explained(ANSWERS["files"]["three"].encode())}
    core = document["receipt"]["core"]
    absent = {
        name
        for name, value in core.items()
        if name.endswith(("_hash", "_root", "_record", "_set")) and value and b64u_decode(value) not in known
    }
    assert absent == {"prompt_tokens_hash", "state_root"}
