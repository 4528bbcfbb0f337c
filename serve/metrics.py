"""Metrics inside Ray: the library's list of them, exported by every node's agent as ``ray_<name>``.

A prometheus_client counter in a replica would never reach Ray's exporter.
"""

from __future__ import annotations

from ray.serve import metrics as ray_metrics

from lipsync.metrics import METRICS, Metric


class RayMeters:
    """A ``lipsync.metrics.Meters``; Ray adds the deployment, the replica and the application to each."""

    def __init__(self) -> None:
        self._counters: dict[str, ray_metrics.Counter] = {}
        self._gauges: dict[str, ray_metrics.Gauge] = {}
        self._histograms: dict[str, ray_metrics.Histogram] = {}
        for metric in METRICS:
            keys: tuple[str] | None = (metric.label,) if metric.label else None
            if metric.kind == "counter":
                self._counters[metric.name] = ray_metrics.Counter(metric.name, metric.help, tag_keys=keys)
            elif metric.kind == "gauge":
                self._gauges[metric.name] = ray_metrics.Gauge(metric.name, metric.help, tag_keys=keys)
            else:
                self._histograms[metric.name] = ray_metrics.Histogram(
                    metric.name, metric.help, boundaries=list(metric.buckets), tag_keys=keys
                )

    def add(self, metric: Metric, amount: float = 1.0, *, label: str = "") -> None:
        if amount:  # NOTE: Ray's counters raise on 0
            self._counters[metric.name].inc(amount, tags=_tags(metric, label))

    def set(self, metric: Metric, value: float) -> None:
        self._gauges[metric.name].set(value)

    def observe(self, metric: Metric, value: float, *, label: str = "") -> None:
        self._histograms[metric.name].observe(value, tags=_tags(metric, label))


def _tags(metric: Metric, label: str) -> dict[str, str]:
    return {metric.label: label} if metric.label else {}
