"""The cluster's metrics in one text: families once, samples all, and nodes that do not answer named."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lipsync.metrics import METRICS
from serve import exporters, metrics
from serve.exporters import gather, merged


def text(node: str, *, help: str = "Frames drawn.", value: int = 3) -> str:
    return (
        "# HELP ray_node_cpu Share of CPU\n# TYPE ray_node_cpu gauge\n"
        f'ray_node_cpu{{node="{node}"}} 1.0\n'
        f"# HELP ray_lipsync_frames_total {help}\n# TYPE ray_lipsync_frames_total counter\n"
        f'ray_lipsync_frames_total{{node="{node}"}} {value}.0\n'
        "# HELP ray_lipsync_stage_seconds A request's time.\n# TYPE ray_lipsync_stage_seconds histogram\n"
        f'ray_lipsync_stage_seconds_bucket{{le="1.0",node="{node}"}} 1.0\n'
        f'ray_lipsync_stage_seconds_bucket{{le="+Inf",node="{node}"}} 2.0\n'
        f'ray_lipsync_stage_seconds_count{{node="{node}"}} 2.0\nray_lipsync_stage_seconds_sum{{node="{node}"}} 5.5\n'
        f'# HELP ray_serve_num_requests\n# TYPE ray_serve_num_requests gauge\nray_serve_num_requests{{node="{node}"}} 7.0\n# EOF\n'
    )


def families(body: str) -> dict[str, list]:
    found: dict[str, list] = {}
    for family in text_string_to_metric_families(body):
        found.setdefault(family.name, []).append(family)
    return found


def test_families_of_all_nodes_are_put_together_and_stand_once():
    body = merged([text("a"), text("b", value=4), text("c")])
    found = families(body)
    assert all(len(group) == 1 for group in found.values()), found
    assert set(found) == {"ray_lipsync_frames", "ray_lipsync_stage_seconds", "ray_serve_num_requests"}, (
        "and nothing else of Ray's"
    )
    assert body.count("# TYPE ray_lipsync_frames_total counter") == 1
    assert {s.labels["node"]: s.value for s in found["ray_lipsync_frames"][0].samples} == {"a": 3, "b": 4, "c": 3}
    assert len(found["ray_lipsync_stage_seconds"][0].samples) == 12
    assert found["ray_lipsync_stage_seconds"][0].type == "histogram"


def test_texts_of_two_versions_that_describe_a_family_otherwise_still_give_one_head():
    body = merged([text("a"), text("b", help="Frames that were drawn.")])
    assert body.count("# HELP ray_lipsync_frames_total") == body.count("# TYPE ray_lipsync_frames_total") == 1
    assert len(families(body)["ray_lipsync_frames"][0].samples) == 2


def test_an_end_mark_in_the_middle_does_not_cut_the_text():
    assert "# EOF" not in merged([text("a"), text("b")])


def test_nothing_from_nobody_is_a_text_too():
    assert families(merged([])) == {} and merged([]).endswith("\n")


async def test_a_node_that_does_not_answer_is_named_by_its_port_alone(monkeypatch):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.port == 2:
            raise httpx.ConnectError("refused")
        return httpx.Response(500) if request.url.port == 3 else httpx.Response(200, text=text("a"))

    client = httpx.AsyncClient
    monkeypatch.setattr(exporters.httpx, "AsyncClient", lambda **_: client(transport=httpx.MockTransport(answer)))
    monkeypatch.setattr(exporters, "_addresses", lambda: ["10.0.0.7:1", "10.0.0.8:2", "10.0.0.9:3"])
    body = await gather()
    assert set(families(body)) >= {"ray_lipsync_frames"}
    assert "# node at port 2 does not answer: ConnectError" in body
    assert "# node at port 3 does not answer: HTTPStatusError" in body
    assert "10.0.0" not in body


class Recorded:
    """One of Ray's metric classes, standing alone."""

    made: dict[str, "Recorded"] = {}  # noqa: RUF012

    def __init__(self, name, description, *, boundaries=None, tag_keys=None):
        self.description, self.boundaries, self.tag_keys, self.values = description, boundaries, tag_keys, []
        Recorded.made[name] = self

    def inc(self, value, tags=None):
        assert value > 0, "Ray's counters raise on 0"
        self.values.append((value, tags))

    def set(self, value, tags=None):
        self.values.append((value, tags))

    observe = set


@pytest.fixture
def recorded(monkeypatch):
    Recorded.made = {}
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics.ray_metrics, kind, type(kind, (Recorded,), {}))
    return Recorded.made


def test_inside_ray_the_same_list_is_exported_under_the_same_names(recorded):
    meters = metrics.RayMeters()
    assert set(recorded) == {metric.name for metric in METRICS}
    for metric in METRICS:
        made = recorded[metric.name]
        assert type(made).__name__.lower() == metric.kind and made.description == metric.help
        assert made.tag_keys == ((metric.label,) if metric.label else None)
        assert made.boundaries == (list(metric.buckets) if metric.kind == "histogram" else None)
        label = "x" if metric.label else ""
        if metric.kind == "counter":
            meters.add(metric, 0, label=label)
            meters.add(metric, 2, label=label)
        elif metric.kind == "gauge":
            meters.set(metric, 2)
        else:
            meters.observe(metric, 2, label=label)
        assert [value for value, _ in made.values] == [2]
        assert (made.values[0][1] or {}) == ({metric.label: "x"} if metric.label else {})
