"""The operator as a program: ``operator-runer -i URL`` makes its database, ``operator-runer -c FILE`` runs it.

``init_db``, ``run``, ``status``, ``drain`` and ``resume`` are what ``aos operator`` calls. (The name is the original network's.)
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import structlog

from aos.adapters.postgres import connect_pool, create_database, migrate
from aos.errors import AOSError, ConfigError, Unavailable
from aos.operator.config import OperatorConfig, database_url, load_config
from aos.operator.identity import Identity, load_identity
from aos.operator.node import OperatorNode
from aos.operator.store import MIGRATIONS

log = structlog.get_logger("aos.operator")


def init_db(url: str) -> list[str]:
    """Create the operator's database where it is missing, and bring its schema up to date; the migrations applied now.

    Raises ConfigError ``config.value``, ``config.pg_db_url``, ``migration.*``; Unavailable ``store.unavailable``.
    """
    configure_logging()
    return asyncio.run(_init_db(database_url(url, "")))


async def _init_db(url: str) -> list[str]:
    try:
        await create_database(url)
    except ConfigError:
        # No access to the server's own database: the operator's may still be there, made by somebody else.
        log.info("database.not_created")
    except asyncpg.PostgresError as error:
        raise ConfigError(
            "config.pg_db_url",
            f"PostgreSQL does not let this user create the database: {error}",
            field="pg_db_url",
            hint="create it as the server's administrator, owned by this user",
        ) from error
    pool = await connect_pool(url, min_size=1, max_size=2, application_name="aos-operator-init")
    try:
        return await migrate(pool, MIGRATIONS)
    finally:
        await pool.close()


def run(path: Path | None) -> int:
    """Run an operator until SIGTERM or SIGINT; the exit code, 0. ``path`` None: configured by the environment alone.

    Raises ConfigError; RuleViolation ``operator.second_process``, ``operator.foreign_database``.
    """
    configure_logging()
    config = load_config(path)
    identity, key_warnings = load_identity(config)
    for warning in (*config.warnings, *key_warnings):
        log.warning("config.warning", key=warning.key, reason=warning.reason)
    asyncio.run(_run(config, identity))
    return 0


async def _run(config: OperatorConfig, identity: Identity) -> None:
    await OperatorNode(config, identity).run()


def status(path: Path | None) -> dict[str, Any]:
    """The status document of the operator that runs with this configuration. Raises Unavailable ``operator.unreachable``."""
    return _call(load_config(path), "GET", "/api/v1/operator/status")


def drain(path: Path | None) -> dict[str, Any]:
    """Tell the running operator to take part in no more draws. Raises as ``status``."""
    return _call(load_config(path), "POST", "/api/v1/operator/drain")


def resume(path: Path | None) -> dict[str, Any]:
    """Tell the running operator to take part in draws again. Raises as ``status``."""
    return _call(load_config(path), "POST", "/api/v1/operator/resume")


def _call(config: OperatorConfig, method: str, route: str) -> dict[str, Any]:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.rest_host, config.rest_host)  # noqa: S104
    url = f"http://{f'[{host}]' if ':' in host else host}:{config.rest_port}{route}"
    try:
        answer = httpx.request(method, url, timeout=15.0, trust_env=False)
        body = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(
            "operator.unreachable",
            f"no operator answers at {config.rest_host}:{config.rest_port} ({type(error).__name__})",
            hint="is it running? `aos operator run -c FILE` starts it",
        ) from error
    if answer.status_code != 200:
        raise Unavailable(
            str(body.get("error", "operator.unreachable")), str(body.get("message", "the operator refuses"))
        )
    result: dict[str, Any] = body["result"]
    return result


def configure_logging() -> None:
    """One line of JSON an event, on stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``operator-runer``."""
    parser = argparse.ArgumentParser(
        prog="operator-runer",
        description="Run an AOS operator, or initialise its database.",
        epilog="Examples:  operator-runer -i postgres://postgres:hetu@127.0.0.1:5432/operator_db\n"
        "           operator-runer -c ./docs/template/config-operator.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-i", "--init-db", metavar="URL", help="create and migrate the operator's database")
    what.add_argument("-c", "--config", metavar="FILE", type=Path, help="run with this configuration")
    options = parser.parse_args(arguments)
    try:
        if options.init_db is not None:
            applied = init_db(options.init_db)
            print(f"database is up to date ({len(applied)} migrations applied now)")
        else:
            run(options.config)
    except AOSError as error:
        if os.environ.get("AOS_LOG_NAME"):  # run by a supervisor, whose log is JSON
            print(
                json.dumps({"event": "ended", "code": error.code, "message": error.message}), file=sys.stderr
            )
        else:
            print(f"error: {error.message} [{error.code}]", file=sys.stderr)
            if error.hint:
                print(f"  hint: {error.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
