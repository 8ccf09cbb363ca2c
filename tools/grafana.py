"""The Grafana dashboard of k8s/monitoring: a run's training metrics (tracker `prometheus`), and Ray's own of its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, ROW = 8, 8, 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A graph: its queries with the legend of each."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    description: str = ""


def ours(*metrics: str) -> tuple[tuple[str, str], ...]:
    """Queries of the run's metrics, by their names in the ledger."""
    return tuple(
        (f'ray_preceptor_{name.replace("/", "_")}{{run=~"$run"}}', f"{name} {{{{stage}}}}") for name in metrics
    )


TRAINING = (
    Panel(title="Step", queries=ours("step"), description="Newest committed step"),
    Panel(title="Score", queries=ours("score", "reward/0", "reward/1"), description="Mean reward of an answer"),
    Panel(
        title="Held-out win rate",
        queries=ours("held_out/win_rate"),
        unit="percentunit",
        description="Against the first weights",
    ),
    Panel(title="KL", queries=ours("kl"), description="To the reference, nats an answer"),
    Panel(title="KL coefficient", queries=ours("kl_coef")),
    Panel(title="Policy", queries=ours("policy/entropy", "policy/clip_frac")),
    Panel(title="Critic", queries=ours("critic/value_loss", "critic/value_clip_frac")),
    Panel(title="Held-out loss", queries=ours("held_out/loss"), description="Of supervised stages"),
    Panel(title="Answers", queries=ours("response_tokens"), description="Tokens of an answer"),
    Panel(
        title="Cut off",
        queries=ours("truncated_frac"),
        unit="percentunit",
        description="Answers that reached the limit",
    ),
    Panel(title="Generation", queries=ours("tokens_per_s"), description="Tokens a second while engines generate"),
    Panel(
        title="Nobody works",
        queries=ours("idle_frac"),
        unit="percentunit",
        description="Share of a step in which no group works",
    ),
    Panel(
        title="Trainer against engine",
        queries=ours("logprob_gap"),
        description="Largest gap between both sides' log-probabilities of a sampled token: grows when a sync has gone wrong",
    ),
)
PODS = '{pod=~"$pod"}'
CLUSTER = (
    Panel(title="GPU use", queries=((f"ray_node_gpus_utilization{PODS}", "{{pod}} {{GpuIndex}}"),), unit="percent"),
    Panel(
        title="GPU memory", queries=((f"ray_node_gram_used{PODS} * 1024 * 1024", "{{pod}} {{GpuIndex}}"),), unit="bytes"
    ),
    Panel(title="CPU use", queries=((f"ray_node_cpu_utilization{PODS}", "{{pod}}"),), unit="percent"),
    Panel(title="Memory", queries=((f"ray_node_mem_used{PODS}", "{{pod}}"),), unit="bytes"),
    Panel(title="Shared memory", queries=((f"ray_node_mem_shared_bytes{PODS}", "{{pod}}"),), unit="bytes"),
    Panel(
        title="Object store",
        queries=((f"sum by (Location) (ray_object_store_memory{PODS})", "{{Location}}"),),
        unit="bytes",
    ),
    Panel(
        title="Network",
        queries=(
            (f"ray_node_network_send_speed{PODS}", "{{pod}} out"),
            (f"ray_node_network_receive_speed{PODS}", "{{pod}} in"),
        ),
        unit="Bps",
    ),
    Panel(title="Actors", queries=((f"sum by (State) (ray_actors{PODS})", "{{State}}"),)),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, group in (("Training", TRAINING), ("Ray nodes", CLUSTER)):
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": ROW, "h": 1}, "panels": []})
        top += 1
        for number, panel in enumerate(group):
            x, y = number * WIDTH % ROW, top + number * WIDTH // ROW * HEIGHT
            panels.append(_panel(panel, {"x": x, "y": y, "w": WIDTH, "h": HEIGHT}))
        top += -(-len(group) * WIDTH // ROW) * HEIGHT
    for number, made in enumerate(panels, 1):
        made["id"] = number
    return {
        "uid": "preceptor",
        "title": "Preceptor",
        "tags": ["preceptor", "ray"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [_source(), _variable("run", "ray_preceptor_step"), _variable("pod", "ray_node_cpu_count")]
        },
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"datasource": SOURCE, "expr": query, "legendFormat": legend, "refId": chr(ord("A") + number)}
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str, metric: str) -> dict[str, Any]:
    """What can be chosen at the top: values of a label."""
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({metric}, {label})",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
