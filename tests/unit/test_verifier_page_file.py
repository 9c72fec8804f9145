"""The browser verifier as a file: built from its sources and nothing else, and asking nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aos.dispatcher.ui.pages import verifier

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "packages/browser"
PAGE = (ROOT / "src/aos/dispatcher/ui/verify.html").read_text()
LOCK = json.loads((BUILD / "package-lock.json").read_text())["packages"]
LIBRARIES = ("@noble/curves", "@noble/hashes")
REBUILD = "cd packages/browser && npm ci --ignore-scripts && node build.mjs"


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in self.inline:
            self.inline[self._in].append(data)


def stated(name: str) -> str:
    found = next(
        attributes for tag, attributes in Elements(PAGE).tags if tag == "meta" and name in attributes.values()
    )
    return str(found["content"])


def test_the_page_is_of_the_sources_as_they_are() -> None:
    inputs = [
        *(f"packages/browser/{name}" for name in ("build.mjs", "package-lock.json", "package.json")),
        *(f"packages/browser/src/{path.name}" for path in (BUILD / "src").iterdir()),
        *(f"src/aos/core/policies/{name}.json" for name in ("default", "dev", "production")),
        "src/aos/dispatcher/ui/static/icon.svg",
    ]
    lines = [f"{hashlib.sha256((ROOT / path).read_bytes()).hexdigest()}  {path}\n" for path in sorted(inputs)]
    assert stated("aos-sources") == hashlib.sha256("".join(lines).encode()).hexdigest(), REBUILD


def test_its_build_gives_these_very_bytes(tmp_path: Path) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        reason = "no Node.js on this machine: the page is not built again"
        if os.environ.get("AOS_CI") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    for name in ("src/aos/core/policies", "src/aos/dispatcher/ui"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(BUILD, tmp_path / "packages/browser", ignore=shutil.ignore_patterns("node_modules"))
    there = tmp_path / "packages/browser"
    installed = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
        cwd=there,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if installed.returncode != 0:
        reason = f"the page's libraries cannot be installed here: {installed.stderr.strip()[-300:]}"
        if os.environ.get("AOS_CI") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    checked = subprocess.run(
        ["node", "build.mjs", "--check"], cwd=there, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_what_is_in_it_is_all_that_it_may_run_or_load() -> None:
    policy = dict(part.strip().split(" ", 1) for part in stated("Content-Security-Policy").split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["img-src"] == "data:"
    assert set(policy) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    page = Elements(PAGE)
    for name in ("script", "style"):
        (content,) = page.inline[name]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert name != "style"
            assert not name.startswith("on")
            if name in ("src", "href", "action", "srcset"):
                assert not value or value.startswith(("data:image/", "#", "/ui")), (tag, value)
    script = page.inline["script"][0]
    for word in (
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "EventSource",
        "sendBeacon",
        "importScripts",
        "import(",
    ):
        assert word not in script, word
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "localStorage",
        "cookie",
        "eval(",
    ):
        assert word not in script, word


def test_versions_digests_and_licences_are_kept() -> None:
    readme = (BUILD / "README.md").read_text()
    for name in LIBRARIES:
        locked = LOCK[f"node_modules/{name}"]
        for text in (PAGE, readme):
            assert f"{name} {locked['version']}" in text
            assert locked["integrity"] in text
    assert PAGE.count("The MIT License (MIT)") == len(LIBRARIES)
    assert {name for name, package in LOCK.items() if name and not package.get("dev")} == {
        f"node_modules/{name}" for name in LIBRARIES
    }


def test_the_explorer_serves_these_bytes_under_their_own_policy() -> None:
    data, headers = verifier()
    assert data == PAGE.encode()
    policy = headers["Content-Security-Policy"]
    assert policy == f"{stated('Content-Security-Policy')}; frame-ancestors 'none'"
    assert "unsafe" not in policy
    assert re.fullmatch(r"[\x20-\x7e]+", policy)
