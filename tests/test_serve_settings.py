"""What an operator may set: refused at any depth where unknown, and the shipped YAML says only what Ray and we know."""

import types
import typing
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin

import pytest
import ray
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, HTTPOptions
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from lipsync.errors import InvalidOption, Unauthorized
from lipsync.metrics import METRICS
from lipsync.options import Limits
from lipsync.plan import Tuning
from serve.auth import Keys
from serve.autoscaling import FramesBacklogPolicy
from serve.doors import bound_host, refuse_open_doors
from serve.ingress import Ingress
from serve.settings import AuthSettings, BatchingSettings, Settings

ROOT = Path(__file__).resolve().parents[1]
YAML = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
APPLICATION = YAML["applications"][0]
DEPLOYMENTS = {one["name"]: one for one in APPLICATION["deployments"]}
KEY, OTHER_KEY = "k" * 16, "another-key-of-20-ch"


def sections(schema: type = Settings, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], type]:
    """Every nested group of settings, by its path."""
    found = {path: schema}
    hints = typing.get_type_hints(schema)
    for name, hint in hints.items():
        if isinstance(hint, type) and (issubclass(hint, BaseModel) or is_dataclass(hint)):
            found |= sections(hint, (*path, name))
    return found


def nested(path: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    for name in reversed(path):
        values = {name: values}
    return values


# ---------------------------------------------------------------- the schema


def test_the_groups_of_settings_are_all_found():
    assert {path[0] for path in sections() if path} == {
        "auth", "admission", "generator", "preprocessor", "renderer", "spool", "limits", "tuning"
    }  # fmt: skip


@pytest.mark.parametrize("path", sections(), ids=".".join)
def test_an_unknown_key_is_refused_at_any_depth(path):
    with pytest.raises(ValidationError, match="cfr"):
        Settings.model_validate(nested(path, {"cfr": 20}))


def test_an_unknown_batching_key_is_refused_while_running():
    with pytest.raises(ValidationError, match="turn_frame"):
        BatchingSettings.model_validate({"turn_frame": 20})


@pytest.mark.parametrize("path", sections(), ids=".".join)
def test_every_setting_says_what_it_is(path):
    schema = sections()[path]
    if issubclass(schema, BaseModel):
        groups = {one[len(path)] for one in sections() if len(one) > len(path) and one[: len(path)] == path}
        assert [
            name for name, field in schema.model_fields.items() if not field.description and name not in groups
        ] == []
    else:
        assert all(field.metadata["help"] for field in schema.__dataclass_fields__.values())


@pytest.mark.parametrize(
    "given",
    [{"deadline_s": 0}, {"deadline_s": float("inf")}, {"deadline_s": float("nan")}, {"tries": 0}, {"admission": {"requests": 0}},
     {"generator": {"device": "tpu"}}, {"generator": {"gpus": 0}}, {"spool": {"bytes": 0}}, {"limits": {"frames": -1}}, {"tuning": {"window": 0}},
     {"tuning": {"segment_frames": []}}, {"tuning": {"segment_frames": [8, 0]}}, {"tuning": {"waste": -1}}, {"limits": {"duration_s": float("inf")}}],
    ids=str,
)  # fmt: skip
def test_a_number_that_cannot_work_is_refused_at_the_start(given):
    with pytest.raises(ValidationError):
        Settings.model_validate(given)


def test_tuning_and_limits_are_the_librarys_own():
    made = Settings.model_validate({"limits": {"frames": 100}, "tuning": {"window": 3, "waste": "1/5"}})
    assert made.limits == Limits(frames=100)
    assert made.tuning == Tuning(window=3, waste=typing.get_type_hints(Tuning)["waste"](1, 5))
    with pytest.raises(InvalidOption, match="window"):
        Tuning(window=0)


def test_the_sweep_may_not_overtake_the_deadline():
    with pytest.raises(ValidationError, match=r"spool\.ttl_s"):
        Settings.model_validate({"deadline_s": 600, "spool": {"ttl_s": 600}})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gpu.example.com", ""])
def test_open_doors_are_refused_where_others_reach_them(host):
    with pytest.raises(ValidationError, match=r"auth\.mode is off"):
        Settings.model_validate({"auth": {"mode": "off"}, "host": host})
    assert Settings.model_validate({"auth": {"mode": "keys"}, "host": host}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_open_doors_are_taken_on_loopback(host):
    assert Settings.model_validate({"auth": {"mode": "off"}, "host": host}).auth.mode == "off"


@pytest.fixture
def serving(monkeypatch):
    """A Serve that runs with other HTTP options than the configuration has."""

    def on(host: str | None) -> None:
        monkeypatch.setattr("serve.doors.ray.is_initialized", lambda: True)
        client = SimpleNamespace(http_config=HTTPOptions(host=host))
        monkeypatch.setattr("serve.doors._get_global_client", lambda **_: client)

    return on


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", ""])
def test_open_doors_are_refused_by_the_address_that_serve_really_binds(serving, host):
    serving(host)
    with pytest.raises(InvalidOption, match=r"auth\.mode is off, and Ray Serve listens on .*Use auth\.mode keys"):
        Ingress(Settings(auth=AuthSettings(mode="off")), None, None, None, None)
    refuse_open_doors(Settings())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", None])
def test_open_doors_are_taken_where_serve_binds_loopback_or_nothing(serving, host):
    serving(host)
    refuse_open_doors(Settings(auth=AuthSettings(mode="off")))


def test_nothing_is_bound_where_no_serve_runs_and_asking_starts_none(monkeypatch):
    assert bound_host() is None and not ray.is_initialized()
    monkeypatch.setattr("serve.doors.ray.is_initialized", lambda: True)
    monkeypatch.setattr("serve.doors._get_global_client", lambda **_: None)
    assert bound_host() is None


def test_keys_are_wanted_unless_said_otherwise():
    assert Settings().auth.mode == "keys"


# ---------------------------------------------------------------- keys


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.delenv("LIPSYNC_API_KEYS", raising=False)
    return monkeypatch


def test_keys_come_from_environment_and_file_together(environment, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"third-key-of-22-letters\n\n  {OTHER_KEY}  \n")
    environment.setenv("LIPSYNC_API_KEYS", f"{KEY}, fourth-key-of-23-letter\n")
    keys = Keys(AuthSettings(keys_file=str(file)))
    names = {
        keys.check(f"Bearer {key}") for key in (KEY, OTHER_KEY, "third-key-of-22-letters", "fourth-key-of-23-letter")
    }
    assert len(names) == 4 and all(len(name) == 16 and name.isalnum() for name in names)
    assert not any(key in name for name in names for key in (KEY, OTHER_KEY)), "a name does not tell the key"


@pytest.mark.parametrize(
    "sent",
    [None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Token {KEY}", f"Bearer {KEY},{KEY}", f"Bearer {OTHER_KEY}",
     "Bearer ÿ" + KEY, f"Bearer\t{KEY}"],
    ids=ascii,
)  # fmt: skip
def test_whoever_has_no_key_is_refused(environment, sent):
    environment.setenv("LIPSYNC_API_KEYS", KEY)
    with pytest.raises(Unauthorized, match="Bearer KEY"):
        Keys(AuthSettings()).check(sent)


@pytest.mark.parametrize("sent", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} "])
def test_the_scheme_is_read_as_http_has_it(environment, sent):
    environment.setenv("LIPSYNC_API_KEYS", KEY)
    assert Keys(AuthSettings()).check(sent)


@pytest.mark.parametrize("value", ["", " ,\n", "short", f"{KEY},short", "schlüssel-von-vielen-zeichen"])
def test_no_key_or_a_weak_one_stops_the_start(environment, value):
    environment.setenv("LIPSYNC_API_KEYS", value)
    with pytest.raises(ValueError, match="key"):
        Keys(AuthSettings())


def test_every_key_is_compared_whole_whichever_matches(environment, monkeypatch):
    environment.setenv("LIPSYNC_API_KEYS", ",".join([KEY, OTHER_KEY, "third-key-of-22-letters"]))
    keys, compared = Keys(AuthSettings()), []
    monkeypatch.setattr("serve.auth.hmac.compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    keys.check(f"Bearer {KEY}")
    with pytest.raises(Unauthorized):
        keys.check("Bearer x")
    assert compared == [(32, 32)] * 6, "digests of one length, all of them, in every case"


def test_without_keys_anybody_comes_in(environment):
    assert Keys(AuthSettings(mode="off")).check(None) == ""


# ---------------------------------------------------------------- serve_config.yaml


def unknown_keys(values: dict[str, Any], schema: type[BaseModel], path: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        if name not in schema.model_fields:
            found.append(path + name)
            continue
        for inner in _models(schema.model_fields[name].annotation):
            items = value if isinstance(value, list) else [value]
            found += [
                hit for item in items if isinstance(item, dict) for hit in unknown_keys(item, inner, f"{path}{name}.")
            ]
    return found


def _models(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    if get_origin(hint) is typing.Union or isinstance(hint, types.UnionType) or get_origin(hint) is list:
        return [model for arg in get_args(hint) for model in _models(arg)]
    return []


def test_every_key_of_the_yaml_is_one_of_rays():
    assert unknown_keys(YAML, ServeDeploySchema) == []


def test_the_comparison_goes_down_to_the_last_key():
    wrong = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    application, deployment = wrong["applications"][0], wrong["applications"][0]["deployments"][-1]
    wrong["prot"] = wrong["http_options"]["prot"] = wrong["logging_config"]["prot"] = application["prot"] = 1
    deployment["prot"] = deployment["autoscaling_config"]["prot"] = 1
    deployment["autoscaling_config"]["policy"]["prot"] = deployment.setdefault("ray_actor_options", {})["prot"] = 1
    deployment.setdefault("backpressure_config", {})["prot"] = 1
    assert sorted(unknown_keys(wrong, ServeDeploySchema)) == sorted(
        ["prot", "http_options.prot", "logging_config.prot", "applications.prot"]
        + [f"applications.deployments.{name}prot" for name in
           ("", "autoscaling_config.", "autoscaling_config.policy.", "ray_actor_options.", "backpressure_config.")]
    )  # fmt: skip
    known = [HTTPOptionsSchema, LoggingConfig, ServeApplicationSchema, DeploymentSchema, RayActorOptionsSchema]
    assert all(model.model_fields for model in [*known, AutoscalingConfig, AutoscalingPolicy, BackpressureConfig])


def test_the_yaml_is_a_deployment_that_ray_takes_and_settings_that_we_take():
    ServeDeploySchema.model_validate(YAML)
    settings = Settings.model_validate(APPLICATION["args"])
    assert settings.host == YAML["http_options"]["host"], "what is said of loopback is true of the proxies"
    assert YAML["http_options"]["port"] == 8000
    assert APPLICATION["import_path"] == "serve.app:build"
    BatchingSettings.model_validate(DEPLOYMENTS["Generator"]["user_config"])


def test_the_deployments_of_the_yaml_are_those_of_the_application():
    from serve.app import build

    application = build(Settings(auth=AuthSettings(mode="off")))
    names: set[str] = set()

    def walk(one: Any) -> None:
        deployment = one._bound_deployment
        names.add(deployment.name)
        for argument in (*deployment.init_args, *deployment.init_kwargs.values()):
            if hasattr(argument, "_bound_deployment"):
                walk(argument)

    walk(application)
    assert names == set(DEPLOYMENTS)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_replicas_have_bounds_and_time_to_finish(name):
    deployment, deadline_s = DEPLOYMENTS[name], APPLICATION["args"]["deadline_s"]
    assert deadline_s < YAML["http_options"]["request_timeout_s"], "our answer comes before the proxy's"
    if "autoscaling_config" in deployment:
        scaling = AutoscalingConfig(**deployment["autoscaling_config"])
        assert 1 <= scaling.min_replicas <= scaling.max_replicas
        assert scaling.upscale_delay_s <= 3, "the decision within five seconds of a burst"
        assert scaling.metrics_interval_s <= 1 < scaling.look_back_period_s
        assert scaling.downscale_delay_s >= 10 * scaling.upscale_delay_s
    else:
        assert deployment["num_replicas"] == 1
    assert 0 < deployment["max_ongoing_requests"] <= 1000
    assert deployment["health_check_period_s"] <= 5
    assert deployment["graceful_shutdown_timeout_s"] >= deadline_s + 30, "whatever it holds ends with its request"


def test_what_waits_at_the_ingress_is_bounded_and_refused_with_words():
    ingress = DEPLOYMENTS["Ingress"]
    assert ingress["max_queued_requests"] > 0
    answer = BackpressureConfig(**ingress["backpressure_config"])
    assert answer.status_code == 503 and answer.retry_after_s > 0
    assert ingress["max_ongoing_requests"] > Settings.model_validate(APPLICATION["args"]).admission.requests


def test_the_policy_that_the_yaml_names_is_ours_and_takes_its_arguments():
    policy = DEPLOYMENTS["Generator"]["autoscaling_config"]["policy"]
    assert policy["policy_function"] == f"{FramesBacklogPolicy.__module__}:{FramesBacklogPolicy.__name__}"
    FramesBacklogPolicy(**policy["policy_kwargs"])


def test_the_shipped_batching_is_the_default_one():
    assert BatchingSettings.model_validate(DEPLOYMENTS["Generator"]["user_config"]) == BatchingSettings()
    TypeAdapter(BatchingSettings).validate_python({})


# ---------------------------------------------------------------- the docs


@pytest.mark.parametrize("path", sections(), ids=".".join)
def test_every_setting_stands_in_the_docs(path):
    page = (ROOT / "docs" / "settings.md").read_text()
    schema = sections()[path]
    for name, hint in typing.get_type_hints(schema).items():
        if (*path, name) not in sections() and name != "model_config":
            assert f"| `{'.'.join((*path, name))}` |" in page, hint


def test_every_metric_stands_in_the_docs_by_both_its_names():
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert all(f"| `{metric.name}` | `ray_{metric.name}` |" in page for metric in METRICS)


def test_cpu_stages_scale_up_before_the_generators_that_they_feed():
    delays = {
        name: one["autoscaling_config"]["upscale_delay_s"] for name, one in DEPLOYMENTS.items() if name != "Admission"
    }
    assert max(delays["Preprocessor"], delays["Renderer"]) < delays["Generator"]
