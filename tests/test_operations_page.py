"""docs/operations.md: each line of the security checklist names a test that exists, and settings it names are real."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml
from ray.scripts.scripts import attach

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/operations.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_every_line_of_the_security_checklist_is_held_by_tests_that_exist() -> None:
    rows = [row for row in section("Security").splitlines() if row.startswith("|")][2:]
    assert len(rows) >= 12
    for row in rows:
        held_by = re.findall(r"`(tests/\w+\.py)::(\w+)`", row)
        assert held_by, row
        for path, name in held_by:
            assert re.search(rf"^\s*(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_every_security_test_of_the_manifests_stands_in_the_checklist() -> None:
    source = (ROOT / "tests/test_cluster_manifests.py").read_text()
    names = re.findall(r"^def (test_security_\w+)\(", source, re.MULTILINE)
    assert len(names) >= 7
    for name in names:
        assert name in section("Security"), name


def test_other_tests_that_the_page_names_exist() -> None:
    for path, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE):
        assert f"def {name}(" in (ROOT / path).read_text()


def test_settings_named_for_turning_exist() -> None:
    known = {key for name in ("serve_config.yaml", "cluster/serve_config.yaml") for key in _keys(_read(name))}
    known |= set(re.findall(r"`(?:\w+\.)?(\w+)`", (ROOT / "docs/settings.md").read_text()))
    known |= set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/options.md").read_text(), re.MULTILINE))
    rows = [row for row in section("Turning it").splitlines() if row.startswith("|")][2:]
    for row in rows:
        for named in re.findall(r"`([\w.]+)`", row):
            last = named.rsplit(".", 1)[-1]
            if not last.startswith(("overloaded_", "RAY_")) and last not in {"cpu", "decode", "detect", "encode"}:
                assert last in known, named


def test_the_command_that_gives_alerts_an_address_does_and_leaves_the_rules_own_tests_true(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "cluster/prometheus", tmp_path / "cluster/prometheus")
    (command,) = re.findall(r"`(sed -i [^`]* cluster/prometheus/\S+)`", section("Watching it"))
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    place = tmp_path / "cluster/prometheus"
    given = re.findall(r"runbook_url: (\S+)", (place / "rules.yaml").read_text())
    assert given and all(re.fullmatch(r"https://YOURS/docs/operations\.md#lipsync\w+", url) for url in given)
    assert set(re.findall(r"runbook_url: (\S+)", (place / "rules_test.yaml").read_text())) == set(given)


def test_the_way_in_that_the_page_tells_is_one_that_ray_knows_and_the_port_is_the_applications() -> None:
    (command,) = re.findall(r"`ray attach ([^`]*)`", PAGE)
    manifest, option, port = shlex.split(command)
    assert (ROOT / manifest).exists()
    assert option in {name for parameter in attach.params for name in parameter.opts}
    config = yaml.safe_load((ROOT / "cluster/serve_config.yaml").read_text())
    assert int(port) == config["http_options"]["port"]
    assert config["applications"][0]["args"]["auth"]["mode"] == "keys", "who finds the port open needs a key"


def _read(name: str) -> object:
    return yaml.safe_load((ROOT / name).read_text())


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(map(str, value)) | {key for inner in value.values() for key in _keys(inner)}
    if isinstance(value, list):
        return {key for inner in value for key in _keys(inner)}
    return set()
