"""A dispatcher's log as an HTTP server in a thread, over leaves that a test chooses: honest, or with another history."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from logged_run import AT, TestLog

from aos.core import merkle
from aos.core.encoding import b64u_decode, b64u_encode
from aos.core.log.tiles import grow, read_tile_path


class LogPeer:
    """Serves ``leaves`` (hashes) as signed at ``time_s``; ``lie`` gives a path of another tree, ``down`` answers 503."""

    def __init__(self, log: TestLog, leaves: list[bytes]) -> None:
        self.log, self.leaves, self.time_s = log, leaves, AT
        self.checkpoint: str | None = None
        self.lie: list[bytes] | None = None
        self.down = False
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = peer.answer(self.path)
                data = body if isinstance(body, bytes) else body.encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, path: str) -> tuple[int, str | bytes]:
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        what = parts.path.removeprefix("/v1/aos/log/")
        if self.down:
            return 503, json.dumps({"title": "store.unavailable", "detail": "down"})
        if what == "checkpoint":
            return 200, self.checkpoint or self.log.checkpoint(self.leaves, time_s=self.time_s)
        if what == "consistency":
            old, new = int(query["from"]), int(query["to"])
            shown = self.leaves if self.lie is None else self.lie
            if new > len(shown):
                return 404, json.dumps({"title": "log.size", "detail": "no such tree"})
            found = {
                "from_root": b64u_encode(merkle.tree_root(shown[:old])),
                "path": [b64u_encode(value) for value in merkle.consistency_path(shown[:new], old)],
            }
            return 200, json.dumps(found)
        if what == "inclusion":
            leaf, size = b64u_decode(query["leaf"]), int(query["size"])
            if leaf not in self.leaves[:size]:
                return 404, json.dumps({"title": "log.unknown_leaf", "detail": "no such leaf"})
            index = self.leaves.index(leaf)
            path_of = merkle.inclusion_path(self.leaves[:size], index)
            return 200, json.dumps({"index": index, "path": [b64u_encode(value) for value in path_of]})
        if what.startswith("tile/"):
            tile = read_tile_path(what.removeprefix("tile/"))
            held = grow(0, {}, self.leaves).get((tile.level, tile.index), b"")
            return 200, held[: 32 * tile.width]
        if what == "entries":
            return 200, json.dumps({"entries": [{"index": 0, "kind": "snapshot", "digest": "A" * 43}]})
        return 404, json.dumps({"title": "http.not_found", "detail": "nothing here"})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
