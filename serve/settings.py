"""What an operator may set: one schema, given under ``args`` in ``serve_config.yaml``; unknown keys are refused.

How many replicas there are, and what each gets of a machine, stands beside it under ``deployments``: that is Ray's.
"""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lipsync.batcher import BatcherSettings
from lipsync.compile_cache import MOST_BYTES, TTL_S
from lipsync.options import Limits
from lipsync.plan import Tuning


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AuthSettings(_Strict):
    """Who may call."""

    mode: Literal["off", "keys"] = Field("keys", description="off: anybody who reaches the port, on loopback only")
    keys_env: str = Field("LIPSYNC_API_KEYS", description="environment variable with the keys, one a line or by commas")
    keys_file: str | None = Field(None, description="file with the keys, one a line; read when a replica starts")


class AdmissionSettings(_Strict):
    """How much may be under way in the whole cluster; beyond it, requests are refused at once."""

    requests: int = Field(64, ge=1, description="requests under way")
    frames: int = Field(120_000, ge=1, description="their output frames, as far as their headers tell")
    requests_per_key: int = Field(16, ge=1, description="requests under way of one API key")
    retry_after_s: float = Field(2.0, gt=0, description="what a refused caller is told to wait, at least")
    lease_s: float = Field(20.0, ge=1, description="a request counts for this long after its Ingress was last heard of")


class GeneratorSettings(_Strict):
    """The engine in each Generator replica."""

    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: cuda where the cluster has GPUs now")
    gpus: float = Field(1.0, gt=0, description="GPUs of one replica; a fraction shares a GPU between replicas")
    precision: Literal["auto", "fp16", "bf16", "fp32"] = Field("auto", description="auto: fp16 on CUDA, fp32 on a CPU")
    batch_size: int | None = Field(None, ge=1, description="frames of a full batch; none: 512 on CUDA, 8 on a CPU")
    compile: bool = Field(True, description="torch.compile(max-autotune), on CUDA only")
    compile_cache: str | None = Field(
        None,
        description="folder on every node for what was compiled, so that a second start takes seconds; none: "
        "`lipsync/compiled` in the user's cache folder",
    )
    compile_cache_bytes: int = Field(
        MOST_BYTES, ge=1, description="most bytes left there when a replica starts; the longest unused goes first"
    )
    compile_cache_ttl_s: float = Field(TTL_S, gt=0, description="what nobody used for so long goes too")
    exact: bool = Field(False, description="the plain network, for comparison with the reference")
    threads: int | None = Field(
        None, ge=1, description="torch's CPU threads; none: as many as the replica's num_cpus, one beside a GPU"
    )
    stuck_after_s: float = Field(120.0, gt=0, description="a batch that takes longer makes the replica unhealthy")


class WorkerSettings(_Strict):
    """A replica that works on a CPU."""

    threads: int = Field(2, ge=1, description="threads for media work in one replica")
    cache_entries: int = Field(
        64,
        ge=0,
        description="face inputs of which results are remembered by content: a Preprocessor's indexes and detections, "
        "the pictures of stills",
    )
    cache_bytes: int = Field(
        256_000_000, ge=0, description="most bytes of these pictures, decoded, and as many of detections"
    )
    cache_ttl_s: float = Field(900.0, gt=0, description="for how long after their last use")


class SpoolSettings(_Strict):
    """Where uploads and results lie while their request runs."""

    folder: str | None = Field(None, description="none: a folder of its own under the system's temporary one")
    bytes: int = Field(20_000_000_000, ge=1, description="most bytes there at once, for each Ingress replica")
    ttl_s: float = Field(
        3600.0,
        gt=0,
        description="what a dead process left goes after this long where the file system knows no locks, else at once",
    )


class BatchingSettings(_Strict):
    """The Generator's ``user_config``: changed while it runs, without a restart."""

    linger_s: float = Field(
        BatcherSettings().linger_s, ge=0, description="how long a free device waits for more frames"
    )
    first_share_frames: int = Field(BatcherSettings().first_share_frames, ge=0, description="a request's urgent start")
    queued_frames: int = Field(BatcherSettings().queued_frames, ge=1, description="most frames that wait for a batch")
    turn_frames: int = Field(
        BatcherSettings().turn_frames,
        ge=1,
        description="the policy: frames of a request between others' turns; few is fair, `queued_frames` first come, "
        "first served",
    )

    def for_batcher(self) -> BatcherSettings:
        return BatcherSettings(
            linger_s=self.linger_s,
            first_share_frames=self.first_share_frames,
            queued_frames=self.queued_frames,
            turn_frames=self.turn_frames,
        )


class Settings(_Strict):
    """The application's settings."""

    host: str = Field("127.0.0.1", description="the address that the proxies bind; the same as http_options.host")
    checkpoint: str | None = Field(
        None, description="path of a Wav2Lip checkpoint on every node; none: the packaged one"
    )
    trust_torchscript: bool = Field(False, description="load a TorchScript archive, which could run code")
    yunet_path: str | None = Field(None, description="path of YuNet's weights; none: what was pulled, if anything")
    s3fd_path: str | None = Field(None, description="path of S3FD's weights; Preprocessors then need a share of a GPU")
    deadline_s: float = Field(840.0, gt=0, description="a request that takes longer is ended")
    upload_stall_s: float = Field(30.0, gt=0, description="an upload of which nothing comes for so long is ended")
    result_bytes: int = Field(2_000_000_000, ge=1, description="largest result")
    tries: int = Field(3, ge=1, description="how often a piece of work is given out while workers die under it")
    segments: int = Field(
        128, ge=1, description="segments that an Ingress shares out: with many requests each has fewer than its window"
    )
    auth: AuthSettings = AuthSettings()
    admission: AdmissionSettings = AdmissionSettings()
    generator: GeneratorSettings = GeneratorSettings()
    preprocessor: WorkerSettings = WorkerSettings()
    renderer: WorkerSettings = WorkerSettings()
    spool: SpoolSettings = SpoolSettings()
    limits: Limits = Limits()
    tuning: Tuning = Tuning()

    @model_validator(mode="after")
    def _open_doors_are_inside(self) -> Settings:
        if self.auth.mode == "off" and not is_loopback(self.host):
            raise ValueError(
                f"auth.mode is off and host is {self.host}: anybody could use the GPUs. Use auth.mode keys, or host "
                "127.0.0.1."
            )
        return self

    @model_validator(mode="after")
    def _the_sweep_spares_the_living(self) -> Settings:
        if self.spool.ttl_s <= self.deadline_s:
            raise ValueError(
                f"spool.ttl_s is {self.spool.ttl_s:g} and deadline_s {self.deadline_s:g}: files of requests that are "
                "under way would be removed. Make spool.ttl_s the longer one."
            )
        return self


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
