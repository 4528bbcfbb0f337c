"""The running application, a real Prometheus: every panel and every rule has something to say."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.serving_cluster import Running, free_port, running
from benchmarks.serving_media import ASSETS, cut_wav, scaled_jpeg
from cluster import dashboard, demo
from cluster.watching import Prometheus, watching
from lipsync.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
RULES = yaml.safe_load((ROOT / "cluster/prometheus/rules.yaml").read_text())
RECORDED = {rule["record"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
RUNBOOK = (ROOT / "docs/operations.md").read_text()

wants_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (apt-get install prometheus)",
)


# --- on paper ----------------------------------------------------------------------------------------------------------


def test_the_dashboards_file_is_what_its_script_writes() -> None:
    assert dashboard.JSON.read_text() == dashboard.text(), "run python cluster/dashboard.py"


def test_no_two_panels_lie_on_each_other_and_all_ask_the_provisioned_source() -> None:
    drawn = dashboard.dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in drawn:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in drawn}) == len(drawn)
    source = yaml.safe_load((ROOT / "cluster/grafana/provisioning/datasources/prometheus.yaml").read_text())
    asked = {target["datasource"]["uid"] for panel in drawn for target in panel.get("targets", [])}
    assert asked == {source["datasources"][0]["uid"]}


def test_every_metric_of_ours_is_watched_and_every_one_watched_is_ours() -> None:
    asked = " ".join([*RECORDED.values(), *(query for panel in dashboard.panels() for query, _ in panel.queries)])
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"ray_(lipsync_\w+)", asked)}
    assert named == {metric.name for metric in METRICS}


def test_the_committed_table_is_of_this_dashboard_and_every_panel_had_its_numbers() -> None:
    table = json.loads((ROOT / "docs/benchmarks/cluster_demo.json").read_text())
    assert [(row["panel"], row["queries"], row["wants"]) for row in table["panels"]] == [
        (panel.title, len(panel.queries), panel.wants) for panel in dashboard.panels()
    ]
    assert demo.missing(table["panels"]) == []
    assert demo.missing([row | {"answered": row["queries"] - 1, "wants": ""} for row in table["panels"]]), "it can fail"
    assert {"200"} < set(table["answers"]) and table["nodes"] == 3


def test_alerts_compare_recorded_values_with_numbers() -> None:
    """So that asking a running application for the recorded values shows that each alert could fire."""
    value = r"lipsync:[a-z0-9_:]+"
    comparison = rf"{value}( - {value})? [<>] [\d.]+"
    for alert in ALERTS.values():
        assert re.fullmatch(rf"{comparison}( and {comparison})*", alert["expr"]), alert["expr"]
        assert set(re.findall(value, alert["expr"])) <= set(RECORDED)


def test_every_alert_has_a_paragraph_in_the_runbook_and_every_paragraph_an_alert() -> None:
    headings = re.findall(r"^### (Lipsync\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
    for name, alert in ALERTS.items():
        assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert alert["labels"]["severity"] in {"critical", "warning"}


def test_every_alert_is_tried_by_the_rules_own_tests() -> None:
    trials = yaml.safe_load((ROOT / "cluster/prometheus/rules_test.yaml").read_text())["tests"]
    fired = {trial["alertname"] for test in trials for trial in test.get("alert_rule_test", []) if trial["exp_alerts"]}
    assert fired == set(ALERTS)


@wants_prometheus
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "--syntax-only", "prometheus.yaml"],
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules_test.yaml"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_accepts(command: list[str]) -> None:
    found = subprocess.run(
        ["promtool", *command], cwd=ROOT / "cluster/prometheus", capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


# --- for real ----------------------------------------------------------------------------------------------------------

live = [
    wants_prometheus,
    # run by test_serve_ray_haproxy.py: as the manifests serve
    pytest.mark.skipif(os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1", reason="wants RAY_SERVE_ENABLE_HA_PROXY=1"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, in this process
    pytest.mark.timeout(400),
    pytest.mark.serial,
]


@pytest.fixture(scope="module")
def app() -> Iterator[Running]:
    """The application of serve_config.yaml, autoscaling and all."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # every 10 s would do too, and take longer to test; a gauge is forgotten two reports after it was last set
        patch.setenv("RAY_metrics_report_interval_ms", "4000")
        patch.setenv("RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S", "1")
        with running(config) as application:
            yield application


@pytest.fixture(scope="module")
def prometheus(app: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Watches the application, which has answered and refused requests meanwhile."""
    with watching(tmp_path_factory.mktemp("watch"), port=free_port()) as server:
        for _ in range(3):  # rates want counts before and after a report
            use(app.url)
            time.sleep(5)
        yield server


def use(url: str) -> None:
    """A request that is answered, and one that is refused."""
    face, voice = scaled_jpeg(ASSETS / "face.jpg", width=640), cut_wav(ASSETS / "voice.wav", seconds=1.0)
    files = {"face": face, "audio": voice}
    good = httpx.post(f"{url}/v1/lipsync?stream=true", files=files, timeout=120, trust_env=False)
    assert good.status_code == 200, good.text
    bad = httpx.post(f"{url}/v1/lipsync", files={"face": b"hello", "audio": voice}, timeout=120, trust_env=False)
    assert bad.status_code == 415, bad.text


def numbers(samples: list[dict[str, Any]]) -> list[float]:
    """The samples' values, those that are no number left out."""
    found = [float(sample["value"][1]) for sample in samples]
    return [value for value in found if not math.isnan(value)]


def unanswered(server: Prometheus, expressions: list[str], *, within_s: float) -> list[str]:
    """Those of the expressions that have no number to show within the time."""
    end_s, left = time.monotonic() + within_s, list(expressions)
    while left and time.monotonic() < end_s:
        left = [expression for expression in left if not numbers(server.query(expression))]
        time.sleep(0.5)
    return left


class TestLive:
    pytestmark = live

    def test_every_panel_has_data(self, prometheus: Prometheus) -> None:
        wanted = [query for panel in dashboard.panels() if panel.wants != "gpu" for query, _ in panel.queries]
        assert unanswered(prometheus, wanted, within_s=60) == []

    def test_every_rule_has_data(self, prometheus: Prometheus) -> None:
        assert unanswered(prometheus, list(RECORDED), within_s=60) == []
        assert unanswered(prometheus, list(RECORDED.values()), within_s=10) == []

    def test_a_name_that_nobody_exports_is_found_out(self, prometheus: Prometheus) -> None:
        assert unanswered(prometheus, ["sum(ray_lipsync_frame_total)"], within_s=1) == ["sum(ray_lipsync_frame_total)"]

    def test_the_values_are_those_of_what_happened(self, prometheus: Prometheus) -> None:
        assert unanswered(prometheus, ["sum(ray_lipsync_frames_total) >= 75"], within_s=60) == []
        refused = 'sum(ray_lipsync_rejected_total{reason="media_unsupported"}) == 3'
        by_ray = 'sum(ray_serve_num_http_error_requests_total{application="lipsync", error_code="415"}) == 3'
        assert unanswered(prometheus, [refused, by_ray], within_s=60) == []
        assert numbers(prometheus.query("lipsync:applications:running")) == [1.0]
        (fill,) = numbers(prometheus.query("lipsync:batch_fill:mean5m"))
        assert 0 < fill <= 1
        stages = {sample["metric"]["stage"] for sample in prometheus.query("lipsync:stage_seconds:mean5m")}
        assert {"decode", "generate", "encode", "voice", "detect"} <= stages
        replicas = {
            sample["metric"]["deployment"]: float(sample["value"][1])
            for sample in prometheus.query("lipsync:replicas:healthy")
        }
        assert set(replicas) == {"Ingress", "Admission", "Preprocessor", "Renderer", "Generator"}

    def test_all_rules_are_loaded_and_well_and_no_alert_fires(self, prometheus: Prometheus) -> None:
        groups = prometheus.get("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        assert len(found) == len(RECORDED) + len(ALERTS)
        assert [rule["name"] for rule in found if rule["health"] != "ok"] == []
        assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []
