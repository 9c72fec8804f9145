"""The table of an operator's settings. docs/template/config-operator.yaml says what each one means."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "integer", "flag", "list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting. ``unused`` says why this version ignores it; ``secret`` keeps its value off screens."""

    name: str
    kind: Kind = "text"
    default: str | tuple[str, ...] = ""
    secret: bool = False
    unused: str = ""
    low: int = 0
    high: int = 2**31

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def short(self) -> str:
        return self.name.partition(".")[2]

    @property
    def variable(self) -> str:
        """Its environment variable, for instance ``AOS_DB_PG_DB_URL``."""
        return "AOS_" + self.name.replace(".", "_").upper()


KEYS: tuple[Key, ...] = (
    Key(name="db.pg_db_url", secret=True),
    Key(name="db.pg_db_name", default="operator_db"),
    Key(name="db.max_connect_pool", kind="integer", default="10", low=1, high=1000),
    Key(name="db.min_connect_pool", kind="integer", default="1", low=0, high=1000),
    Key(name="db.connect_timeout", kind="integer", default="30", low=1, high=600),
    Key(name="db.acquire_timeout", kind="integer", default="60", low=1, high=600),
    Key(name="db.retention_hours", kind="integer", default="168", high=24 * 3660),
    Key(name="db.audit_mib", kind="integer", default="256", low=1, high=1024),
    Key(name="queue.queue_url", default="redis://127.0.0.1:6379/", secret=True),
    Key(name="queue.topic", default="task"),
    Key(name="net.rest_url", default="127.0.0.1:21001"),
    Key(name="net.outer_url"),
    Key(name="net.workers", kind="list", default=()),
    Key(name="net.worker_parallel", kind="integer", default="1", low=1, high=32),
    Key(name="net.worker_token_file"),
    Key(name="net.worker_token", secret=True),
    Key(name="net.dispatcher_url"),
    Key(
        name="net.callback_url",
        unused="a worker answers on the request that asked it; nothing calls the operator back",
    ),
    Key(
        name="net.tee_llm_cid",
        unused="the TEE worker reaches its enclave itself; name the TEE worker's URL in net.workers",
    ),
    Key(
        name="net.tee_llm_port",
        unused="the TEE worker reaches its enclave itself; name the TEE worker's URL in net.workers",
    ),
    Key(name="node.node_id"),
    Key(name="node.signer_key", secret=True),
    Key(name="node.vrf_key", secret=True),
    Key(name="node.keystore_password_file"),
    Key(name="node.keystore_password", secret=True),
    Key(name="node.dispatcher_address"),
    Key(name="node.node_type", default="opml"),
    Key(name="node.cache_msg_maximum", kind="integer", default="500", low=1, high=1_000_000),
    Key(name="node.heartbeat_interval", kind="integer", default="10", low=1, high=3600),
    Key(name="node.ai_models", kind="list", default=()),
    Key(name="network.id"),
    Key(name="network.development", kind="flag", default="false"),
    Key(name="network.dispatcher_vrf_key"),
    Key(name="chain.chain_rpc_url", secret=True),
    Key(name="chain.chain_id", kind="integer", default="0", high=2**53 - 1),
    Key(name="chain.vrf_range_contract"),
    Key(name="chain.vrf_sort_precision", kind="integer", default="6", low=2, high=12),
    Key(name="chain.court"),
    Key(name="chain.claim_hours", kind="integer", default="169", low=1, high=8_784),
    Key(name="chain.max_fee_gwei", kind="integer", default="200", low=1, high=1_000_000),
    Key(name="api.read_maximum", kind="integer", default="20", low=1, high=1000),
)
