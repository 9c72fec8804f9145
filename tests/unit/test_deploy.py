"""What ``deploy/`` holds: commands, settings, routes, files and queries in it exist, and the units are hardened.

No container runs here and no unit is started; docs/deploy.md says what was tried by hand. That the metrics of dashboard and alerts
are those of the running programs: tests/e2e/test_metrics.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import typer.main
import yaml

from aos.cli.app import app
from aos.core.signing import address_of
from aos.dispatcher.config import load_config as load_dispatcher
from aos.operator.config import load_config as load_operator
from aos.workers import opml_main

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KEY, OTHER = "11" * 32, "22" * 32
OWN = ("found", "dispatcher", "operator", "worker")


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def runs(words: list[str]) -> None:
    """Assert that ``words`` is a command of this package, with options that it has."""
    if words[:3] == ["python", "-m", "aos.workers.opml_main"]:
        assert {word for word in words[3:] if word.startswith("-")} <= worker_options(), words
        return
    assert words[0] == "aos"
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    assert not hasattr(command, "commands"), words
    options = {option for param in command.params for option in param.opts}
    assert {word for word in rest if word.startswith("-")} <= options, words


@cache
def worker_options() -> frozenset[str]:
    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
        opml_main.main(["--help"])
    return frozenset(re.findall(r"--[a-z-]+", said.getvalue()))


# --- compose


def test_every_service_is_confined_and_none_floats() -> None:
    for name, service in services().items():
        assert service["profiles"], name
        assert "privileged" not in service
        assert "network_mode" not in service
        assert name in OWN or re.search(r":v?\d", service["image"]), "a third party's image names its version"
        if name != "postgres":  # it starts as root to own its volume
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
        if name in OWN:
            assert service["read_only"] is True
            assert "AOS_UID" in service["user"]
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${AOS_DISPATCHER_PUBLISH:-127.0.0.1:")), (name, port)


def test_what_a_service_names_is_there() -> None:
    document = compose()
    for name, service in services().items():
        assert set(service.get("secrets", [])) <= set(document["secrets"]), name
        assert set(service["networks"]) <= set(document["networks"]), name
        for needed in service.get("depends_on", {}):
            assert set(service["profiles"]) <= set(services()[needed]["profiles"]), (name, needed)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                made = source in ("./config", "./data/prometheus", "./data/grafana")  # the person's own
                assert made or (DEPLOY / source).exists(), volume
            else:
                assert source in document["volumes"], volume
    assert document["networks"]["worker"] == {"internal": True}
    assert services()["worker"]["networks"] == ["worker"], "who sees prompts reaches nobody else"


def test_the_services_of_this_project_run_commands_that_exist() -> None:
    for name in OWN:
        service = services()[name]
        runs([*service.get("entrypoint", ["aos"]), *service["command"]])
        assert service["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}
    image = (DEPLOY / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["aos"]' in image
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", image, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()), line
    kept = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert kept == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "native", "src"}


def test_every_variable_is_in_the_example() -> None:
    example = dict(
        line.split("=", 1)
        for line in (DEPLOY / "env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    used = set(re.findall(r"\$\{([A-Z_]+)", (DEPLOY / "compose.yaml").read_text()))
    assert used == set(example)
    assert example["POSTGRES_PASSWORD"] == "", "no password that everybody knows"


def environment_of(name: str) -> dict[str, str]:
    """A service's environment with compose's substitutions made."""
    values = {"POSTGRES_PASSWORD": "pass"}

    def put(found: re.Match[str]) -> str:
        variable, default = found[1], found[2] or ""
        return values.get(variable, default.removeprefix(":-"))

    return {
        key: re.sub(r"\$\{([A-Z_]+)(:-[^}]*|:\?[^}]*)?\}", put, value)
        for key, value in services()[name]["environment"].items()
    }


def test_the_dispatchers_environment_is_read_as_meant(tmp_path: Path) -> None:
    config = tmp_path / "config-dispatcher.yaml"
    shutil.copy(ROOT / "docs" / "template" / "config-dispatcher.yaml", config)
    for file, key in (
        ("signer.key", KEY),
        ("vrf.key", OTHER),
        ("log.key", "44" * 32),
        ("beacon.seed", "33" * 32),
    ):
        (tmp_path / file).write_text(key)
        (tmp_path / file).chmod(0o600)
    found = load_dispatcher(config, environment=environment_of("dispatcher"))
    assert (found.host, found.port) == ("0.0.0.0", 8081)
    assert found.pg_url == "postgres://postgres:pass@postgres:5432/dispatcher"
    assert found.origins == {"http://127.0.0.1:8081", "http://dispatcher:8081"}


def test_the_operators_environment_is_read_as_meant(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "docs" / "template" / "config-operator.yaml").read_text())
    content["node"] |= {"node_id": address_of(bytes.fromhex(KEY)), "signer_key": KEY, "vrf_key": OTHER}
    config = tmp_path / "config-operator.yaml"
    config.write_text(yaml.safe_dump(content))
    environment = environment_of("operator")
    token = tmp_path / "worker_token"
    token.write_text("a token of the worker")
    token.chmod(0o600)
    environment["AOS_NET_WORKER_TOKEN_FILE"] = str(token)
    found = load_operator(config, environment=environment)
    assert found.pg_url == "postgres://postgres:pass@postgres:5432/operator_db"
    assert (found.rest_host, found.rest_port) == ("0.0.0.0", 21001)
    assert list(found.workers) == ["http://worker:8080"]
    assert found.worker_token == "a token of the worker"
    assert found.queue_url == "redis://redis:6379/"


# --- systemd


def setting(unit: Path, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_a_command_that_exists_as_a_user_without_rights(unit: Path) -> None:
    (command,) = setting(unit, "ExecStart")
    words = shlex.split(command)
    assert words[0].startswith("/opt/aos/.venv/bin/")
    runs([words[0].rpartition("/")[2], *words[1:]])
    assert setting(unit, "User") == ["aos"]
    for name in ("NoNewPrivileges", "PrivateTmp", "MemoryDenyWriteExecute", "RestrictNamespaces"):
        assert setting(unit, name) == ["yes"], name
    assert setting(unit, "ProtectSystem") == ["strict"]
    assert setting(unit, "CapabilityBoundingSet") == [""]


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        reason = "no systemd-analyze on this machine"
        pytest.fail(reason) if os.environ.get("AOS_CI") == "1" else pytest.skip(reason)
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_reads_the_units_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("aos", "python"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    copies = []
    for unit in UNITS:
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/aos/.venv/bin", str(tmp_path / "bin")))
        copies.append(copy)
    done = analyze("verify", "--man=no", *copies)
    assert (done.returncode, done.stderr) == (0, "")
    copies[0].write_text(copies[0].read_text().replace("ProtectSystem=", "ProtectSystems="))
    assert "ProtectSystems" in analyze("verify", "--man=no", copies[0]).stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_rates_the_exposure_as_ok(unit: Path) -> None:
    done = analyze("security", "--offline=yes", "--threshold=15", unit)
    assert done.returncode == 0, done.stdout[-300:]


# --- Prometheus, Grafana


def test_every_expression_is_promql_and_every_alert_says_what_to_do() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 10
    for rule in alerts:
        promql_parser.parse(rule["expr"])
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            promql_parser.parse(target["expr"].replace("$__rate_interval", "1m"))


def test_prometheus_scrapes_what_compose_runs() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {t for job in config["scrape_configs"] for s in job["static_configs"] for t in s["targets"]}
    assert targets == {"dispatcher:8081", "operator:21001", "worker:8080"}
    for target in targets:
        assert set(services()[target.partition(":")[0]]["networks"]) & set(
            services()["prometheus"]["networks"]
        )
    assert config["rule_files"] == ["alerts.yml"]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "aos.json").read_text())
    return found


def test_the_dashboard_is_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert sources["datasources"][0]["type"] == "prometheus"
    providers = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/aos.yaml").read_text())["providers"]
    mounts = [volume.split(":")[1] for volume in services()["grafana"]["volumes"]]
    assert f"{providers[0]['options']['path']}/aos.json" in mounts
