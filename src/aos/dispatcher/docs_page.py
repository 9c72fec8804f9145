"""``/docs``: the OpenAPI document as one page of HTML, made here. No script, and no request to any other host."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}"
    "code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f4f6f8;padding:.75rem;overflow:auto;border-radius:6px}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}td,th{border-bottom:1px solid #d8dee4;padding:.3rem .6rem;"
    "text-align:left;vertical-align:top}h2{margin-top:2.5rem;border-bottom:2px solid #1b1f24}"
    "details{border:1px solid #d8dee4;border-radius:6px;margin:.6rem 0;padding:.5rem .9rem}summary{cursor:pointer}"
    "b.verb{display:inline-block;min-width:4rem}@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}"
    "pre{background:#161b22}td,th,details{border-color:#30363d}a{color:#6cb6ff}h2{border-color:#e6edf3}}"
)
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Document = dict[str, Any]


def render(document: Document) -> str:
    """The page of an OpenAPI 3.1 document whose references all lead into its own ``components``."""
    title = escape(document["info"]["title"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        '<p>The same for machines: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>'
        f"{_groups(document)}</body></html>"
    )


def content(document: Document) -> str:
    """The same as a part of another page."""
    return f"<h1>API reference</h1>{_groups(document)}"


def _groups(document: Document) -> str:
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for verb, operation in methods.items():
            group = operation.get("tags", ["other"])[0]
            groups.setdefault(group, []).append(_operation(document, verb, path, operation))
    parts = [f"<p>{escape(document['info'].get('description', ''))}</p>"]
    parts += [f"<h2>{escape(name)}</h2>{''.join(items)}" for name, items in groups.items()]
    return "".join(parts)


def _operation(document: Document, verb: str, path: str, operation: Document) -> str:
    title = f'<summary><b class="verb">{verb.upper()}</b> <code>{escape(path)}</code> {escape(operation["summary"])}</summary>'
    parts = [title, f"<p>{escape(operation.get('description', ''))}</p>"]
    if parameters := operation.get("parameters"):
        rows = [
            (item["name"], item["in"], _kind(document, item["schema"]), item.get("description", ""))
            for item in parameters
        ]
        parts.append("<h4>Parameters</h4>" + _table(("name", "in", "type", ""), rows))
    if "requestBody" in operation:
        for media, content in operation["requestBody"]["content"].items():
            parts.append(
                f"<h4>Body: <code>{escape(media)}</code></h4>" + _schema(document, content["schema"])
            )
    answers = []
    for status, answer in operation["responses"].items():
        kinds = ", ".join(answer.get("content", {}))
        answers.append((status, kinds, answer["description"]))
    parts.append("<h4>Answers</h4>" + _table(("status", "type", ""), answers))
    success = operation["responses"].get("200", {}).get("content", {}).get("application/json")
    if success and success.get("schema"):
        parts.append("<h4>200</h4>" + _schema(document, success["schema"]))
    return f"<details>{''.join(parts)}</details>"


def _schema(document: Document, schema: Document) -> str:
    """Members of an object and of the objects in it, flat, with dotted names."""
    whole = _resolved(document, schema)
    parts = []
    if rows := list(_members(document, whole, "")):
        parts.append(_table(("member", "type", "", ""), rows))
    if "example" in whole:
        parts.append(f"<pre>{escape(json.dumps(whole['example'], indent=2, ensure_ascii=False))}</pre>")
    return "".join(parts)


def _members(document: Document, schema: Document, prefix: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, member in schema.get("properties", {}).items():
        required = "required" if name in schema.get("required", ()) else ""
        rows.append((f"{prefix}{name}", _kind(document, member), required, member.get("description", "")))
        inner = _resolved(document, member)
        if inner.get("type") == "array":
            rows += _members(document, _resolved(document, inner["items"]), f"{prefix}{name}[].")
        else:
            rows += _members(document, inner, f"{prefix}{name}.")
    return rows


def _kind(document: Document, schema: Document) -> str:
    whole = _resolved(document, schema)
    if "anyOf" in whole:
        return " or ".join(_kind(document, choice) for choice in whole["anyOf"])
    for name in ("enum", "const"):
        if name in whole:
            values = whole[name] if name == "enum" else [whole[name]]
            return " | ".join(json.dumps(value) for value in values)
    if whole.get("type") == "array":
        return f"list of {_kind(document, whole['items'])}"
    return str(whole.get("type", "any"))


def _resolved(document: Document, schema: Document) -> Document:
    if "$ref" not in schema:
        return schema
    found: Document = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _table(head: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f"<tr><td><code>{escape(first)}</code></td>{cells}</tr>")
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"
