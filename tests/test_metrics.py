"""What is counted and measured: one list for every back end, and the arithmetic of what is derived."""

import asyncio
import errno
import os
from fractions import Fraction
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lipsync.batcher.settings import BatcherCounts, BatchReport
from lipsync.core import Fragment
from lipsync.errors import OutputError
from lipsync.metrics import (
    BATCH_FILL,
    BATCH_FRAMES,
    BATCH_REQUESTS,
    CANCELLED,
    DEVICE_BUSY,
    FIRST_FRAGMENT,
    FRAMES,
    METRICS,
    NON_FINITE,
    OUT_OF_MEMORY,
    QUEUED_FRAMES,
    REJECTED,
    REQUEST,
    REQUESTS_RUNNING,
    STAGE,
    BatchMeter,
    NoMeters,
    PrometheusMeters,
    RequestMeter,
)
from lipsync.model.seeded import seeded_generator
from lipsync.options import Options
from lipsync.pipeline import Report
from lipsync.service import LipsyncService
from tests.engine_cases import NARROW
from tests.media_factory import audio_bytes, image_bytes


def shown(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample by its name and labels, as a scrape shows it."""
    text = generate_latest(registry).decode()
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def meters(registry):
    return PrometheusMeters(registry)


def test_a_scrape_shows_exactly_the_metrics_of_the_list(registry, meters):
    for metric in METRICS:
        label = "x" if metric.label else ""
        {
            "counter": meters.add,
            "gauge": lambda m, label: meters.set(m, 1),
            "histogram": lambda m, label: meters.observe(m, 1, label=label),
        }[metric.kind](metric, label=label)
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    found = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type, family.documentation)
        for family in families
    }
    assert found - {entry for entry in found if entry[0].endswith("_created")} == {
        (m.name, m.kind, m.help) for m in METRICS
    }
    buckets = {
        float(sample.labels["le"])
        for family in families if family.name == STAGE.name
        for sample in family.samples if sample.name.endswith("_bucket")
    }  # fmt: skip
    assert buckets == {*STAGE.buckets, float("inf")}


def test_the_list_keeps_the_habits_of_prometheus_and_stays_small():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("lipsync_") and metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.label in ("", "stage", "reason")


# ---------------------------------------------------------------- requests


def report() -> Report:
    return Report(fps=Fraction(25), first_fragment_s=0.3, total_s=4.0, stage_s={"decode": 1.5, "encode": 30.0})


def test_a_request_counts_while_it_runs_and_is_measured_at_its_end(registry, meters):
    meter = RequestMeter(meters)
    with meter.watch(report()), meter.watch(report()):
        assert shown(registry)[REQUESTS_RUNNING.name] == 2
    found = shown(registry)
    assert found[REQUESTS_RUNNING.name] == 0
    assert found[REQUEST.name + "_count"] == 2 and found[REQUEST.name + "_sum"] == 8
    assert found[STAGE.name + "_sum{stage=decode}"] == 3 and found[STAGE.name + "_sum{stage=encode}"] == 60
    assert found[CANCELLED.name] == 0


def test_what_is_a_state_is_said_again_when_asked(registry, meters):
    """An exporter that forgets gauges which it has not heard of lately shows them all the same."""
    meter = RequestMeter(meters)
    with meter.watch(report()):
        meters.set(REQUESTS_RUNNING, float("nan"))
        meter.refresh()
        assert shown(registry)[REQUESTS_RUNNING.name] == 1


@pytest.mark.parametrize(
    ("error", "cancelled"), [(asyncio.CancelledError(), 1), (GeneratorExit(), 1), (RuntimeError(), 0)]
)
def test_a_request_that_ends_early_is_not_measured_as_one_that_was_made(registry, meters, error, cancelled):
    with pytest.raises(type(error)), RequestMeter(meters).watch(report()):
        raise error
    found = shown(registry)
    assert (found[REQUESTS_RUNNING.name], found[CANCELLED.name], found[REQUEST.name + "_count"]) == (0, cancelled, 0)


async def made(count: int):
    for number in range(count):
        yield Fragment(number, 8 * number, 8, b"", {})


@pytest.mark.parametrize(("is_stream", "count", "measured"), [(True, 3, 1), (True, 0, 0), (False, 3, 0)])
async def test_a_streams_first_fragment_is_measured_when_it_comes(registry, meters, is_stream, count, measured):
    """Nobody waits for a whole file's; and a reader who leaves after it has waited for it all the same."""
    fragments = RequestMeter(meters).measured(made(count), report(), is_stream=is_stream)
    await anext(fragments, None)
    found = shown(registry)
    assert found[FIRST_FRAGMENT.name + "_count"] == measured
    assert found[FIRST_FRAGMENT.name + "_sum"] == pytest.approx(0.3 * measured)
    await anext(fragments, None)
    await fragments.aclose()
    assert shown(registry)[FIRST_FRAGMENT.name + "_count"] == measured


# ---------------------------------------------------------------- batches


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def batch(frames: int, drawing_s: float, *, room: int = 512, requests: int = 2) -> BatchReport:
    return BatchReport(
        frames=frames, room=room, requests=requests, waited_s=(), drawing_s=drawing_s, retried=0, failed=0
    )


def test_batches_add_up_to_fill_speed_and_load(registry, meters):
    clock = Clock()
    meter = BatchMeter(meters, clock=clock)
    assert (meter.busy_ratio, meter.frames_per_s) == (0, 0)
    meter.on_batch(batch(512, 1.0))
    clock.now_s += 4
    meter.on_batch(batch(256, 2.0, requests=7))
    assert meter.busy_ratio == pytest.approx(0.3)
    assert meter.frames_per_s == pytest.approx(256), "of drawing, not of the time that went by"
    clock.now_s += 7  # the first one is eleven seconds old
    assert meter.busy_ratio == pytest.approx(0.2)
    assert meter.frames_per_s == pytest.approx(128)
    clock.now_s += 10
    assert (meter.busy_ratio, meter.frames_per_s) == (0, 0)
    found = shown(registry)
    assert found[FRAMES.name] == 768
    assert found[BATCH_FRAMES.name + "_sum"] == 768 and found[BATCH_FILL.name + "_sum"] == 1.5
    assert found[BATCH_REQUESTS.name + "_bucket{le=6.5}"] == 1 and found[BATCH_REQUESTS.name + "_count"] == 2


def test_a_device_with_little_to_do_does_not_look_slow():
    meter = BatchMeter(NoMeters(), buckets=(16, 64, 512), clock=Clock())
    meter.on_batch(batch(8, 0.5))
    assert meter.frames_per_s == pytest.approx(32), "it drew sixteen, were they wanted or not"
    meter.on_batch(batch(500, 4.0))
    assert meter.frames_per_s == pytest.approx(128), "and by small shapes alone it is not judged"
    meter.on_batch(batch(512, 2.0))
    assert meter.frames_per_s == pytest.approx(2 * 512 / 6)
    assert meter.busy_ratio == pytest.approx(0.65)


def test_a_device_is_never_more_than_busy():
    meter = BatchMeter(NoMeters(), clock=Clock())
    meter.on_batch(batch(10, 60.0))
    assert meter.busy_ratio == 1


def test_totals_of_the_engine_are_counted_once_however_often_they_are_read(registry, meters):
    meter = BatchMeter(meters, clock=Clock())
    for out_of_memory, redone in ((2, 5), (2, 5), (3, 9)):
        meter.refresh(BatcherCounts(queued_frames=7, held_frames=4), out_of_memory=out_of_memory, redone=redone)
    found = shown(registry)
    assert (found[QUEUED_FRAMES.name], found[OUT_OF_MEMORY.name], found[NON_FINITE.name], found[DEVICE_BUSY.name]) == (
        11,
        3,
        9,
        0,
    )


# ---------------------------------------------------------------- one process


def test_a_result_that_cannot_be_written_is_a_failure_and_no_caller_who_went(registry, meters, tmp_path, monkeypatch):
    def broken(path, *args, **named):
        if path.name == "fragments.mp4":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **named)

    real = Path.open
    monkeypatch.setattr(Path, "open", broken)
    face, options = image_bytes(format="png", size=(128, 128)), Options(box=(20, 110, 20, 110), preset="ultrafast")
    with (
        LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=2, meters=meters) as service,
        pytest.raises(OutputError, match="Cannot write"),
    ):
        service.process(face, audio_bytes(seconds=0.6), tmp_path / "out.mp4", options=options)
    found = shown(registry)
    assert (found[CANCELLED.name], found[REJECTED.name + "{reason=output_error}"]) == (0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_service_in_one_process_is_measured_too(registry, meters):
    face, options = image_bytes(format="png", size=(128, 128)), Options(box=(20, 110, 20, 110), preset="ultrafast")
    with LipsyncService(seeded_generator(0, widths=NARROW), "cpu", workers=2, meters=meters) as service:
        service.to_bytes(face, audio_bytes(seconds=0.6), options)
        with pytest.raises(Exception, match="face"):
            service.to_bytes(face, audio_bytes(seconds=0.6))
        stream = service.stream(face, audio_bytes(seconds=20), options)
        next(stream)
        stream.close()
    found = shown(registry)
    assert found[REQUEST.name + "_count"] == 1
    assert found[STAGE.name + "_count{stage=encode}"] == 1
    assert found[FRAMES.name] >= 15 and found[BATCH_FRAMES.name + "_count"] >= 2
    assert found[BATCH_FRAMES.name + "_sum"] == found[FRAMES.name]
    assert found[CANCELLED.name] == 1 and found[REQUESTS_RUNNING.name] == 0
    assert found[REJECTED.name + "{reason=no_face}"] == 1
    assert QUEUED_FRAMES.name in found
