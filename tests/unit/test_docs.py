"""The documents tell the truth: what they link to, name and print exists in this checkout."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from simulated_run import Network

from aos.adapters import frames
from aos.attack.runner import rows as attacks
from aos.cli import referee, verify
from aos.cli.app import app
from aos.core import tee
from aos.core.answer import MAX_FULL_DRAW, write_answer
from aos.core.receipt import CHECKS
from aos.core.trust import load_policy
from aos.operator import runer
from aos.operator.settings import KEYS
from aos.workers import enclave_host, opml_main, tee_main
from aos.workers.enclave import messages

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRAPPED = ["README.md", "CHANGELOG.md"] + [
    f"docs/{name}.md"
    for name in ("architecture", "glossary", "operator-guide", "threat-model", "verify-a-receipt")
]
THREATS = ROOT / "docs" / "threat-model.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
CODE = re.compile(r"[a-z][a-z_]*\.[a-z][a-z0-9_]*\Z")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def page(path: Path) -> Any:
    return pytest.param(path, id=name_of(path))


def prose(text: str) -> str:
    """``text`` without fenced and indented blocks."""
    return "\n".join(line for line in FENCE.sub("", text).splitlines() if not line.startswith("    "))


def spans(text: str) -> list[str]:
    """The inline code of a page."""
    return [" ".join(span.split()) for span in SPAN.findall(prose(text))]


# --- links


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [page(path) for path in PAGES])
def test_every_relative_link_resolves(path: Path) -> None:
    broken = []
    text = re.sub(r"`[^`\n]*`", "", prose(path.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "page.md"
    wrong.write_text("# A heading, here\n[a](page.md#a-heading-here)\n")
    test_every_relative_link_resolves(wrong)
    wrong.write_text("# A heading\n[a](page.md#another)\n")
    with pytest.raises(AssertionError):
        test_every_relative_link_resolves(wrong)


# --- commands


def commands_in(text: str) -> Iterator[str]:
    """Command lines of this package in blocks and inline code, without prompt, path and what a shell would take."""
    lines = [line for _, body in FENCE.findall(text) for line in body.splitlines()]
    lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
    for line in lines + spans(text):
        for part in re.split(r"&&|\|(?=\s)| > |\s#", line):
            command = part.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if re.match(r"(aos|operator-runer|tee-worker) \S|python -m aos\.", command):
                yield command


def problem_with(command: str) -> str:
    """Why ``command`` cannot be run as it is written; empty where it can. Placeholders count as values."""
    words = shlex.split(command.replace("…", ""))
    if words[0] == "operator-runer":
        return unknown_options(words, help_of(runer.main))
    if words[0] == "tee-worker":
        return unknown_options(words, help_of(tee_main.main))
    if words[0] == "python":
        if words[2] == "aos.workers.opml_main":
            return unknown_options(words[3:], help_of(opml_main.main))
        return f"no such program: {words[2]}"
    if words[1] in ("verify", "referee"):
        return unknown_options(
            words, {"verify": verify, "referee": referee}[words[1]]._parser().format_help()
        )
    return problem_in_tree(words[1:])


def problem_in_tree(words: list[str]) -> str:
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    takes = {opt: param for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    places = [param for param in command.params if param.param_type_name == "argument"]
    given = 0
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if word in ("-h", "--help", "-"):
            continue
        if word.startswith("-"):
            if name not in takes:
                return f"no option {name}"
            if not takes[name].is_flag and "=" not in word and words:
                words.pop(0)
        elif hasattr(command, "commands"):
            return f"no command {word}"
        else:
            given += 1
    return "too many arguments" if given > len(places) else ""


@cache
def help_of(main: Callable[[list[str]], object]) -> str:
    """What a program says to ``--help``."""
    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
        main(["--help"])
    return said.getvalue()


def unknown_options(words: list[str], text: str) -> str:
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    wrong = [word for word in words if word.startswith("-") and word != "-" and word not in known]
    return f"no option {', '.join(wrong)}" if wrong else ""


@pytest.mark.parametrize("path", [page(path) for path in PAGES])
def test_every_command_line_exists_with_its_options(path: Path) -> None:
    found = set(commands_in(path.read_text(encoding="utf-8")))
    assert {command: why for command in found if (why := problem_with(command))} == {}


@pytest.mark.parametrize("path", [page(path) for path in sorted((ROOT / "src").rglob("*.py"))])
def test_every_command_that_a_hint_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(r"`(aos [a-z][^`\n{]*)`", text))
    found |= set(re.findall(r"^\s+Example: (aos [^\n]*?)(?: {2,}.*| &&.*)?$", text, re.MULTILINE))
    assert {command: why for command in found if (why := problem_with(command))} == {}


@pytest.mark.parametrize(
    "command",
    [
        "aos frobnicate",
        "aos ask x --frobnicate 1",
        "aos operator frobnicate",
        "aos up extra",
        "aos verify FILE --frobnicate",
        "operator-runer --frobnicate",
        "tee-worker --frobnicate",
        "python -m aos.frobnicate",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert problem_with(command)


# --- error codes


@cache
def literals() -> frozenset[str]:
    """Every text in the source that has the form of an error code, also made as ``f"family.{word}"``, ``f"family.{word}_end"``."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        words = {text for text in texts if re.fullmatch(r"[a-z_]+", text)}
        found |= {text for text in texts if CODE.match(text)}
        for node in ast.walk(tree):
            match node:
                case ast.JoinedStr(values=[ast.Constant(value=str(family)), ast.FormattedValue(), *rest]):
                    end = "".join(str(value.value) for value in rest if isinstance(value, ast.Constant))
                    if len(rest) < 2 and re.fullmatch(r"[a-z_]+\.", family) and re.fullmatch("[a-z_]*", end):
                        found |= {family + word + end for word in words}
    return frozenset(found)


def codes_in(text: str) -> set[str]:
    """The error codes that a page names: of a family that the source knows, and no module, setting or member."""
    families = {code.partition(".")[0] for code in literals()} - {"aos"}
    others = {key.name for key in KEYS} | {"job.params"}
    found = {span for span in spans(text) if CODE.match(span)} - others
    return {code for code in found if code.partition(".")[0] in families and not code.endswith(".py")}


SPECIFICATIONS = [*sorted((ROOT / "docs" / "spec").glob("*.md")), THREATS]


def test_a_code_that_no_source_has_is_found() -> None:
    known = codes_in("`link.skipped` `io.n_out` `file.name.py`")
    assert known == {"link.skipped", "io.n_out"}
    assert known <= literals()
    assert codes_in("`link.frobnicated`") - literals() == {"link.frobnicated"}
    assert codes_in("`tee.boot_signature` `tee.frobnicated_signature`") - literals() == {
        "tee.frobnicated_signature"
    }


@pytest.mark.parametrize("path", [page(path) for path in SPECIFICATIONS])
def test_every_error_code_exists(path: Path) -> None:
    assert codes_in(path.read_text(encoding="utf-8")) - literals() == set()


# --- the specification and the code that refers to it

REFERENCE = re.compile(r'(?:docs/spec/)?\b(\d\d-[a-z-]+\.md)((?:,? (?:and )?"[^"]+")*)')


def sections(path: Path) -> set[str]:
    """The names under which code may refer to a page's parts: headings without their number and what stands in
    parentheses, and the bold words that open a paragraph; in lower case."""
    text = prose(path.read_text(encoding="utf-8"))
    names = re.findall(r"^#{2,6} +(.+?)\s*$", text, re.MULTILINE)
    names += re.findall(r"^\*\*([^*]+?)\.?\*\*", text, re.MULTILINE)
    return {
        re.sub(r"^(?:\d+\.|rules? [\d–]+:) | \(.*\)$", "", name.lower().replace("`", "")) for name in names
    }


def references(text: str) -> Iterator[tuple[str, list[str]]]:
    """The specification's pages that a source file names, each with the sections quoted behind it."""
    for file, quoted in REFERENCE.findall(re.sub(r"\s+(?:# )?", " ", text)):
        yield file, re.findall(r'"([^"]+)"', quoted)


def broken_references(text: str) -> list[str]:
    broken = []
    for file, quoted in references(text):
        target = ROOT / "docs" / "spec" / file
        if not target.exists():
            broken.append(file)
            continue
        broken += [f"{file}, {name}" for name in quoted if name.lower() not in sections(target)]
    return broken


@pytest.mark.parametrize("path", [page(path) for path in sorted((ROOT / "src").rglob("*.py"))])
def test_every_page_and_section_of_the_specification_that_code_names_exists(path: Path) -> None:
    assert broken_references(path.read_text(encoding="utf-8")) == []


def test_code_names_every_page_of_the_specification() -> None:
    named = {
        file
        for path in (ROOT / "src").rglob("*.py")
        for file, _ in references(path.read_text(encoding="utf-8"))
    }
    assert named == {path.name for path in (ROOT / "docs" / "spec").glob("*.md")}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('docs/spec/02-signing.md, "Envelope" and "Link header"', []),
        ('docs/spec/10-tee.md,\n"Simulated platform"', []),
        ("docs/spec/11-frobnication.md", ["11-frobnication.md"]),
        ("docs/spec/09-http.md, 04-frobnication.md", ["04-frobnication.md"]),
        ('docs/spec/02-signing.md, "Envelope" and\n    # "Frob"', ["02-signing.md, Frob"]),
        ('docs/spec/10-tee.md, "Hosts"', ["10-tee.md, Hosts"]),
    ],
)
def test_a_reference_to_what_is_not_there_is_found(text: str, wrong: list[str]) -> None:
    assert broken_references(text) == wrong


STATEMENTS_OF_AN_ENCLAVE = (tee.TeeBoot, tee.TeeAnswer, tee.TeeBootEvidence, tee.TeeEvidence)


def test_the_tee_page_lists_every_statement_and_message_member_by_member() -> None:
    declared = {
        f"`{cls.TYPE}` {cls.V}" if hasattr(cls, "TYPE") else cls.__name__: [
            field.name for field in dataclasses.fields(cls)
        ]
        for cls in (
            *STATEMENTS_OF_AN_ENCLAVE,
            *get_args(messages.FromHost),
            *get_args(messages.FromEnclave),
        )
    }
    text = (ROOT / "docs/spec/10-tee.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`aos\.[a-z_.]+` \d+|Tee(?:Boot)?Evidence) \|[^|]*\| (.*?) \|", text, re.MULTILINE
    )
    written = {name: re.findall(r"(?:^|; )`(\w+)`", members) for name, members in rows}
    assert written == declared


def test_the_tee_pages_numbers_are_those_of_the_code() -> None:
    text = (ROOT / "docs/spec/10-tee.md").read_text(encoding="utf-8")
    assert f"1 … {frames.MAX_FRAME_BYTES:,}" in text
    assert messages.MAX_FRAME_BYTES == frames.MAX_FRAME_BYTES
    assert f"`lifetime_ms` 1 … {tee.MAX_LIFETIME_MS:,}" in text
    assert messages.MAX_MODEL_BYTES == 2**40
    assert "`size` 1 … 2^40" in text
    assert (enclave_host.LISTENS_WITHIN_S, enclave_host.LOADS_WITHIN_S) == (60, 30 * 60)
    assert "within 60 s and have the model loaded within 30 min" in text
    assert (enclave_host.REPLIES_WITHIN_S, enclave_host.TOKEN_WITHIN_S) == (60, 600)
    assert "No word for 60 s after a boot, or for 600 s in a run" in text
    assert enclave_host.LIFETIME_MS == 60 * 60 * 1000
    assert "lifetime 1 h" in text


# --- the threat model's table


def threat_rows() -> list[list[str]]:
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", THREATS.read_text(encoding="utf-8"), re.MULTILINE)
    return [[number, *(cell.strip() for cell in rest.split("|"))] for number, rest in rows]


@cache
def test_names() -> frozenset[str]:
    return frozenset(
        f"{path.name}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


test_names.__test__ = False  # type: ignore[attr-defined]


def attack_names() -> set[str]:
    tree = ast.parse((ROOT / "tests/adversarial/test_receipt_attacks.py").read_text(encoding="utf-8"))
    return {
        str(keyword.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Attack"
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }


def test_every_attack_has_one_row_and_a_state() -> None:
    rows = threat_rows()
    assert [int(row[0]) for row in rows] == list(range(1, 65))
    assert {row[2] for row in rows} == {"refused", "partly", "accepted", "gap"}


def test_every_test_and_attack_that_a_page_names_exists() -> None:
    text = THREATS.read_text(encoding="utf-8")
    named = set(re.findall(r"test_\w+\.py::test_\w+", text))
    assert len(named) > 40
    assert named - test_names() == set()
    attacks = set(re.findall(r'attack "([^"…]+)"', text))
    assert len(attacks) > 30
    assert attacks - attack_names() == set()
    everywhere = {name.partition("::")[2] for name in test_names()}
    for path in PAGES:
        bare = {span for span in spans(path.read_text(encoding="utf-8")) if re.fullmatch(r"test_\w+", span)}
        assert bare - everywhere == set(), name_of(path)


def test_what_is_called_refused_names_its_proof() -> None:
    for number, _, state, _, proof in threat_rows():
        shown = "::test_" in proof or 'attack "' in proof or f"`aos attack {number}`" in proof
        assert state not in ("refused", "accepted") or shown, number


def test_every_row_that_a_page_says_is_played_is_played() -> None:
    """``test_attacks.py`` plays them all, and holds each to its codes."""
    played = {str(row.number) for row in attacks() if row.play is not None}
    named = set(re.findall(r"`aos attack (\d+)`", THREATS.read_text(encoding="utf-8")))
    assert named
    assert named <= played


def test_every_code_of_the_table_is_expected_by_a_test() -> None:
    paths = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "vectors").rglob("*.json")]
    expected = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    played = {str(row.number): row.codes for row in attacks()}
    for number, _, _, codes, _ in threat_rows():
        for code in re.findall(r"`([^`]+)`", codes):
            assert f'"{code}"' in expected or code in played[number], (number, code)


# --- programs, files, form


def test_the_program_by_hand_judges_a_genuine_and_a_changed_answer(tmp_path: Path) -> None:
    blocks = FENCE.findall((ROOT / "docs/verify-a-receipt.md").read_text(encoding="utf-8"))
    program = tmp_path / "hand.py"
    program.write_text("\n".join(body for language, body in blocks if language == "python"))
    genuine = write_answer(Network().run())
    changes = {
        "genuine": genuine,
        "text": genuine.replace(b'"text":"', b'"text":"x', 1),
        "core": genuine.replace(b'"role":"executor"', b'"role":"blind"'),
    }
    status = {}
    for name, data in changes.items():
        assert name == "genuine" or data != genuine
        path = tmp_path / f"{name}.aos"
        path.write_bytes(data)
        done = subprocess.run([sys.executable, program, path], capture_output=True, text=True, check=False)
        status[name] = done.returncode
        if name == "genuine":
            assert done.stdout.startswith("hashes: request, text and tokens are the signed ones\n"), (
                done.stderr
            )
            assert "VRF: the proof is valid" in done.stdout
        else:
            assert "AssertionError" in done.stderr
    assert status == {"genuine": 0, "text": 1, "core": 1}


@pytest.mark.parametrize("path", [page(path) for path in PAGES])
def test_every_python_program_imports_what_exists(path: Path) -> None:
    for language, body in FENCE.findall(path.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("aos."):
                module = __import__(str(node.module), fromlist=["*"])
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_every_path_that_the_architecture_names_exists() -> None:
    for span in spans((ROOT / "docs/architecture.md").read_text(encoding="utf-8")):
        if re.fullmatch(r"[\w./-]*(?:/[\w.-]*|\.py|\.md)", span):
            places = [ROOT / span, ROOT / "src/aos" / span, *ROOT.glob(f"{span}*")]
            assert any(place.exists() for place in places), span


@pytest.mark.parametrize("name", WRAPPED)
def test_prose_is_wrapped(name: str) -> None:
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
    assert long == []


@pytest.mark.parametrize("name", ["docs/verify-a-receipt.md", "docs/spec/08-receipts.md"])
def test_the_policy_table_is_the_policies(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    policies = {policy: load_policy(policy) for policy in ("dev", "default", "production")}
    required = {
        "dev": ", ".join(f"`{check}`" for check in policies["dev"].required),
        "default": "the same, `registry-1`, `draw-1`",
        "production": "the same as `default`, `log-1`, and one of `agree-1`, `tee-3`",
    }
    for policy, words in required.items():
        kinds = ", ".join(f"`{kind}`" for kind in policies[policy].accept_tee)
        assert f"\n| `{policy}` | {words} | {kinds} |\n" in text
    dev, default, production = (set(policy.required) for policy in policies.values())
    assert dev | {"registry-1", "draw-1"} == default
    assert default | {"log-1", "agree-1|tee-3"} == production
    assert default == {check for check, _ in CHECKS} - {
        "agree-1",
        "resolve-1",
        "log-1",
        "witness-1",
        "tee-1",
        "tee-2",
        "tee-3",
        "local-1",
    }
    assert f"more than {MAX_FULL_DRAW} operators" in text
    rows = re.findall(r"^\| `([a-z]+-\d)` \|", text, re.MULTILINE)
    assert rows == [check for check, _ in CHECKS]
