"""Weights: what is known, what lies in the cache, and fetching a pinned file over HTTP, with every way it fails."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lipsync import weights
from lipsync.errors import WeightsError
from lipsync.weights import KNOWN, KnownFile, find, find_yunet, presence, pull

CONTENT = bytes(range(256)) * 600
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/good")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            if self.path != "/endless":
                self.send_header("content-length", str(len(CONTENT)))
            self.end_headers()
            self._send_body()

    def _send_body(self) -> None:
        if self.path == "/wrong":
            self.wfile.write(CONTENT[:-1] + b"?")
        elif self.path == "/cut":
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
        elif self.path == "/endless":
            try:
                for _ in range(100):
                    self.wfile.write(CONTENT)
            except OSError:  # the client hung up, as it should
                self.close_connection = True
        else:
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def registry(url: str, *, byte_limit: int = 1_000_000) -> dict[str, KnownFile]:
    known = KnownFile(
        name="tiny",
        file_name="tiny.onnx",
        purpose="a test",
        terms="none",
        origin="https://example.org/tiny",
        url=url,
        sha256=SHA256,
        byte_limit=byte_limit,
    )
    return {"tiny": known}


@pytest.mark.parametrize("path", ["/good", "/moved"])
def test_a_pinned_file_is_fetched_once(server: str, path: str, tmp_path: Path) -> None:
    folder, seen = tmp_path / "new" / "folder", list[tuple[int, int | None]]()
    known = registry(server + path)
    assert find("tiny", directory=folder, registry=known) is None
    fetched = pull("tiny", directory=folder, registry=known, progress=lambda done, total: seen.append((done, total)))
    assert fetched == folder / "tiny.onnx" and fetched.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 1
    assert [entry.name for entry in folder.iterdir()] == ["tiny.onnx"]
    assert find("tiny", directory=folder, registry=known) == fetched
    asked = len(Server.requests)
    assert pull("tiny", directory=folder, registry=known) == fetched
    assert len(Server.requests) == asked, "the second time nothing is asked of the server"


@pytest.mark.parametrize(
    ("path", "byte_limit", "sentence"),
    [
        ("/wrong", 1_000_000, "not the pinned"),
        ("/cut", 1_000_000, "cannot be fetched"),
        ("/missing", 1_000_000, "answers 404"),
        ("/good", 1000, "more than the 1000 bytes"),
        ("/endless", 200_000, "more than the 200000 bytes"),
    ],
)
def test_a_fetch_that_fails_says_why_and_leaves_nothing(
    server: str, path: str, byte_limit: int, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=sentence) as raised:
        pull("tiny", directory=tmp_path, registry=registry(server + path, byte_limit=byte_limit))
    assert "by hand from https://example.org/tiny" in raised.value.detail
    assert list(tmp_path.iterdir()) == []


def test_no_server_at_all_is_a_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for url in ("http://127.0.0.1:1/tiny.onnx", "file:///etc/hostname", "http://[bad"):
        with pytest.raises(WeightsError, match="cannot be fetched"):
            pull("tiny", directory=tmp_path, registry=registry(url))
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_noticed_and_fetched_again(server: str, tmp_path: Path) -> None:
    known = registry(server + "/good")
    (tmp_path / "tiny.onnx").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="Delete it and pull it again"):
        find("tiny", directory=tmp_path, registry=known)
    assert pull("tiny", directory=tmp_path, registry=known).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_a_sentence(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be written"):
        pull("tiny", directory=tmp_path / "file" / "below", registry=registry(server + "/good"))


@pytest.mark.parametrize("name", ["wav2lip", "wav2lip_gan", "s3fd"])
def test_files_with_terms_of_their_own_are_described_not_fetched(name: str, tmp_path: Path) -> None:
    known = KNOWN[name]
    with pytest.raises(WeightsError) as raised:
        pull(name, directory=tmp_path)
    for said in (known.origin, known.terms, known.file_name, str(tmp_path)):
        assert said in raised.value.detail
    assert "research" in known.terms
    (tmp_path / known.file_name).write_bytes(b"put there by hand")
    assert find(name, directory=tmp_path) == tmp_path / known.file_name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"'yolo'\. Known are yunet, wav2lip, wav2lip_gan, s3fd"):
        find("yolo")


def test_only_https_and_a_full_hash_are_pinned() -> None:
    for known in KNOWN.values():
        if known.is_fetched:
            assert known.url is not None and known.url.startswith("https://") and known.url.endswith(known.file_name)
            assert known.sha256 is not None and len(bytes.fromhex(known.sha256)) == 32
            assert known.byte_limit > 0


def test_the_pinned_yunet_is_the_real_one(assets: Path, tmp_path: Path) -> None:
    (tmp_path / KNOWN["yunet"].file_name).write_bytes((assets / KNOWN["yunet"].file_name).read_bytes())
    assert find_yunet(directory=tmp_path) == tmp_path / KNOWN["yunet"].file_name
    assert (assets / KNOWN["yunet"].file_name).stat().st_size <= KNOWN["yunet"].byte_limit


def test_a_given_yunet_wins_and_must_exist(tmp_path: Path) -> None:
    own = tmp_path / "own.onnx"
    with pytest.raises(WeightsError, match="is no file"):
        find_yunet(own, directory=tmp_path)
    own.write_bytes(b"any")
    assert find_yunet(own, directory=tmp_path) == own
    assert find_yunet(directory=tmp_path) is None


def test_the_cache_is_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / "lipsync" / "weights"
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert weights.cache_dir() == Path.home() / ".cache" / "lipsync" / "weights"


def test_the_default_checkpoint_is_the_packages_own_if_there_is_one() -> None:
    packaged = sorted((Path(weights.__file__).parent / "assets").glob("*.safetensors"))
    assert weights.default_checkpoint() == (packaged[0] if packaged else None)


def test_how_a_known_file_stands_here_is_a_state_never_an_error(server: str, tmp_path: Path) -> None:
    known = registry(server + "/good")
    path = tmp_path / "tiny.onnx"
    missing = presence("tiny", directory=tmp_path, registry=known)
    assert (missing.state, missing.path) == ("missing", path) and "lipsync weights pull tiny" in missing.advice
    path.write_bytes(CONTENT[:1000])
    damaged = presence("tiny", directory=tmp_path, registry=known)
    assert damaged.state == "unusable" and "Delete it and pull it again" in damaged.advice
    path.write_bytes(CONTENT)
    assert presence("tiny", directory=tmp_path, registry=known).state == "here"
    assert KNOWN["s3fd"].origin in presence("s3fd", directory=tmp_path).advice


def test_a_file_that_cannot_be_read_is_a_sentence_and_fetched_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(weights, "_hash", refuse)
    (tmp_path / "tiny.onnx").write_bytes(b"")
    known = registry(server + "/good")
    with pytest.raises(WeightsError, match=r"cannot be read: Permission denied. Make it readable"):
        find("tiny", directory=tmp_path, registry=known)
    assert pull("tiny", directory=tmp_path, registry=known).read_bytes() == CONTENT
