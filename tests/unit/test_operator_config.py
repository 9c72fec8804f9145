"""An operator's configuration: the original's file, the guide's names, precedence, masking, and what is refused."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from aos.adapters.keystore import create_keystore
from aos.core.signing import address_of
from aos.errors import ConfigError
from aos.operator.config import explain_config, load_config, masked_url
from aos.operator.identity import load_identity
from aos.operator.settings import KEYS

SIGNER = bytes(range(1, 33))
VRF_SEED = bytes(range(33, 65))
PUBLISHED = "77f4b2fbf3f32687f03d84d323bd5cb443f53b0fc338b51c24e319a520c87217"
DEVELOPMENT = {"AOS_NETWORK_DEVELOPMENT": "true"}
GUIDE_NAMES = (
    "pg_db_url",
    "dispatcher_url",
    "dispatcher_address",
    "node_id",
    "signer_key",
    "vrf_key",
    "chain_rpc_url",
)


def minimal(**changes: str) -> dict[str, str]:
    values = {
        "pg_db_url": "postgres://aos:pw@127.0.0.1:5432",
        "dispatcher_url": "127.0.0.1:8081",
        "dispatcher_address": "0x1DdBd306eFFbb5FF29E41398A6a1198Ee6Fb51ce",
        "node_id": address_of(SIGNER),
        "signer_key": SIGNER.hex(),
        "vrf_key": VRF_SEED.hex(),
        "chain_rpc_url": "https://example.org",
    }
    return values | changes


def written(directory: Path, content: object) -> Path:
    path = directory / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refused(path: Path, **environment: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environment=environment)
    return caught.value


# --- what loads


def test_the_originals_file_loads_unchanged_and_every_key_works_or_warns(shared_fixtures: Path) -> None:
    path = shared_fixtures / "legacy-config" / "config-operator.yaml"
    config = load_config(path, environment={})
    assert config.pg_url == "postgres://postgres:hetu@0.0.0.0:5432/operator_db"
    assert (config.pool_min, config.pool_max) == (10, 30)
    assert (config.connect_timeout_s, config.acquire_timeout_s) == (30, 60)
    assert (config.queue_url, config.topic) == ("redis://:@127.0.0.1:6379/", "task")
    assert (config.rest_host, config.rest_port) == ("0.0.0.0", 21001)
    assert config.workers == ("http://127.0.0.1:8080",)
    assert config.dispatcher_link == "ws://127.0.0.1:8081/ws/operator"
    assert config.dispatcher_http == "http://127.0.0.1:8081"
    assert config.dispatcher_address == "0x1ddbd306effbb5ff29e41398a6a1198ee6fb51ce"
    assert config.node_id == "0x02a5592a6de1568f6efdc536da3ef887f98414cb"
    assert (config.node_type, config.models) == ("opml", ("llama-2-7b-chat.Q4_0.gguf",))
    assert (config.max_held_jobs, config.heartbeat_interval_s, config.rows_maximum) == (500, 10, 20)
    used = {key.name for key in KEYS if not key.unused}
    content = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # noqa: S506
    given = {f"{section}.{name}" for section, members in content.items() for name in members}
    warned = {warning.key for warning in config.warnings}
    assert given <= {key.name for key in KEYS}
    assert given - used <= warned
    unused = {w.key for w in config.warnings if w.reason.startswith("unused: ")}
    assert unused == {
        "net.callback_url",
        "net.tee_llm_cid",
        "net.tee_llm_port",
        "chain.chain_rpc_url",
        "chain.vrf_range_contract",
        "chain.vrf_sort_precision",
    }


def test_the_guides_flat_names_load(tmp_path: Path) -> None:
    assert set(minimal()) == set(GUIDE_NAMES)
    config = load_config(written(tmp_path, minimal()), environment={})
    assert config.pg_url == "postgres://aos:pw@127.0.0.1:5432/operator_db"
    assert config.node_id == address_of(SIGNER)
    assert "chain.chain_rpc_url" in {warning.key for warning in config.warnings}


def test_the_template_loads_without_a_warning_and_explains_every_key(repository: Path) -> None:
    path = repository / "docs" / "template" / "config-operator.yaml"
    assert load_config(path, environment={}).warnings == ()
    lines = path.read_text().splitlines()
    explained = set()
    section = ""
    for before, line in pairwise(lines):
        if match := re.fullmatch(r"([a-z]+):", line):
            section = match.group(1)
        elif match := re.match(r"  (?:# )?([a-z_]+):", line):
            assert re.fullmatch(r"  # [A-Z][^\n]*\.", before) or before.rstrip().endswith("."), line
            explained.add(f"{section}.{match.group(1)}")
    assert explained == {key.name for key in KEYS}


def test_the_commented_values_of_the_template_are_the_defaults(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs" / "template" / "config-operator.yaml").read_text()
    shown = re.sub(r"^  # ([a-z_]+): ", r"  \1: ", text, flags=re.MULTILINE)
    content = yaml.load(shown, Loader=yaml.BaseLoader)  # noqa: S506
    for key in KEYS:
        if key.default and not key.unused and key.kind == "integer":
            assert content[key.section][key.short] == key.default, key.name


def test_environment_comes_before_file_comes_before_default(tmp_path: Path) -> None:
    path = written(tmp_path, minimal(topic="from-file"))
    assert load_config(path, environment={}).topic == "from-file"
    config = load_config(path, environment={"AOS_QUEUE_TOPIC": "from-environment"})
    assert config.topic == "from-environment"
    origins = {line.key: line.origin for line in explain_config(path, environment={"AOS_QUEUE_TOPIC": "x"})}
    assert origins["queue.topic"] == "environment AOS_QUEUE_TOPIC"
    assert origins["node.node_id"] == f"file {path}"
    assert origins["net.rest_url"] == "default"


def test_the_environment_alone_is_enough() -> None:
    names = {key.short: key.variable for key in KEYS}
    environment = {names[name]: value for name, value in minimal().items()}
    assert load_config(None, environment=environment).node_id == address_of(SIGNER)


def test_keys_mean_the_same_without_quotes(tmp_path: Path) -> None:
    lines = "".join(f"{name}: {value}\n" for name, value in minimal().items())
    assert load_config(written(tmp_path, lines), environment={}).node_id == address_of(SIGNER)


@pytest.mark.parametrize(
    ("url", "link", "http"),
    [
        ("127.0.0.1:8081", "ws://127.0.0.1:8081/ws/operator", "http://127.0.0.1:8081"),
        ("http://d:80", "ws://d:80/ws/operator", "http://d:80"),
        ("https://d/base/", "wss://d/base/ws/operator", "https://d/base"),
        ("wss://d/ws/operator", "wss://d/ws/operator", "https://d"),
    ],
)
def test_the_dispatchers_url_keeps_its_scheme(tmp_path: Path, url: str, link: str, http: str) -> None:
    config = load_config(written(tmp_path, minimal(dispatcher_url=url)), environment={})
    assert (config.dispatcher_link, config.dispatcher_http) == (link, http)


def test_a_database_in_the_url_comes_before_its_name(tmp_path: Path) -> None:
    url = "postgres://u:p@h:5432/mine?sslmode=require"
    config = load_config(written(tmp_path, minimal(pg_db_url=url, pg_db_name="other")), environment={})
    assert config.pg_url == url


def test_workers_come_before_the_originals_outer_url(tmp_path: Path) -> None:
    content = {**minimal(), "net": {"outer_url": "http://a:1", "workers": ["http://b:2/", "c:3"]}}
    config = load_config(written(tmp_path, content), environment={})
    assert config.workers == ("http://b:2", "http://c:3")


# --- what is shown


def test_no_secret_is_shown(tmp_path: Path) -> None:
    content = minimal(
        queue_url="redis://:redispw@h:6379/", worker_token="tokentoken", keystore_password="pass-word"
    )
    path = written(tmp_path, content)
    shown = "\n".join(f"{line}" for line in explain_config(path, environment={}))
    for secret in (SIGNER.hex(), VRF_SEED.hex(), ":pw@", "redispw", "tokentoken", "pass-word"):
        assert secret not in shown
    assert "postgres://aos:***@127.0.0.1:5432" in shown
    assert "redis://:***@h:6379/" in shown


def test_a_keys_place_is_shown(tmp_path: Path) -> None:
    path = written(tmp_path, minimal(signer_key="file:keys/signer.json"))
    assert any(line.value == "file:keys/signer.json" for line in explain_config(path, environment={}))


def test_a_url_that_cannot_be_read_is_masked_whole() -> None:
    assert masked_url("redis://:pw@[broken") == "***"


def test_no_error_repeats_a_secret(tmp_path: Path) -> None:
    error = refused(written(tmp_path, minimal(pg_db_url="mysql://u:topsecret@h")))
    assert "topsecret" not in str(error)


# --- what warns


def test_a_misspelt_key_warns_with_the_nearest(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, minimal() | {"node": {"hartbeat_interval": "3"}}), environment={})
    (warning,) = [w for w in config.warnings if w.key == "node.hartbeat_interval"]
    assert warning.reason == "no such key; did you mean node.heartbeat_interval?"


def test_a_misspelt_variable_warns(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, minimal()), environment={"AOS_NODE_SIGNR_KEY": "x"})
    assert "AOS_NODE_SIGNR_KEY" in {warning.key for warning in config.warnings}


def test_plain_and_equal_keys_warn(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, minimal(vrf_key=SIGNER.hex())), environment={})
    reasons = [warning.reason for warning in config.warnings if warning.key == "node.vrf_key"]
    assert len(reasons) == 2
    assert any("same as node.signer_key" in reason for reason in reasons)


# --- what is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pg_db_url", "mysql://h/db"),
        ("pg_db_url", ""),
        ("dispatcher_url", "ftp://h"),
        ("dispatcher_url", "ws://user@h"),
        ("dispatcher_url", "ws://[h"),
        ("dispatcher_url", "127.0.0.1:port"),
        ("dispatcher_url", "wss://h:99999"),
        ("dispatcher_address", "0x12"),
        ("node_id", "02a5592a6de1568f6efdc536da3ef887f98414cb"),
        ("signer_key", ""),
        ("vrf_key", ""),
        ("node_type", "gpu"),
        ("heartbeat_interval", "0"),
        ("heartbeat_interval", "ten"),
        ("max_connect_pool", "0"),
        ("min_connect_pool", "50"),
        ("rest_url", "21001"),
        ("rest_url", "127.0.0.1"),
        ("queue_url", "amqp://h"),
        ("topic", "a b"),
        ("outer_url", "ftp://h"),
        ("outer_url", "http://h:x"),
        ("workers", "http://h:1, h:1/"),
        ("development", "perhaps"),
        ("id", "Not_A_Network"),
        ("dispatcher_vrf_key", "abc"),
        ("retention_hours", "-1"),
    ],
)
def test_a_bad_value_is_refused_by_name(tmp_path: Path, name: str, value: str) -> None:
    error = refused(written(tmp_path, minimal(**{name: value})))
    assert (error.code, error.exit_code) == ("config.value", 30)
    workers = {"outer_url": "workers"}
    assert error.field is not None
    assert error.field.endswith("." + workers.get(name, name))


@pytest.mark.parametrize(
    "text",
    [
        "node: [",
        "- a\n- b\n",
        "topic: a\ntopic: b\n",
        "db:\n  pg_db_url: a\npg_db_url: b\n",
        "1: {? [a] : b}\n",
        "\x00",
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(written(tmp_path, text)).code == "config.file"


def test_a_missing_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere.yaml")
    assert error.code == "config.file"
    assert error.hint is not None


@pytest.mark.parametrize("name", ["worker_token_file", "keystore_password_file"])
def test_a_secret_file_that_is_missing_empty_or_open_to_others_is_refused(tmp_path: Path, name: str) -> None:
    path, secret = written(tmp_path, minimal(**{name: "secret"})), tmp_path / "secret"
    assert refused(path).code == "config.file"
    secret.write_text("\n")
    secret.chmod(0o600)
    assert refused(path).code == "config.file"
    secret.write_text("open sesame\n")
    secret.chmod(0o640)
    error = refused(path)
    assert (error.code, error.hint) == ("config.file", f"chmod 600 {secret}")
    assert "sesame" not in str(error)
    secret.chmod(0o600)
    load_config(path, environment={})


# --- keys


def test_the_originals_published_keys_are_refused_off_a_development_network(shared_fixtures: Path) -> None:
    path = shared_fixtures / "legacy-config" / "config-operator.yaml"
    with pytest.raises(ConfigError) as caught:
        load_identity(load_config(path, environment={}), environment={})
    assert (caught.value.code, caught.value.exit_code) == ("key.published", 30)
    assert PUBLISHED not in str(caught.value)


def test_a_plain_key_is_refused_off_a_development_network(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, minimal()), environment={})
    with pytest.raises(ConfigError) as caught:
        load_identity(config, environment={})
    assert (caught.value.code, caught.value.field) == ("key.plain", "node.signer_key")
    assert SIGNER.hex() not in f"{caught.value} {caught.value.hint}"
    key = tmp_path / "s.key"
    key.write_text(SIGNER.hex())
    key.chmod(0o600)
    path = written(tmp_path, minimal(signer_key="file:s.key"))
    with pytest.raises(ConfigError) as caught:
        load_identity(load_config(path, environment={}), environment={})
    assert (caught.value.code, caught.value.field) == ("key.plain", "node.vrf_key")
    config = load_config(path, environment=DEVELOPMENT)
    assert load_identity(config, environment={})[0].vrf_seed == VRF_SEED
    assert "node.vrf_key" in {warning.key for warning in config.warnings}


@pytest.mark.parametrize("network", ["devotion", "device-net", "aos-localhost", "aos-main"])
def test_a_name_that_only_begins_like_a_development_networks_is_none(
    shared_fixtures: Path, network: str
) -> None:
    path = shared_fixtures / "legacy-config" / "config-operator.yaml"
    config = load_config(path, environment={"AOS_NETWORK_ID": network})
    with pytest.raises(ConfigError) as caught:
        load_identity(config, environment={})
    assert caught.value.code == "key.published"


@pytest.mark.parametrize(
    "environment",
    [
        {"AOS_NETWORK_DEVELOPMENT": "true"},
        {"AOS_NETWORK_ID": "aos-local-1234"},
        {"AOS_NETWORK_ID": "dev"},
    ],
)
def test_published_keys_work_and_warn_on_a_development_network(
    shared_fixtures: Path, environment: dict[str, str]
) -> None:
    path = shared_fixtures / "legacy-config" / "config-operator.yaml"
    identity, warnings = load_identity(load_config(path, environment=environment), environment={})
    assert identity.node_id == "0x02a5592a6de1568f6efdc536da3ef887f98414cb"
    assert {warning.key for warning in warnings} == {"node.signer_key", "node.vrf_key"}


def test_a_node_id_of_another_key_is_refused(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, minimal(node_id="0x" + "1" * 40)), environment=DEVELOPMENT)
    with pytest.raises(ConfigError) as caught:
        load_identity(config, environment={})
    assert caught.value.code == "key.mismatch"


def test_keys_come_from_keystores_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    create_keystore(tmp_path / "keys" / "s.json", SIGNER, b"pw", kind="signer", scrypt_n=1 << 10)
    create_keystore(tmp_path / "keys" / "v.json", VRF_SEED, b"pw", kind="vrf", scrypt_n=1 << 10)
    content = minimal(signer_key="file:keys/s.json", vrf_key="keys/v.json", keystore_password="pw")
    config = load_config(written(tmp_path, content), environment={})
    identity, warnings = load_identity(config, environment={})
    assert (identity.signer_key, identity.vrf_seed, warnings) == (SIGNER, VRF_SEED, ())
    assert SIGNER.hex() not in repr(identity)
    assert repr(SIGNER) not in repr(identity)


def test_a_wrong_keystore_password_is_refused(tmp_path: Path) -> None:
    create_keystore(tmp_path / "s.json", SIGNER, b"pw", kind="signer", scrypt_n=1 << 10)
    content = minimal(signer_key="file:s.json", keystore_password="other")
    with pytest.raises(ConfigError) as caught:
        load_identity(load_config(written(tmp_path, content), environment={}), environment={})
    assert caught.value.code == "keystore.wrong_password"


def test_a_key_file_with_hex_must_be_private(tmp_path: Path) -> None:
    key = tmp_path / "s.key"
    key.write_text(SIGNER.hex() + "\n")
    key.chmod(0o644)
    config = load_config(written(tmp_path, minimal(signer_key="file:s.key")), environment=DEVELOPMENT)
    with pytest.raises(ConfigError) as caught:
        load_identity(config, environment={})
    assert caught.value.code == "keystore.mode"
    key.chmod(0o600)
    assert load_identity(config, environment={})[0].signer_key == SIGNER


def test_a_key_that_is_nowhere_is_refused_with_a_hint(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, minimal(signer_key="file:none.json")), environment={})
    with pytest.raises(ConfigError) as caught:
        load_identity(config, environment={})
    assert caught.value.code == "keystore.unreadable"
    assert caught.value.hint is not None


# --- the chain


CHAIN = {
    "AOS_CHAIN_CHAIN_ID": "31337",
    "AOS_CHAIN_CHAIN_RPC_URL": "http://user:hunter2@127.0.0.1:8545/key",
    "AOS_CHAIN_VRF_RANGE_CONTRACT": "0x27E4384ecc11810c2F49914390052b22c4e3CcC0",
}


def test_a_chain_is_read_where_its_id_is_set(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, minimal()), environment=CHAIN)
    assert config.chain is not None
    assert config.chain.chain_id == 31337
    assert config.chain.operator_registry == "0x27e4384ecc11810c2f49914390052b22c4e3ccc0"
    assert config.chain.max_range == 1_000_000
    assert not [warning for warning in config.warnings if warning.key.startswith("chain.")]
    assert "hunter2" not in repr(config)
    assert load_config(written(tmp_path, minimal()), environment={}).chain is None
    shown = {x.key: x.value for x in explain_config(written(tmp_path, minimal()), environment=CHAIN)}
    assert "hunter2" not in shown["chain.chain_rpc_url"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AOS_CHAIN_CHAIN_RPC_URL", "ws://127.0.0.1:8545"),
        ("AOS_CHAIN_CHAIN_RPC_URL", "nonsense"),
        ("AOS_CHAIN_VRF_RANGE_CONTRACT", "0x12"),
        ("AOS_CHAIN_VRF_RANGE_CONTRACT", ""),
        ("AOS_CHAIN_CHAIN_ID", "-1"),
        ("AOS_CHAIN_VRF_SORT_PRECISION", "13"),
        ("AOS_CHAIN_MAX_FEE_GWEI", "0"),
    ],
)
def test_half_a_chain_is_refused(tmp_path: Path, variable: str, value: str) -> None:
    error = refused(written(tmp_path, minimal()), **(CHAIN | {variable: value}))
    assert error.code == "config.value"
    assert str(error.field).startswith("chain.")
