"""The metrics of all nodes in one text, gathered from the exporters that Ray runs on each."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import httpx
import ray

_TIMEOUT_S = 3.0
_NOTE = "# node"
_PREFIXES = ("ray_lipsync_", "ray_serve_")


async def gather() -> str:
    """What the application and Ray Serve export, in Prometheus' text format; a node that does not answer is named."""
    nodes = await asyncio.to_thread(_addresses)
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        texts = await asyncio.gather(*(_one(client, address) for address in nodes))
    return merged(texts)


def _addresses() -> list[str]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in alive]


async def _one(client: httpx.AsyncClient, address: str) -> str:
    try:
        answer = await client.get(f"http://{address}/metrics")
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return f"{_NOTE} at port {address.rpartition(':')[2]} does not answer: {type(error).__name__}\n"
    return answer.text


def merged(texts: list[str]) -> str:
    """Families of the same name from several texts put together: a family may stand in a text only once."""
    notes: list[str] = []
    heads: dict[str, dict[str, str]] = defaultdict(dict)  # of each family its HELP and its TYPE: the first that is met
    samples: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, family, _ = f"{line} ".split(" ", 3)
                heads[family].setdefault(kind, line)
            elif line.startswith(_NOTE):
                notes.append(line)
            elif line.startswith(_PREFIXES):
                samples[family].append(line)
    body = [line for family in samples for line in (*heads[family].values(), *samples[family])]
    return "\n".join([*notes, *body]) + "\n"
