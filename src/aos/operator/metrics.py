"""The operator's counters for Prometheus, in a registry of their own. Labels are codes and roles, never a job."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Counters of one operator process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.draws = Counter(
            "aos_operator_draws_total", "Draw calls answered.", ["answer"], registry=self.registry
        )
        self.executed = Counter(
            "aos_operator_executed_total", "Jobs executed.", ["role"], registry=self.registry
        )
        self.failed = Counter("aos_operator_failed_total", "Jobs failed.", ["code"], registry=self.registry)
        self.tokens = Counter("aos_operator_tokens_total", "Tokens in results.", registry=self.registry)
        self.seconds = Histogram(
            "aos_operator_run_seconds",
            "Seconds from start to result.",
            registry=self.registry,
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )
        self.refused = Counter(
            "aos_operator_refused_total",
            "Messages of the dispatcher that were refused.",
            ["code"],
            registry=self.registry,
        )
        self.links = Counter(
            "aos_operator_links_total", "Links opened to the dispatcher.", registry=self.registry
        )
        self.connected = Gauge(
            "aos_operator_connected", "1 while the link is established.", registry=self.registry
        )
        self.queued = Gauge("aos_operator_queue_depth", "Unfinished jobs held.", registry=self.registry)
