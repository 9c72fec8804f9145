"""``python -m aos.dispatcher -c FILE``: run a dispatcher until SIGTERM or Ctrl-C."""

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
import uvicorn

from aos.core.envelope import MAX_ENVELOPE_BYTES
from aos.dispatcher.app import create_app
from aos.dispatcher.config import load_config
from aos.errors import AOSError

UNREAD_MS = 30_000


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or the error's (30: configuration)."""
    parser = argparse.ArgumentParser(prog="aos dispatcher", description="Runs an AOS dispatcher.")
    parser.add_argument("-c", "--config", required=True, type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    try:
        config = load_config(arguments.config)
    except AOSError as error:
        sys.stderr.write(f"error: {error}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    serving = uvicorn.Config(
        create_app(config),
        host=config.host,
        port=config.port,
        access_log=False,
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=MAX_ENVELOPE_BYTES,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    server = uvicorn.Server(serving)
    listener = serving.bind_socket()
    listener.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )  # asyncio does so only for sockets that it makes
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted connections inherit it: the kernel ends those whose peer takes nothing for so long.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    server.run(sockets=[listener])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
