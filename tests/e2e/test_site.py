"""The documentation's site (`make docs`): every link leads somewhere, nothing leads away, and it reads at both widths from disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from peers.browser import Page, browser

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import make_site  # noqa: E402

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    assert len(make_site.build(ROOT, out)) > 40
    return out


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "form")
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action"):
                self.hrefs.append(value or "")
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")


def test_every_link_leads_to_a_page_or_a_heading_of_the_site(site: Path) -> None:
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        assert len(set(page.ids)) == len(page.ids), path
        for href in page.hrefs:
            assert ":" not in href, (path, href)
            file, _, anchor = href.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), (path, href)
            assert target.is_relative_to(site.resolve())
            assert not anchor or anchor in pages[target].ids, (path, href)
    assert "url(" not in (site / "style.css").read_text()
    assert "@import" not in (site / "style.css").read_text()


def test_the_api_page_has_every_route(site: Path) -> None:
    text = (site / "api.html").read_text()
    paths = make_site.openapi()["paths"]
    assert len(paths) > 30
    assert [path for path in paths if f"<code>{path}</code>" not in text] == []


def test_the_command_line_page_has_every_command(site: Path) -> None:
    text = (site / "cli.html").read_text()
    for name in ("aos", "aos verify", "aos operator drain", "aos project revoke", "aos model show"):
        assert f"<code>{name}</code>" in text
    assert "exit codes: 0 VERIFIED" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a](absent.md)", "there is no docs/absent.md"),
        ("[a](#nowhere)", "has no heading #nowhere"),
        ("[a](b.md#nowhere)", "has no heading #nowhere"),
        ("[a](../../outside.md)", "there is no ../outside.md"),
        ("[a](https://example.org)", "leads to another host"),
        ("[a](//example.org/x)", "leads to another host"),
        ("[a](.)", "is a directory"),
        ("![a](b.md)", "images are not part"),
    ],
)
def test_a_broken_link_ends_the_build(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(make_site, "NAV", (("All", ("docs/*.md",)),))
    (tmp_path / "docs" / "a.md").write_text("# A\n[b](b.md#the-one) [self](#a)\n")
    (tmp_path / "docs" / "b.md").write_text("# B\n## The one\n<script>alert(1)</script> `<b>`\n")
    make_site.build(tmp_path, tmp_path / "out")
    assert "<script>" not in (tmp_path / "out" / "b.html").read_text()
    (tmp_path / "docs" / "a.md").write_text(f"# A\n{text}\n")
    with pytest.raises(make_site.BrokenLink, match=why):
        make_site.build(tmp_path, tmp_path / "out")


def test_a_page_in_no_part_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n")
    monkeypatch.setattr(make_site, "NAV", (("None", ()),))
    with pytest.raises(make_site.BrokenLink, match=r"docs/a\.md"):
        make_site.build(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def test_it_reads_from_disk_at_both_widths_and_asks_nobody(tab: Page, site: Path) -> None:
    for scheme, width in (("light", 1280), ("dark", 360)):
        tab.scheme(scheme)
        tab.size(width)
        for name in (
            "index",
            "quick-start",
            "what-is-proven",
            "operator-guide",
            "spec/09-http",
            "threat-model",
            "api",
            "log",
        ):
            tab.open((site / f"{name}.html").as_uri())
            assert tab.run("document.querySelectorAll('h1').length") == 1, name
            assert tab.run("document.documentElement.scrollWidth") <= width, name
            assert tab.run("getComputedStyle(document.body).fontFamily").startswith("system-ui"), name
            current = "document.querySelector('nav [aria-current=page]')"
            assert tab.run(f"{current}.checkVisibility({{contentVisibilityAuto: true}})") == (width > 820), (
                name
            )
    assert tab.errors == []
    assert tab.hosts == set()
