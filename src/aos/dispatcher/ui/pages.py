"""Templates of the explorer: Jinja with escaping always on, and the few words that they need."""

import hashlib
import json
import re
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.job import STATUS, RunState

_STATIC = {"style.css": "text/css", "explorer.js": "text/javascript", "icon.svg": "image/svg+xml"}
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NAV = (
    ("/ui", "Network"),
    ("/ui/jobs", "Jobs"),
    ("/ui/operators", "Operators"),
    ("/ui/models", "Models"),
    ("/ui/disputes", "Disputes"),
    ("/ui/attestations", "Attestations"),
    ("/ui/log", "Log"),
    ("/ui/playground", "Playground"),
    ("/ui/verify", "Verify"),
)


def static(name: str) -> tuple[bytes, str] | None:
    """A file of the explorer's own and its media type; None where there is none of that name."""
    if name not in _STATIC:
        return None
    return resources.files(__package__).joinpath("static", name).read_bytes(), _STATIC[name]


@cache
def verifier() -> tuple[bytes, dict[str, str]]:
    """The browser verifier (packages/browser) and its headers: the policy that the file itself states, and no frame."""
    data = resources.files(__package__).joinpath("verify.html").read_bytes()
    stated = re.search(rb'Content-Security-Policy" content="([^"]+)"', data)
    assert stated is not None  # noqa: S101  its build writes it
    policy = f"{stated[1].decode('ascii')}; frame-ancestors 'none'"
    return data, {**SECURITY, "Content-Security-Policy": policy, "Cache-Control": "no-cache"}


def _mark() -> str:
    data = b"".join(found[0] for name in sorted(_STATIC) if (found := static(name)))
    return hashlib.sha256(data).hexdigest()[:12]


def short(value: str) -> str:
    """A hash or an address, shortened in the middle."""
    return value if len(value) <= 24 else f"{value[:8]}…{value[-6:]}"


def when(value: datetime) -> str:
    """A time in UTC, to the second."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def of_ms(value: int) -> str:
    """Unix milliseconds as a time in UTC; the number where no calendar has it, as others may sign."""
    try:
        return when(datetime.fromtimestamp(value / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        return f"{value} ms"


def status(state: RunState) -> str:
    """A run's public status."""
    return STATUS[state]


_environment = Environment(
    loader=PackageLoader(__package__),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(
    short=short,
    when=when,
    of_ms=of_ms,
    of_s=lambda value: of_ms(value * 1000),
    status=status,
    b64=b64u_encode,
    sha256=lambda data: hashlib.sha256(data).hexdigest(),
    grouped=lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
    seconds=lambda number: "–" if number is None else f"{number:.2f} s",
    hash32=lambda text: b64u_decode(text, length=32),
    pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
)
_environment.globals.update(nav=NAV, mark=_mark())


def page(template: str, *, here: str, network: str, status_code: int = 200, **values: Any) -> HTMLResponse:
    """A page. ``here`` is the path of the part of the explorer that it belongs to."""
    text = _environment.get_template(template).render(here=here, network=network, **values)
    return HTMLResponse(text, status_code=status_code, headers={**SECURITY, "Cache-Control": "no-store"})
