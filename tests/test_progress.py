"""What a request keeps of the voice while it runs: every segment gets its columns, and what was given is forgotten."""

from collections.abc import AsyncGenerator
from fractions import Fraction

import numpy as np

from lipsync.core import NO_BOX, AudioFormat, Index, Segment, VideoInfo, VoiceChunk
from lipsync.options import Limits, Options
from lipsync.plan import MEL_WINDOW, Timeline
from lipsync.progress import Heard

FPS, LENGTH = 25, 50
SECONDS = 60
STILL = Index(np.zeros(1, np.int64), np.ones(1, bool), 0, Fraction(1, 1000))


async def voice() -> AsyncGenerator[VoiceChunk, None]:
    """A minute in chunks of two seconds; every sample of column n is n."""
    for second in range(0, SECONDS, 2):
        columns = np.arange(80 * second, 80 * (second + 2), dtype=np.float32)
        last = second + 2 == SECONDS
        mel = np.repeat(columns[None], 80, axis=0)
        yield VoiceChunk(mel, (), AudioFormat(16_000, "mono", b"", 64_000), Fraction(second + 2), is_last=last)


async def test_each_segment_gets_the_columns_that_it_hears_and_no_more_than_is_needed_is_kept():
    timeline = Timeline(
        STILL, VideoInfo("h264", 64, 64, Fraction(FPS), 0.0, 1), Options(audio_offset_ms=-120), is_image=True,
        limits=Limits(),
    )  # fmt: skip
    heard = Heard(voice(), timeline)
    first, kept = 0, []
    while await heard.more():
        while first + LENGTH <= heard.frames_heard:
            starts = timeline.mel_starts(first, first + LENGTH, columns=None)
            segment = Segment(first // LENGTH, first, np.zeros(LENGTH, np.int32), starts)
            task = heard.task(segment, np.full((LENGTH, 4), NO_BOX, np.int32))
            for start, at in zip(starts.tolist(), task.mel_starts.tolist(), strict=True):
                window = task.mel[0, max(0, at) : at + MEL_WINDOW]
                assert window.tolist() == list(range(max(0, start), min(start + MEL_WINDOW, heard.columns)))
            first += LENGTH
        kept.append(heard._mel.shape[1])
    await heard.aclose()
    assert first == SECONDS * FPS and heard.columns == 80 * SECONDS
    assert max(kept) <= 80 * 6, "a few seconds, of a minute"
