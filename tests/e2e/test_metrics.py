"""Dashboard and alerts of ``deploy/`` ask for metrics and labels that the running programs give at /metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from peers.running_network import follow, submit
from prometheus_client.parser import text_string_to_metric_families

from aos.local.network import RunningNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
OF_PROMETHEUS = {"up": {"job", "instance"}}
TARGET = {"job", "instance"}
"""Labels that the scrape adds."""


def expressions() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    found = [rule["expr"] for group in groups for rule in group["rules"]]
    for panel in json.loads((DEPLOY / "grafana" / "aos.json").read_text())["panels"]:
        found += [target["expr"].replace("$__rate_interval", "1m") for target in panel.get("targets", [])]
    return found


def asked(expression: str) -> dict[str, set[str]]:
    """The metrics of an expression, each with the labels that the expression matches or groups by."""
    found: dict[str, set[str]] = {}
    grouped: set[str] = set()

    def walk(node: Any) -> None:
        match node:
            case promql_parser.VectorSelector():
                found.setdefault(node.name, set()).update(m.name for m in node.matchers.matchers)
            case promql_parser.MatrixSelector():
                walk(node.vector_selector)
            case promql_parser.AggregateExpr():
                if node.modifier is not None:
                    grouped.update(node.modifier.labels)
                walk(node.expr)
            case promql_parser.BinaryExpr():
                walk(node.lhs)
                walk(node.rhs)
            case promql_parser.Call():
                for argument in node.args:
                    walk(argument)
            case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
                walk(node.expr)

    walk(promql_parser.parse(expression))
    return {name: labels | grouped for name, labels in found.items()}


def test_the_walk_finds_names_and_labels() -> None:
    text = 'sum by (le, code) (rate(a_bucket{x="1"}[1m])) / topk(3, b) > 0.1'
    assert asked(text) == {"a_bucket": {"x", "le", "code"}, "b": {"le", "code"}}


@pytest.fixture(scope="module")
def given(network: RunningNetwork) -> dict[str, set[str] | None]:
    """Every metric of the running programs with its labels; None where it has no sample yet and so shows none."""
    follow(network, submit(network, "What is AI?").job_id)
    state = network.trust_path.parent
    config = yaml.safe_load((state / "operator-1" / "config-operator.yaml").read_text())
    token = (state / "operator-1" / "worker.token").read_text().strip()
    found: dict[str, set[str] | None] = {}
    for url, headers in (
        (network.url, {}),
        (f"http://{config['net']['rest_url']}", {}),
        (config["net"]["workers"][0], {"authorization": f"Bearer {token}"}),
    ):
        answer = httpx.get(f"{url}/metrics", headers=headers, timeout=30, trust_env=False)
        assert answer.status_code == 200, url
        for family in text_string_to_metric_families(answer.text):
            if family.type == "counter" and not family.samples:
                found.setdefault(f"{family.name}_total", None)
            for sample in family.samples:
                labels = found.setdefault(sample.name, set())
                if labels is not None:
                    labels.update(sample.labels)
    return found


@pytest.mark.parametrize("expression", expressions(), ids=lambda text: re.sub(r"\W+", " ", text)[:80])
def test_a_query_asks_for_what_is_there(expression: str, given: dict[str, set[str] | None]) -> None:
    metrics = asked(expression)
    assert metrics
    for name, labels in metrics.items():
        if name in OF_PROMETHEUS:
            assert labels <= OF_PROMETHEUS[name]
            continue
        assert name in given
        held = given[name]
        if held is not None:
            assert labels <= held | TARGET, name
