"""What replicas say of their health, which devices they are given, and what is refused when they start."""

import asyncio
import threading
from functools import partial
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import ray

from benchmarks.stand_in_generator import FixedCostDevice
from lipsync.core import Claim
from lipsync.errors import DetectorUnavailable, EngineError, Overloaded
from lipsync.flow import call
from serve import app as app_module
from serve.description import describe
from serve.gate import Gate
from serve.generator import Generator
from serve.niceness import give_way
from serve.preprocessor import Preprocessor
from serve.renderer import Renderer
from serve.settings import AdmissionSettings, AuthSettings, GeneratorSettings, Settings
from tests.serve_fakes import FakeBooks, LocalHandle

SETTINGS = Settings(auth=AuthSettings(mode="off"), generator=GeneratorSettings(stuck_after_s=0.05))
CROP, MEL = np.zeros((1, 96, 96, 3), np.uint8), np.zeros((80, 16), np.float32)
FIRST = np.zeros(1, np.int32)


class Device(FixedCostDevice):
    """A device that draws when it is let, and may be lost for good."""

    def __init__(self):
        super().__init__(0.0, 8)
        self.may_draw, self.fails = threading.Event(), False

    def draw(self, frames):
        assert self.may_draw.wait(10)
        if self.fails:
            self.healthy = False
            raise EngineError("The device is gone. Start a new process.")
        return super().draw(frames)


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def generator(device, monkeypatch):
    monkeypatch.setattr(Generator, "load", lambda self, settings, name: (device, "a stand-in"))
    made = Generator(SETTINGS, "cpu")
    yield made
    device.may_draw.set()
    made._batcher.close()


def test_batching_settings_change_in_the_batcher_that_runs(generator):
    batcher = generator._batcher
    generator.reconfigure({"linger_s": 0.02, "turn_frames": 64, "first_share_frames": 16, "queued_frames": 4096})
    found = batcher._settings
    assert generator._batcher is batcher
    assert (found.linger_s, found.turn_frames, found.first_share_frames, found.queued_frames) == (0.02, 64, 16, 4096)
    with pytest.raises(ValueError, match="nonsense"):
        generator.reconfigure({"nonsense": 1})


async def test_a_device_that_is_stuck_fails_the_health_check_and_one_that_is_quick_does_not(generator, device):
    generator.check_health()
    asked = asyncio.create_task(generator.generate(CROP, FIRST, MEL, FIRST, claim=Claim()))
    await asyncio.sleep(0.02)
    generator.check_health()
    await asyncio.sleep(0.1)
    with pytest.raises(EngineError, match="stuck"):
        generator.check_health()
    device.may_draw.set()
    await asked
    generator.check_health()


@pytest.mark.parametrize("kind", [Preprocessor, lambda settings: Renderer(settings, LocalHandle(None))])
async def test_a_thread_that_never_comes_back_ends_its_process_once_no_request_can_wait_for_it(kind, monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr("serve.hung._LAST_WORDS_S", 0.0)
    monkeypatch.setattr("serve.hung.os._exit", ended.append)
    replica, back = kind(SETTINGS.model_copy(update={"deadline_s": 1.0})), threading.Event()
    replica.check_health()
    hanging = asyncio.create_task(call(replica._stages._threads, partial(back.wait, 30)))
    await asyncio.sleep(0.02)
    replica.check_health()
    await asyncio.sleep(1.1)
    with pytest.raises(EngineError, match="replacing"):
        replica.check_health()
    await asyncio.sleep(0.2)
    assert ended == [1]
    back.set()
    await hanging
    replica.check_health()
    replica._stages.close()


def test_a_generator_without_a_checkpoint_draws_with_the_packaged_one_and_says_so():
    engine, note = Generator.load(object.__new__(Generator), SETTINGS, "cpu")
    assert note == "packaged default, generator.safetensors"
    assert engine.info.parameters < 6_000_000, "the published one has 36 million"


async def test_a_model_is_described_as_the_api_says(generator):
    content = describe(SETTINGS)["/v1/models"]["responses"][200]["content"]["application/json"]
    jsonschema.validate({"models": [await generator.describe()]}, content["schema"])
    assert set(content["example"]["models"][0]) == set(await generator.describe())


async def test_a_device_that_is_lost_fails_the_health_check_and_ends_its_process(generator, device, monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr("serve.generator._LAST_WORDS_S", 0.0)
    monkeypatch.setattr("serve.generator.os._exit", ended.append)
    device.fails = True
    device.may_draw.set()
    with pytest.raises(EngineError):
        await generator.generate(CROP, FIRST, MEL, FIRST, claim=Claim())
    with pytest.raises(EngineError, match="replacing"):
        generator.check_health()
    await asyncio.sleep(0.01)
    assert ended == [1]


@pytest.mark.parametrize(
    ("wanted", "resources", "device"),
    [
        ("auto", {"CPU": 8.0, "GPU": 2.0}, "cuda"),
        ("auto", {"CPU": 8.0}, "cpu"),
        ("cpu", {"CPU": 8.0, "GPU": 2.0}, "cpu"),
        ("cuda", {"CPU": 8.0}, "cuda"),  # a cluster may start before its first GPU node is there
    ],
)
def test_generators_are_given_gpus_where_the_cluster_has_them_or_the_settings_say_so(
    monkeypatch, wanted, resources, device
):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    composed: dict[str, object] = {}
    monkeypatch.setattr(app_module, "compose", lambda settings, **given: composed.update(given))
    app_module.build(SETTINGS.model_copy(update={"generator": GeneratorSettings(device=wanted, gpus=0.5)}))
    assert composed == {"device": device, "num_gpus": 0.5 if device == "cuda" else 0}


@pytest.mark.parametrize(("num_gpus", "num_cpus"), [(1, 0), (0.25, 0), (0, 1)])
def test_a_generator_with_a_gpu_asks_for_no_core_that_a_renderer_could_take_while_it_restarts(num_gpus, num_cpus):
    application = app_module.compose(SETTINGS, device="cpu", num_gpus=num_gpus)
    _, _, renderer, generator, _ = application._bound_deployment.init_args
    assert generator._bound_deployment.name == "Generator"
    assert renderer._bound_deployment.init_args[1] is generator
    options = generator._bound_deployment.ray_actor_options
    assert (options["num_gpus"], options["num_cpus"]) == (num_gpus, num_cpus)


def test_s3fd_without_a_share_of_a_gpu_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    with pytest.raises(DetectorUnavailable, match="num_gpus"):
        Preprocessor(SETTINGS.model_copy(update={"s3fd_path": "/weights/s3fd.pth"}))


async def test_a_keys_bound_holds_over_all_ingress_replicas():
    bounds = AdmissionSettings(requests=10, requests_per_key=2)
    books = FakeBooks(bounds)
    here, there = Gate(books, bounds), Gate(books, bounds)
    async with here.request("a", key="k"), there.request("b", key="k"):
        for gate in (here, there):
            with pytest.raises(Overloaded) as refused:
                async with gate.request("c", key="k"):
                    pass
            assert refused.value.reason == "key"
        async with there.request("d", key="another"):
            pass
    await asyncio.sleep(0.01)
    async with there.request("e", key="k"), there.request("f", key="k"):
        pass


@pytest.mark.parametrize(("initialized", "actor", "nicer_by"), [(True, "abc", 4), (True, None, 0), (False, None, 0)])
def test_media_work_gives_way_in_a_process_of_its_own_alone(monkeypatch, initialized, actor, nicer_by):
    given: list[int] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: initialized)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: actor))
    monkeypatch.setattr("serve.niceness.os.nice", given.append)
    give_way()
    assert sum(given) == nicer_by
