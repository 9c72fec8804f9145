"""Build the documentation as a site: plain HTML from the Markdown in the checkout, and the API from its OpenAPI document.

    python scripts/make_site.py [--out site]

A link to a page, a heading or a file that is not there ends the build. The pages load nothing from any other host and work
when they are opened from disk.
"""

from __future__ import annotations

import argparse
import html
import posixpath
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "src/aos/dispatcher/ui/static"
API, CLI = "api.html", "cli.html"
NAV: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Start",
        (
            "README.md",
            "docs/quick-start.md",
            "docs/what-is-proven.md",
            "docs/verify-a-receipt.md",
            "docs/glossary.md",
        ),
    ),
    ("Use", ("docs/sdk.md", API, CLI, "docs/explorer.md", "docs/demo-model.md")),
    ("Run", ("docs/operator-guide.md", "docs/deploy.md", "docs/chain.md")),
    ("Understand", ("docs/architecture.md", "docs/threat-model.md", "docs/log.md")),
    ("Specification", ("docs/spec/*.md",)),
    ("Decisions", ("docs/adr/*.md",)),
    ("Project", ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "packages/*/README.md")),
)
OWN_STYLE = Path(__file__).with_name("site.css")


class BrokenLink(Exception):
    """A link that leads nowhere, or away."""


@dataclass(slots=True)
class Page:
    """A page of the site. ``source`` and ``path`` are relative to the checkout and the site."""

    source: str
    path: str
    title: str
    body: str = ""
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)


def slug(text: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def target_of(source: str) -> str:
    """Where in the site a Markdown file lies."""
    if source == "README.md":
        return "index.html"
    return source.removeprefix("docs/").removesuffix(".md").lower() + ".html"


def sources(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The site's parts, each with its files in order. Every Markdown file of docs/ is in one of them."""
    seen = set()
    for name, patterns in NAV:
        found = []
        for pattern in patterns:
            found += (
                [pattern]
                if pattern in (API, CLI)
                else sorted(p.relative_to(root).as_posix() for p in root.glob(pattern))
            )
        seen |= set(found)
        yield name, found
    missing = {p.relative_to(root).as_posix() for p in (root / "docs").rglob("*.md")} - seen
    if missing:
        raise BrokenLink(f"in no part of the site: {', '.join(sorted(missing))}")


def read(root: Path, source: str) -> Page:
    """A page from its Markdown; links are rewritten to the site's paths and kept to be checked."""
    page = Page(source=source, path=target_of(source), title=source)
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    tokens = markdown.parse((root / source).read_text(encoding="utf-8"))
    counts: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            text = "".join(
                t.content for t in tokens[index + 1].children or [] if t.type in ("text", "code_inline")
            )
            if token.tag == "h1" and page.title == source:
                page.title = text
            anchor = slug(text)
            counts[anchor] = counts.get(anchor, 0) + 1
            anchor += f"-{counts[anchor] - 1}" if counts[anchor] > 1 else ""
            page.anchors.add(anchor)
            token.attrSet("id", anchor)
        for child in token.children or []:
            rewrite(root, page, child)
    body = markdown.renderer.render(tokens, markdown.options, {})
    page.body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )
    return page


def rewrite(root: Path, page: Page, token: Token) -> None:
    """Point a link at the site's page or copied file."""
    if token.type == "image":
        raise BrokenLink(f"{page.source}: images are not part of the site")
    if token.type != "link_open":
        return
    href = str(token.attrGet("href"))
    if re.match(r"[a-z][a-z+.-]*:|//", href):
        raise BrokenLink(f"{page.source}: {href} leads to another host")
    file, _, anchor = href.partition("#")
    source = posixpath.normpath(posixpath.join(posixpath.dirname(page.source), file)) if file else page.source
    if source.startswith("..") or not (root / source).exists():
        raise BrokenLink(f"{page.source}: {href}: there is no {source}")
    if (root / source).is_dir():
        index = {"docs/spec": "docs/spec/01-encoding.md", "docs/adr": "docs/adr/0001-pure-core.md"}.get(
            source
        )
        if index is None:
            raise BrokenLink(f"{page.source}: {href} is a directory")
        source = index
    path = target_of(source) if source.endswith(".md") else f"files/{source}"
    page.links.append(f"{path}#{anchor}" if anchor else path)
    token.attrSet("href", relative(page.path, path) + (f"#{anchor}" if anchor else ""))


def relative(here: str, there: str) -> str:
    """The path of one page as another one names it."""
    return posixpath.relpath(there, posixpath.dirname(here) or ".")


def api_page() -> Page:
    """The routes of a dispatcher, from the OpenAPI document that it serves itself."""
    from aos.dispatcher.docs_page import content

    return Page(source=API, path=API, title="API reference", body=content(openapi()))


def cli_page() -> Page:
    """Every command's help, as it is printed on 80 columns."""
    import typer

    from aos.cli.app import app
    from aos.cli.referee import _parser as referee
    from aos.cli.verify import _parser as verify

    page = Page(source=CLI, path=CLI, title="Command line")
    light = {"verify": verify, "referee": referee}  # they are run without typer

    def parts(command: Any, path: str, parent: Any) -> Iterator[str]:
        context = typer.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
        context.terminal_width = context.max_content_width = 80
        own = light.get(path.removeprefix("aos "))
        text = own().format_help() if own else command.get_help(context)
        page.anchors.add(anchor := slug(path))
        level = min(3, 1 + path.count(" ") or 1) if path != "aos" else 2
        yield f'<h{level} id="{anchor}"><code>{path}</code></h{level}><pre tabindex="0">{html.escape(text)}</pre>'
        for name, child in getattr(command, "commands", {}).items():
            yield from parts(child, f"{path} {name}", context)

    page.body = "<h1>Command line</h1>" + "".join(parts(typer.main.get_command(app), "aos", None))
    return page


def openapi() -> dict[str, Any]:
    """The OpenAPI document of a dispatcher that is not started."""
    from aos.dispatcher.app import create_app
    from aos.dispatcher.config import load_config

    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        shutil.copy(ROOT / "docs/template/config-dispatcher.yaml", config)
        for name in ("signer.key", "vrf.key", "log.key", "beacon.seed"):
            (config.parent / name).write_text(secrets.token_hex(32))
            (config.parent / name).chmod(0o600)
        document: dict[str, Any] = create_app(load_config(config, environment={})).openapi()
        return document


MADE = {API: api_page, CLI: cli_page}


def frame(page: Page, parts: list[tuple[str, list[Page]]]) -> str:
    """A page with its navigation."""

    def link(other: Page) -> str:
        current = ' aria-current="page"' if other is page else ""
        return f'<li><a href="{relative(page.path, other.path)}"{current}>{html.escape(other.title)}</a></li>'

    nav = "".join(
        f"<h2>{html.escape(name)}</h2><ul>{''.join(map(link, pages))}</ul>" for name, pages in parts
    )
    root = relative(page.path, ".")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(page.title)} · AOS</title>
<link rel="icon" href="{root}/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{root}/style.css">
</head>
<body>
<a class="skip" href="#main">Skip to the page</a>
<header class="top"><div class="wrap"><a class="brand" href="{root}/index.html">
<img src="{root}/icon.svg" alt="" width="26" height="26"><span>AOS <span class="muted">documentation</span></span></a>
</div></header>
<div class="wrap site">
<nav aria-label="Documentation"><details><summary>All pages</summary>{nav}</details></nav>
<main id="main" class="text" tabindex="-1">
{page.body}
</main>
</div>
</body>
</html>
"""


def build(root: Path, out: Path) -> list[str]:
    """Write the site; the paths of its pages. Raises BrokenLink."""
    parts: list[tuple[str, list[Page]]] = []
    for name, files in sources(root):
        pages = [MADE[file]() if file in MADE else read(root, file) for file in files]
        parts.append((name, pages))
    pages = {page.path: page for _, found in parts for page in found}
    files = set()
    for page in pages.values():
        for link in page.links:
            path, _, anchor = link.partition("#")
            if path.startswith("files/"):
                files.add(path)
            elif path not in pages:
                raise BrokenLink(f"{page.source}: {path} is no page of the site")
            elif anchor and anchor not in pages[path].anchors:
                raise BrokenLink(f"{page.source}: {pages[path].source} has no heading #{anchor}")
    shutil.rmtree(out, ignore_errors=True)
    for page in pages.values():
        place = out / page.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(frame(page, parts), encoding="utf-8")
    for path in files:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path.removeprefix("files/"), out / path)
    (out / "style.css").write_text(
        (STYLE / "style.css").read_text(encoding="utf-8") + OWN_STYLE.read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    shutil.copyfile(STYLE / "icon.svg", out / "icon.svg")
    return list(pages)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="default: %(default)s")
    out = parser.parse_args().out
    try:
        pages = build(ROOT, out)
    except BrokenLink as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(pages)} pages in {out}; open {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
