"""A dispatcher's template explains every setting, shows its default, and what is wrong is refused by its name."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from peers.engine_case import write_config

from aos.dispatcher.config import Deadlines, Disputes, _Settings, load_config
from aos.errors import ConfigError

NEEDED = {"pg_db_url", "network_id", "signer_key", "vrf_key", "beacon_seed_file", "log_key"}


@pytest.fixture
def template(repository: Path) -> str:
    return (repository / "docs/template/config-dispatcher.yaml").read_text("utf-8")


def uncommented(template: str) -> dict[str, Any]:
    """The template with its defaults in force: a comment that is a key counts, prose does not."""
    lines = [
        re.sub(r"^# ?", "", line)
        for line in template.splitlines()
        if not line.startswith("#") or re.match(r"# {1,3}[a-z_]+:( [^ ].*)?$", line)
    ]
    found: dict[str, Any] = yaml.safe_load("\n".join(lines))
    return found


def test_the_template_names_every_setting(template: str) -> None:
    found = uncommented(template)
    assert set(found) == set(_Settings.model_fields)
    assert set(found["disputes"]) == set(Disputes.model_fields)
    assert set(found["deadlines"]) == set(Deadlines.model_fields)


def test_what_the_template_shows_is_the_default(template: str) -> None:
    found = uncommented(template)
    plain = _Settings.model_validate({name: found[name] for name in NEEDED})
    shown = _Settings.model_validate(found)
    for name in _Settings.model_fields:
        if name not in ("origins", "max_weight_per_device", "chain"):  # made of others; an example
            assert getattr(shown, name) == getattr(plain, name), name


def test_every_setting_of_disputes_is_explained(template: str) -> None:
    block = template[template.index("# disputes:") : template.index("# Re-runs of flagged")].splitlines()
    for before, line in pairwise(block):
        if re.match(r"#   [a-z_]+: \d+$", line):
            assert re.match(r"#   [A-Z]|#   [a-z_]+: \d+$", before), line


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"claim_window_ms": 0}, "disputes.claim_window_ms"),
        ({"window_ms": "soon"}, "disputes.window_ms"),
        ({"grace_ms": 99}, "disputes.grace_ms"),
        ({"budget_ms": -1}, "disputes.budget_ms"),
        ({"bond": -1}, "disputes.bond"),
        ({"audit_ms": 999}, "disputes.audit_ms"),
        ({"audit_bytes": (1 << 30) + 1}, "disputes.audit_bytes"),
        ({"audits_bytes": 1 << 20}, "disputes"),
        ({"audits_per_claim": -1}, "disputes.audits_per_claim"),
        ({"audit_kb": 1}, "disputes.audit_kb"),
    ],
)
def test_a_wrong_setting_of_disputes_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    path = write_config(tmp_path, "postgres://127.0.0.1/none", disputes=changes)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environment={})
    assert (caught.value.code, caught.value.field) == ("config.value", field)


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    path = write_config(tmp_path, "postgres://127.0.0.1/none", disputes={"bond": 5})
    loaded = load_config(path, environment={"AOS_DISPATCHER_DISPUTES": "{bond: 7, audit_ms: 1000}"})
    assert (loaded.disputes.bond, loaded.disputes.audit_ms) == (7, 1000)
