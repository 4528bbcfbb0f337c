"""Known weights files: where they are on this machine, which can be fetched, who offers the others on which terms."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal

from lipsync.errors import WeightsError

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30.0
_YUNET = "https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/0047ac24afb1/onnx/"

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and, where the server says, the bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFile:
    """A weights file by its short name. One without a URL and a hash is never fetched, only described."""

    name: str
    file_name: str
    purpose: str
    terms: str
    origin: str
    url: str | None = None
    sha256: str | None = None
    byte_limit: int = 0

    @property
    def is_fetched(self) -> bool:
        return self.url is not None and self.sha256 is not None


_RESEARCH_ONLY = "research, academic and personal use only; no commercial use"

KNOWN: Mapping[str, KnownFile] = MappingProxyType(
    {
        known.name: known
        for known in (
            KnownFile(
                name="yunet",
                file_name="yunet_n_dynamic.onnx",
                purpose="face detector with five landmarks, for frames of any size",
                terms="Apache-2.0",
                origin="https://github.com/ShiqiYu/libfacedetection.train",
                url=_YUNET + "yunet_n_dynamic.onnx",
                sha256="104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12",
                byte_limit=2_000_000,
            ),
            KnownFile(
                name="wav2lip",
                file_name="wav2lip.pth",
                purpose="the published generator, closest lips",
                terms=_RESEARCH_ONLY,
                origin="https://github.com/Rudrabha/Wav2Lip",
            ),
            KnownFile(
                name="wav2lip_gan",
                file_name="wav2lip_gan.pth",
                purpose="the published generator, sharper pictures",
                terms=_RESEARCH_ONLY,
                origin="https://github.com/Rudrabha/Wav2Lip",
            ),
            KnownFile(
                name="s3fd",
                file_name="s3fd.pth",
                purpose="face detector of the reference implementation",
                terms="no licence is stated for the file itself: treat it as for research only",
                origin="https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth",
            ),
        )
    }
)


def cache_dir() -> Path:
    """Where fetched weights lie: ``lipsync/weights`` below XDG_CACHE_HOME, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lipsync" / "weights"


def known_file(name: str, *, registry: Mapping[str, KnownFile] = KNOWN) -> KnownFile:
    """Raises WeightsError where no file is known by that name."""
    try:
        return registry[name]
    except KeyError:
        raise WeightsError(f"no weights are known as {name!r}. Known are {', '.join(registry)}.") from None


def find(name: str, *, directory: Path | None = None, registry: Mapping[str, KnownFile] = KNOWN) -> Path | None:
    """The file in the cache, fetched earlier or put there by hand, or None. A pinned file must have its hash.

    Raises WeightsError for an unknown name, for a pinned file that was changed, and for one that cannot be read.
    """
    known = known_file(name, registry=registry)
    path = (directory or cache_dir()) / known.file_name
    try:
        if not path.is_file():
            return None
        is_pinned_one = known.sha256 is None or _hash(path) == known.sha256
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read: {error.strerror}. Make it readable to you, or delete it."
        ) from error
    if not is_pinned_one:
        raise WeightsError(
            f"{path} is not the {name} that is pinned (its sha256 differs). Delete it and pull it again."
        )
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """How a known file stands here: its place in the cache, and, unless it is ``here``, what to do."""

    file: KnownFile
    path: Path
    state: Literal["here", "missing", "unusable"]
    advice: str = ""


def presence(name: str, *, directory: Path | None = None, registry: Mapping[str, KnownFile] = KNOWN) -> Presence:
    """What ``find`` finds, with a file that it would raise for as a state. Raises WeightsError for an unknown name."""
    known = known_file(name, registry=registry)
    path = (directory or cache_dir()) / known.file_name
    try:
        found = find(name, directory=directory, registry=registry)
    except WeightsError as error:
        return Presence(file=known, path=path, state="unusable", advice=error.detail)
    if found is not None:
        return Presence(file=known, path=path, state="here")
    fetch = f"'lipsync weights pull {name}' fetches it from {known.origin}"
    advice = fetch if known.is_fetched else f"its authors offer it at {known.origin}"
    return Presence(file=known, path=path, state="missing", advice=advice)


def find_yunet(path: str | os.PathLike[str] | None = None, *, directory: Path | None = None) -> Path | None:
    """The YuNet file to use: the caller's own where given, which must exist, else the one in the cache, else None."""
    if path is None:
        return find("yunet", directory=directory)
    if not Path(path).is_file():
        raise WeightsError(f"{os.fspath(path)} is no file. Give the path of a YuNet .onnx file, or none at all.")
    return Path(path)


def default_checkpoint() -> Path | None:
    """The generator that ships inside the package, if this build has one."""
    return next(iter(sorted((Path(__file__).parent / "assets").glob("*.safetensors"))), None)


def pull(
    name: str,
    *,
    directory: Path | None = None,
    progress: Progress | None = None,
    registry: Mapping[str, KnownFile] = KNOWN,
) -> Path:
    """Fetches a pinned file into the cache, once, and checks its hash before it gets its name there.

    Raises WeightsError: unknown name, a file that is not ours to fetch (saying where it is offered and on which
    terms), no connection, a refusal, a file too large, cut short or with another hash, a folder not writable.
    """
    known = known_file(name, registry=registry)
    folder = directory or cache_dir()
    if not known.is_fetched:
        raise WeightsError(
            f"{name} is not fetched for you. Its authors offer it at {known.origin} ({known.terms}). Download it "
            f"there and give its path, or put it into {folder} as {known.file_name}."
        )
    path = folder / known.file_name
    if presence(name, directory=directory, registry=registry).state == "here":
        return path
    part: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part_name = tempfile.mkstemp(dir=folder, prefix=f".{known.file_name}.", suffix=".part")
        part = Path(part_name)
        with os.fdopen(handle, "wb") as file:
            _download(known, file, progress)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise WeightsError(f"{name} cannot be written to {folder}: {error.strerror or error}.") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return path


def _download(known: KnownFile, file: BinaryIO, progress: Progress | None) -> None:
    import httpx

    assert known.url is not None
    received, digest = 0, hashlib.sha256()
    try:
        with httpx.stream("GET", known.url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            response.raise_for_status()
            declared = int(response.headers.get("content-length") or 0) or None
            _check_size(known, declared or 0)
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                received += len(chunk)
                _check_size(known, received)
                digest.update(chunk)
                file.write(chunk)
                if progress is not None:
                    progress(received, declared)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise WeightsError(f"{known.name}: {known.url} answers {status}. {_BY_HAND.format(known.origin)}") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise WeightsError(
            f"{known.name} cannot be fetched from {known.url}: {error or type(error).__name__}. "
            f"Check the connection and try again. {_BY_HAND.format(known.origin)}"
        ) from error
    if digest.hexdigest() != known.sha256:
        raise WeightsError(
            f"{known.name}: what {known.url} sent has sha256 {digest.hexdigest()}, not the pinned {known.sha256}; "
            f"it was thrown away. {_BY_HAND.format(known.origin)}"
        )


_BY_HAND = "Or get the file by hand from {} and give its path."


def _check_size(known: KnownFile, byte_count: int) -> None:
    if byte_count > known.byte_limit:
        raise WeightsError(
            f"{known.name}: {known.url} sends more than the {known.byte_limit} bytes that the file can have; "
            f"nothing was kept. {_BY_HAND.format(known.origin)}"
        )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
