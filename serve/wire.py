"""What crosses between replicas besides the library's own nouns: a request's inputs by reference, a face without bytes.

An input is put into the object store once, by the Ingress, and read where it lies. References always travel in calls by
reference: pickled by any other way, Ray keeps what they name for as long as the process lives (docs/decisions).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from lipsync.core import U8, Index, MediaInfo
from lipsync.errors import UnreadableMedia
from lipsync.media.geometry import Geometry
from lipsync.media.source import Blob
from lipsync.options import Limits, Options
from lipsync.pipeline import Job
from lipsync.render import FaceInput


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The bytes of one request's files; ``voice`` is empty where only faces are looked for."""

    face: U8  # (n,)
    voice: U8  # (m,)


@dataclass(frozen=True, slots=True, eq=False)
class JobRef:
    """A request as replicas are told of it. ``inputs`` is a list of one: Ray would put the value in a bare reference's
    place. It holds the value itself where there is no object store (local testing)."""

    inputs: list[Any]
    face_hash: str
    voice_hash: str
    options: Options
    limits: Limits
    request: str
    priority: int = 0

    async def resolve(self) -> Job:
        """The request, its inputs read in shared memory. Raises Ray's errors where they are lost."""
        (inputs,) = self.inputs
        if isinstance(inputs, ray.ObjectRef):
            inputs = await inputs
        face = Blob.over(memoryview(inputs.face), content_hash=self.face_hash)
        voice = Blob.over(memoryview(inputs.voice), content_hash=self.voice_hash)
        return Job(face, voice, self.options, self.limits, request=self.request, priority=self.priority)


def put_inputs(face: Blob, voice: Blob | None) -> Any:
    """A reference to the request's files in the object store, or the files themselves where there is none. Blocks."""
    inputs = Inputs(_bytes_of(face), _bytes_of(voice))
    return ray.put(inputs) if ray.is_initialized() else inputs


def _bytes_of(blob: Blob | None) -> U8:
    if blob is None:
        return np.empty(0, np.uint8)
    data = np.empty(blob.byte_count, np.uint8)
    try:
        with blob.open() as reader:
            is_whole = reader.readinto(data.data) == blob.byte_count  # type: ignore[attr-defined]
    except UnreadableMedia as error:  # not the caller's fault: it was read before
        raise EOFError("the spooled input is gone") from error
    if not is_whole:
        raise EOFError("the spooled input is shorter than it was")
    return data


NO_VOICE_HASH = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class FaceHeader:
    """A face input that was probed and indexed, without its bytes."""

    info: MediaInfo
    index: Index
    geometry: Geometry
    width: int
    height: int

    @classmethod
    def of(cls, face: FaceInput) -> FaceHeader:
        return cls(face.info, face.index, face.geometry, face.width, face.height)

    def face_of(self, job: Job) -> FaceInput:
        """The job's face input, its bytes in place."""
        return FaceInput(job.face, self.info, self.index, self.geometry, self.width, self.height)
