"""Downloading a model from a real HTTP server that cuts, lies, redirects and changes its mind."""

from __future__ import annotations

import fcntl
import os
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aos.adapters import model_download
from aos.adapters.model_download import KNOWN_MODELS, PulledModel, pull_model
from aos.errors import (
    AOSError,
    ConfigError,
    InvalidMessage,
    RuleViolation,
    Unavailable,
    VerificationError,
)

CONTENT = bytes(range(256)) * 12_000
DIGEST = sha256(CONTENT).hexdigest()
OTHER = bytes(reversed(CONTENT))
NAME = "model.gguf"
GIVEN = "sha256 given by the caller"
HEADER = "the hub's x-linked-etag header"


@dataclass
class Hub:
    """What the server does, and what it was asked. ``cuts``: after how many bytes each answer breaks off."""

    content: bytes = CONTENT
    digest: str | None = DIGEST
    etag: str = '"v1"'
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    announced: bool = True
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    content_range: str | None = None
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{NAME}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted, if_range = request.headers.get("range"), request.headers.get("if-range")
        self.asked.append((request.path, wanted, if_range))
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            self._begin(request, status, {"content-length": "0"})
            return
        if self.redirect is not None and not request.path.startswith("/cdn/"):
            self._begin(request, 302, {"location": self.redirect, "content-length": "0"})
            return
        start, status, extra = 0, 200, {}
        if wanted is not None and self.ranges and if_range in (None, self.etag):
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(self.content):
                self._begin(request, 416, {"content-length": "0"})
                return
            last = len(self.content) - 1
            extra["content-range"] = self.content_range or f"bytes {start}-{last}/{len(self.content)}"
        body = self.content[start:]
        if self.announced:
            extra["content-length"] = str(len(body))
        self._begin(request, status, {"etag": self.etag, **extra})
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)

    def _begin(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        linked = {} if self.digest is None else {"x-linked-etag": f'"{self.digest}"'}
        if request.path.startswith("/cdn/"):
            linked = {}
        for name, value in {**linked, **headers, **self.headers}.items():
            request.send_header(name, value)
        request.end_headers()


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                state.answer(self)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Request) as server:
        state.port = server.server_address[1]
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield state
        server.shutdown()
        serving.join()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def pull(hub: Hub, models: Path, **options: Any) -> PulledModel:
    return pull_model(NAME, models_dir=models, **{"url": hub.url, "pause_s": 0.0, **options})


def refused(cls: type[AOSError], code: str, call: Callable[[], Any]) -> AOSError:
    with pytest.raises(cls) as caught:
        call()
    assert caught.value.code == code
    return caught.value


def left(models: Path) -> list[str]:
    return sorted(os.listdir(models))


def test_the_file_arrives_whole_and_only_the_file(hub: Hub, models: Path) -> None:
    seen: list[tuple[int, int]] = []
    pulled = pull(hub, models, progress=lambda done, whole: seen.append((done, whole)))
    assert pulled.path == models / NAME
    assert pulled.path.read_bytes() == CONTENT
    assert (pulled.size, pulled.sha256.hex()) == (len(CONTENT), DIGEST)
    assert left(models) == [NAME]
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_who_vouched_for_the_digest_is_said(hub: Hub, models: Path, tmp_path: Path) -> None:
    assert pull(hub, models).checked_by == HEADER
    assert pull(hub, tmp_path / "second", sha256_hex=DIGEST).checked_by == GIVEN
    assert pull(hub, tmp_path / "third", sha256_hex=DIGEST.upper()).checked_by == GIVEN


def test_the_callers_digest_wins_over_the_hubs(hub: Hub, models: Path, tmp_path: Path) -> None:
    hub.digest = "00" * 32
    assert pull(hub, models, sha256_hex=DIGEST).checked_by == GIVEN
    hub.digest = DIGEST
    refused(
        VerificationError,
        "model.digest_mismatch",
        lambda: pull(hub, tmp_path / "second", sha256_hex="00" * 32),
    )


@pytest.mark.parametrize("digest", [None, "", "12345", DIGEST.upper(), DIGEST + "0", "W/" + DIGEST])
def test_without_any_digest_nothing_is_downloaded(digest: str | None, hub: Hub, models: Path) -> None:
    hub.digest = digest
    error = refused(VerificationError, "model.unchecked", lambda: pull(hub, models))
    assert "--sha256" in str(error.hint)
    assert NAME not in left(models)
    assert all((models / name).stat().st_size == 0 for name in left(models))


@pytest.mark.parametrize(("by", "words"), [(GIVEN, {"sha256_hex": DIGEST}), (HEADER, {})])
def test_a_wrong_file_is_refused_by_name_of_who_vouched_and_nothing_is_left(
    by: str, words: dict[str, str], hub: Hub, models: Path
) -> None:
    hub.content = OTHER
    error = refused(VerificationError, "model.digest_mismatch", lambda: pull(hub, models, **words))
    assert by in error.message
    assert left(models) == []


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub, models: Path) -> None:
    hub.cuts = [100_000, 1, 2_000_000]
    assert pull(hub, models).path.read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in hub.asked] == [
        None,
        "bytes=100000-",
        "bytes=100001-",
        "bytes=2100001-",
    ]
    assert {if_range for _, _, if_range in hub.asked[1:]} == {'"v1"'}


def test_a_call_that_gave_up_is_taken_up_by_the_next(hub: Hub, models: Path) -> None:
    hub.cuts = [70_000, 0, 0, 0, 0, 0]
    error = refused(Unavailable, "model.interrupted", lambda: pull(hub, models))
    assert "again" in str(error.hint)
    assert left(models) == [f"{NAME}.part", f"{NAME}.part.json"], "never the final name"
    assert (models / f"{NAME}.part").read_bytes() == CONTENT[:70_000]
    hub.cuts.clear()
    hub.asked.clear()
    assert pull(hub, models).path.read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in hub.asked] == ["bytes=70000-"]
    assert left(models) == [NAME]


def test_five_tries_without_a_new_byte_are_enough_and_progress_starts_the_count_again(
    hub: Hub, models: Path
) -> None:
    hub.cuts = [10, 0, 0, 0, 10, 0, 0, 0, 0]
    refused(Unavailable, "model.interrupted", lambda: pull(hub, models))
    assert len(hub.asked) == 9


def test_a_damaged_part_is_found_out_and_removed(hub: Hub, models: Path) -> None:
    hub.cuts = [70_000, 0, 0, 0, 0, 0]
    refused(Unavailable, "model.interrupted", lambda: pull(hub, models))
    with (models / f"{NAME}.part").open("r+b") as part:
        part.write(b"damaged")
    hub.cuts.clear()
    refused(VerificationError, "model.digest_mismatch", lambda: pull(hub, models))
    assert left(models) == []
    assert pull(hub, models).path.read_bytes() == CONTENT


def test_a_part_from_another_address_is_not_continued(hub: Hub, models: Path) -> None:
    hub.cuts = [70_000, 0, 0, 0, 0, 0]
    refused(Unavailable, "model.interrupted", lambda: pull(hub, models))
    hub.cuts.clear()
    hub.asked.clear()
    assert pull(hub, models, url=hub.url + "?v=2").path.read_bytes() == CONTENT
    assert hub.asked[0][1] is None


def test_a_part_without_its_note_is_not_continued(hub: Hub, models: Path) -> None:
    models.mkdir()
    (models / f"{NAME}.part").write_bytes(b"left by who knows")
    assert pull(hub, models).path.read_bytes() == CONTENT
    assert hub.asked[0][1] is None


def test_a_file_that_changed_at_the_server_begins_anew(hub: Hub, models: Path) -> None:
    hub.content, hub.digest = OTHER, sha256(OTHER).hexdigest()
    hub.cuts = [70_000, 0, 0, 0, 0, 0]
    refused(Unavailable, "model.interrupted", lambda: pull(hub, models))
    hub.content, hub.digest, hub.etag, hub.cuts = CONTENT, DIGEST, '"v2"', []
    assert pull(hub, models).path.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_of_it_again(hub: Hub, models: Path) -> None:
    hub.ranges, hub.cuts = False, [70_000]
    assert pull(hub, models).path.read_bytes() == CONTENT


def test_a_whole_part_is_finished(hub: Hub, models: Path) -> None:
    hub.cuts = [70_000, 0, 0, 0, 0, 0]
    refused(Unavailable, "model.interrupted", lambda: pull(hub, models))
    (models / f"{NAME}.part").write_bytes(CONTENT)
    hub.cuts.clear()
    assert pull(hub, models).path.read_bytes() == CONTENT


@pytest.mark.parametrize("told", ["bytes 0-9/10", "bytes 5-9/10", "items 1-2/3", "bytes */10"])
def test_another_range_than_asked_for_is_not_appended(told: str, hub: Hub, models: Path) -> None:
    hub.cuts, hub.content_range = [70_000], told
    assert pull(hub, models).path.read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in hub.asked] == [None, "bytes=70000-", None]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_final_status_ends_it_at_once(status: int, hub: Hub, models: Path) -> None:
    hub.statuses = [status]
    error = refused(Unavailable, "model.http", lambda: pull(hub, models, sha256_hex=DIGEST))
    assert str(status) in error.message
    assert len(hub.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_an_overloaded_server_is_asked_again(status: int, hub: Hub, models: Path) -> None:
    hub.statuses = [status, 200]
    assert pull(hub, models).path.read_bytes() == CONTENT
    assert len(hub.asked) == 2


def test_more_bytes_than_allowed_are_refused_before_they_come(hub: Hub, models: Path) -> None:
    refused(RuleViolation, "model.too_large", lambda: pull(hub, models, max_bytes=len(CONTENT) - 1))
    assert (models / f"{NAME}.part").stat().st_size == 0


def test_a_body_without_a_length_arrives_too(hub: Hub, models: Path) -> None:
    hub.announced = False
    assert pull(hub, models).path.read_bytes() == CONTENT


def test_an_endless_body_without_a_length_is_cut_off(hub: Hub, models: Path) -> None:
    hub.announced = False
    refused(RuleViolation, "model.too_large", lambda: pull(hub, models, max_bytes=100_000))
    assert NAME not in left(models)


def test_a_disk_without_room_is_named_before_a_byte_comes(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Usage", (), {"free": len(CONTENT) - 1})
    monkeypatch.setattr(model_download.shutil, "disk_usage", lambda _: free)
    refused(Unavailable, "model.no_space", lambda: pull(hub, models))
    assert NAME not in left(models)


def test_a_disk_that_fills_up_on_the_way_is_named_and_the_download_goes_on_later(
    hub: Hub, models: Path
) -> None:
    """The system refuses every byte after the first 100,000, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        error = refused(Unavailable, "model.unwritable", lambda: pull(hub, models))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in error.message
    assert NAME not in left(models)
    hub.asked.clear()
    assert pull(hub, models).path.read_bytes() == CONTENT
    assert hub.asked[0][1] == "bytes=100000-"


@pytest.mark.parametrize("length", ["9" * 18, "-1", "1e3", "0x10", "1, 2"])
def test_a_length_that_cannot_be_is_refused_and_nothing_is_allocated_for_it(
    length: str, hub: Hub, models: Path
) -> None:
    hub.headers = {"content-length": length}
    with pytest.raises((RuleViolation, Unavailable)):
        pull(hub, models)
    assert NAME not in left(models)


def test_an_encoded_body_is_refused(hub: Hub, models: Path) -> None:
    hub.headers = {"content-encoding": "gzip"}
    refused(Unavailable, "model.http", lambda: pull(hub, models))


def test_the_same_file_is_not_downloaded_again(hub: Hub, models: Path) -> None:
    pull(hub, models)
    before = (models / NAME).stat().st_ino
    again = pull(hub, models)
    assert (again.sha256.hex(), again.size) == (DIGEST, len(CONTENT))
    assert (models / NAME).stat().st_ino == before
    assert left(models) == [NAME]


def test_another_file_of_that_name_is_not_overwritten(hub: Hub, models: Path) -> None:
    models.mkdir()
    (models / NAME).write_bytes(b"mine")
    refused(RuleViolation, "model.exists", lambda: pull(hub, models))
    assert (models / NAME).read_bytes() == b"mine"


def test_two_downloads_of_one_name_do_not_mix(hub: Hub, models: Path) -> None:
    models.mkdir()
    with (models / f"{NAME}.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(RuleViolation, "model.pull_running", lambda: pull(hub, models))
    assert hub.asked == []


def test_a_redirect_is_followed_and_the_hubs_own_header_counts(hub: Hub, models: Path) -> None:
    hub.redirect = "/cdn/file"
    pulled = pull(hub, models)
    assert (pulled.path.read_bytes(), pulled.checked_by) == (CONTENT, HEADER)
    assert [path for path, _, _ in hub.asked] == [f"/{NAME}", "/cdn/file"]


def test_a_digest_that_only_the_redirects_target_names_counts_for_nothing(hub: Hub, models: Path) -> None:
    hub.digest, hub.redirect = None, f"/second/{NAME}"
    refused(VerificationError, "model.unchecked", lambda: pull(hub, models))
    assert [path for path, _, _ in hub.asked] == [f"/{NAME}"]


def test_redirects_end(hub: Hub, models: Path) -> None:
    hub.redirect = "/again"
    refused(Unavailable, "model.http", lambda: pull(hub, models))
    assert len(hub.asked) == 6


@pytest.mark.parametrize(
    "target",
    [
        "http://example.org/x",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "https://user:secret@example.org/x",
        "https://",
    ],
)
def test_a_redirect_to_where_we_would_not_go_is_refused(target: str, hub: Hub, models: Path) -> None:
    hub.redirect = target
    refused(ConfigError, "model.url", lambda: pull(hub, models))
    assert NAME not in left(models)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x",
        "http://192.0.2.1/x",
        "https://user@example.org/x",
        "file:///etc/passwd",
        "/models/x",
        "http://[::1/x",
        "",
    ],
)
def test_only_https_or_this_machine(url: str, models: Path) -> None:
    refused(ConfigError, "model.url", lambda: pull_model(NAME, models_dir=models, url=url))
    assert not models.exists()


def test_a_server_elsewhere_may_not_send_us_to_this_machine() -> None:
    for local in ("http://127.0.0.1/x", "https://localhost/x", "http://[::1]:80/x", "https://127.1.2.3/x"):
        refused(
            ConfigError,
            "model.url",
            lambda local=local: model_download._check_address(local, came_from="https://example.org/m"),
        )


def test_a_name_without_a_known_address_needs_one(models: Path) -> None:
    error = refused(ConfigError, "model.unknown", lambda: pull_model("mine.gguf", models_dir=models))
    assert "--url" in str(error.hint)
    assert all(url.startswith("https://") for url in KNOWN_MODELS.values())


@pytest.mark.parametrize("name", ["../x.gguf", "/etc/x", "", ".part"])
def test_a_name_cannot_leave_the_models_directory(name: str, hub: Hub, models: Path) -> None:
    refused(InvalidMessage, "model.name", lambda: pull_model(name, models_dir=models, url=hub.url))
    assert hub.asked == []


@pytest.mark.parametrize("digest", ["", "abc", DIGEST[:-1], DIGEST + "0", "g" * 64])
def test_a_digest_that_is_none_is_refused_before_anything_is_asked(
    digest: str, hub: Hub, models: Path
) -> None:
    error = refused(InvalidMessage, "model.sha256", lambda: pull(hub, models, sha256_hex=digest))
    assert error.field == "sha256"
    assert hub.asked == []


def test_a_directory_that_cannot_be_written_is_named_as_that(hub: Hub, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    refused(Unavailable, "model.unwritable", lambda: pull(hub, blocked / "models"))
