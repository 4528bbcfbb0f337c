"""The application as the manifests confine it: read-only root file system, no capabilities, no way out of the network.

In namespaces of this machine, for want of Kubernetes: the same kernel features that a container is made of.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

CONFINE = """
set -e
mount --make-rprivate /
ip link set lo up
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs "$FRESH"
for kept in $KEPT; do mkdir -p "$FRESH/${kept#/tmp/}"; mount --bind "$kept" "$FRESH/${kept#/tmp/}"; done
mount --rbind "$FRESH" /tmp
for kept in $KEPT; do mount -o remount,bind,ro "$kept"; done
mkdir /tmp/cache
awk '{print $2}' /proc/mounts | grep -Ev '^/(proc|sys|dev|tmp)(/|$)' | while read place; do
    mount -o remount,bind,ro "$place"
done
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""

USE = """
import errno, json, socket
from pathlib import Path
import httpx, yaml
from benchmarks.serving_cluster import running
from benchmarks.serving_media import ASSETS, cut_wav, scaled_jpeg

seen = {}
try:
    Path("/usr/here").touch()
except OSError as error:
    seen["writing"] = errno.errorcode[error.errno]
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    seen["outside"] = errno.errorcode.get(error.errno, "timeout")
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
seen["capabilities"] = int(status["CapEff"], 16)
config = yaml.safe_load(Path("serve_config.yaml").read_text())
files = {"face": scaled_jpeg(ASSETS / "face.jpg", width=640), "audio": cut_wav(ASSETS / "voice.wav", seconds=1.0)}
with running(config) as app:
    answers = [httpx.post(f"{app.url}/v1/lipsync{query}", files=files, timeout=120) for query in ("", "?stream=true")]
    seen["status"] = [answer.status_code for answer in answers]
    seen["frames"] = answers[0].headers.get("x-lipsync-frames")
    seen["haproxy"] = any(b"haproxy" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/comm"))
print(json.dumps(seen))
"""


def confinable() -> bool:
    """Whether this machine lets us make such namespaces."""
    tools = ("unshare", "setpriv", "mount", "ip")
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in tools):
        return False
    tried = subprocess.run(["unshare", "-mn", "mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.skipif(not confinable(), reason="needs root and namespaces")
@pytest.mark.timeout(300)
@pytest.mark.serial
def test_security_it_runs_on_a_read_only_file_system_without_capabilities_or_a_way_out(tmp_path: Path) -> None:
    places = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    needed = [place for place in places if not any(place != other and place.is_relative_to(other) for other in places)]
    environment = os.environ | {
        "FRESH": str(tmp_path),
        "KEPT": " ".join(str(place) for place in needed if place.is_relative_to("/tmp")),  # a checkout may lie there
        "HOME": "/tmp",
        "NUMBA_CACHE_DIR": "/tmp/cache",
        "RAY_AUTH_MODE": "disabled",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = ["unshare", "-mn", "bash", "-c", CONFINE, "bash", sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    assert seen == {
        "writing": "EROFS",
        "outside": "ENETUNREACH",
        "capabilities": 0,
        "status": [200, 200],
        "frames": "25",
        "haproxy": True,
    }
