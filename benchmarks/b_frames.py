"""What giving up B-frames costs: CPU time, size and quality of the same pictures in segments, with and without."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator

import av
import numpy as np

from benchmarks.media import moving, still
from lipsync.core import U8

SEGMENT = 128


def pictures(mp4: bytes) -> list[U8]:
    """Each frame as one (H·3/2, W) array of its planes."""
    with av.open(io.BytesIO(mp4), "r") as container:
        return [np.asarray(frame.to_ndarray(format="yuv420p")) for frame in container.decode(video=0)]


def encoded(frames: list[U8], *, b_frames: int) -> tuple[list[bytes], float]:
    """The segments' bytes at crf 18, veryfast, one thread, and the CPU seconds spent."""
    started, segments = time.process_time(), []
    for first in range(0, len(frames), SEGMENT):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width = frames[0].shape[0] * 2 // 3, frames[0].shape[1]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            stream.options = {"preset": "veryfast", "crf": "18", "bf": str(b_frames)}
            for frame in frames[first : first + SEGMENT]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")))
            container.mux(stream.encode())
        segments.append(buffer.getvalue())
    return segments, time.process_time() - started


def luma_psnr_db(frames: list[U8], segments: list[bytes]) -> float:
    """Against the frames that were encoded."""
    errors = [
        float(np.mean((one[: one.shape[0] * 2 // 3].astype(np.float32) - other[: other.shape[0] * 2 // 3]) ** 2))
        for one, other in zip(frames, _decoded(segments), strict=True)
    ]
    return 10 * float(np.log10(255**2 / np.mean(errors)))


def _decoded(segments: list[bytes]) -> Iterator[U8]:
    for segment in segments:
        yield from pictures(segment)


def _looped_still(count: int) -> list[U8]:
    with av.open(io.BytesIO(still(1280, 720)), "r") as container:
        one = next(container.decode(video=0)).reformat(format="yuv420p").to_ndarray()
    return [np.asarray(one)] * count


def main() -> None:
    results = {}
    for name, frames in (
        ("moving", pictures(moving(1280, 720, frames=256, gop=250, noise=1.0))),
        ("still", _looped_still(256)),
    ):
        for b_frames in (3, 0):
            segments, spent_s = encoded(frames, b_frames=b_frames)
            results[f"{name}_{b_frames}_b_frames"] = {
                "cpu_ms_per_frame": round(1000 * spent_s / len(frames), 2),
                "kilobytes": round(sum(map(len, segments)) / 1000, 1),
                "luma_psnr_db": round(luma_psnr_db(frames, segments), 2),
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
