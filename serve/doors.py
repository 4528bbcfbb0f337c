"""Where callers come in, as Ray Serve runs it: who reaches that address may use the GPUs, unless keys are asked for."""

from __future__ import annotations

import ray
from ray.serve.context import _get_global_client

from lipsync.errors import InvalidOption

from .settings import Settings, is_loopback


def bound_host() -> str | None:
    """The address that Serve binds, its own proxies and HAProxy alike; None where it takes in no HTTP, or does not run.

    That of a running Serve is not that of the configuration: who deploys to it changes its applications alone.
    """
    if not ray.is_initialized():  # else asking would start a Ray
        return None
    serving = _get_global_client(raise_if_no_controller_running=False)
    return None if serving is None else serving.http_config.host


def refuse_open_doors(settings: Settings) -> None:
    """Raises InvalidOption where no keys are asked for and others than this machine's users reach the service."""
    host = bound_host() if settings.auth.mode == "off" else None
    if host is not None and not is_loopback(host):
        raise InvalidOption(
            f"auth.mode is off, and Ray Serve listens on {host}: anybody could use the GPUs. Use auth.mode keys, or "
            "shut Serve down and start it with http_options.host 127.0.0.1; a running one keeps its address."
        )
