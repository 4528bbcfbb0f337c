"""What an input is, from its first bytes and its headers, and whether it is within the limits: no frame is decoded."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Literal

import av
import av.container

from lipsync.core import AudioInfo, Color, MediaInfo, VideoInfo
from lipsync.errors import InputTooLarge, LimitExceeded, NoAudioStream, NoVideoStream, UnreadableMedia, UnsupportedMedia
from lipsync.media.animation import frame_durations_ms
from lipsync.media.container import (
    VIDEO_CODECS,
    Deadline,
    audio_stream,
    codec_of,
    is_accepted_audio,
    media_errors,
    open_demuxer,
    video_stream,
)
from lipsync.media.rate import snap_fps
from lipsync.media.sniff import HEAD_BYTES, ContentType, sniff
from lipsync.media.source import Blob
from lipsync.media.still import still_size
from lipsync.media.structure import check_whole, orientation_of
from lipsync.options import Limits

STILL_FPS = Fraction(25)
"""The frame rate that an image is given where none is asked for."""


def probe_face(blob: Blob, limits: Limits) -> MediaInfo:
    """The face input: kind image, animation or video; sizes as shown (upright, an image scaled down to max_side).

    Raises UnsupportedMedia, UnreadableMedia, TruncatedMedia, NoVideoStream, LimitExceeded.
    """
    content = sniff_blob(blob)
    check_whole(blob, content)
    if content.kind == "image":
        return _probe_image(blob, content, limits)
    with open_container(blob, content) as container, media_errors("read the headers"):
        stream = video_stream(container)
        if stream is None:
            raise NoVideoStream("The face input has no picture, only sound. Send an image or a video as the face.")
        _check_bytes(blob, limits.video_bytes, "video")
        video = _video_info(blob, content, container, stream, limits)
        sound = audio_stream(container)
        audio = None if sound is None else _audio_info(container, sound)
    return MediaInfo("video", content.name, blob.byte_count, video, audio)


def probe_voice(blob: Blob, limits: Limits) -> MediaInfo:
    """The voice: a sound file, or a video's sound track (kind video then, without a look at its pictures).

    Raises UnsupportedMedia, UnreadableMedia, TruncatedMedia, NoAudioStream, LimitExceeded.
    """
    content = sniff_blob(blob)
    if content.kind == "image":
        raise NoAudioStream(f"The voice is an image ({content.name}). Send a sound file, or a video with sound.")
    check_whole(blob, content)
    with open_container(blob, content) as container, media_errors("read the headers"):
        kind: Literal["audio", "video"] = "audio" if video_stream(container) is None else "video"
        _check_bytes(blob, limits.video_bytes if kind == "video" else limits.audio_bytes, kind)
        stream = audio_stream(container)
        if stream is None:
            raise NoAudioStream("The voice input has no sound track. Send a sound file, or a video with sound.")
        audio = _audio_info(container, stream)
    _check_audio(audio, limits)
    return MediaInfo(kind, content.name, blob.byte_count, None, audio)


def sniff_blob(blob: Blob) -> ContentType:
    return sniff(blob.head(HEAD_BYTES))


def open_container(blob: Blob, content: ContentType) -> av.container.InputContainer:
    """The blob in the demuxer that its content names; a context manager. Raises UnreadableMedia, UnsupportedMedia."""
    if content.kind != "container":
        raise UnsupportedMedia(f"{content.name} is an image, not a container. Send a video or a sound file.")
    return open_demuxer(blob, content.name)


def open_media(blob: Blob, info: MediaInfo) -> av.container.InputContainer:
    """The container of an input that was probed before."""
    return open_demuxer(blob, info.container)


# ---------------------------------------------------------------- images


def _probe_image(blob: Blob, content: ContentType, limits: Limits) -> MediaInfo:
    _check_bytes(blob, limits.image_bytes, "image")
    durations = frame_durations_ms(blob, content, limits)
    is_moving = len(durations) > 1
    width, height = still_size(blob, content.name, limits, pixels=limits.video_pixels if is_moving else None)
    if not is_moving:
        video = VideoInfo(content.name.lower(), width, height, STILL_FPS, 0.0, 1)
        return MediaInfo("image", content.name, blob.byte_count, video)
    seconds = sum(durations) / 1000
    _check_span(seconds, len(durations), limits)
    # a slide show may be slower than the lowest rate: its frames are then repeated, never refused
    fps = min(max(Fraction(len(durations) * 1000, sum(durations)), Fraction(limits.min_fps)), Fraction(limits.max_fps))
    video = VideoInfo(content.name.lower(), width, height, fps.limit_denominator(1001), seconds, len(durations))
    return MediaInfo("animation", content.name, blob.byte_count, video)


# ---------------------------------------------------------------- video


def _video_info(
    blob: Blob,
    content: ContentType,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
) -> VideoInfo:
    codec = codec_of(stream)
    if codec not in VIDEO_CODECS:
        raise UnsupportedMedia(
            f"The video codec {codec} is not accepted; {', '.join(sorted(VIDEO_CODECS))} are. Convert it to H.264."
        )
    if content.name == "mpeg" and codec not in ("mpeg1video", "mpeg2video"):
        raise UnsupportedMedia(
            f"This is an MPEG program stream that holds {codec}, which leaves many frames without a time. "
            "Convert it to mp4."
        )
    coded_width, coded_height = stream.codec_context.width, stream.codec_context.height
    if coded_width <= 0 or coded_height <= 0:
        raise UnreadableMedia("The video's headers give no picture size. The file is damaged; re-encode it.")
    rotation, is_mirrored = orientation_of(blob, content, stream.id)
    width, height = (coded_height, coded_width) if rotation in (90, 270) else (coded_width, coded_height)
    _check_picture(width, height, limits)
    frame_count = stream.frames or None
    fps = _declared_fps(stream)
    duration = _declared_duration(container, stream)
    if fps is None or duration is None:
        counted, seconds = _scan(container, stream, limits)
        fps = fps or (snap_fps(Fraction(counted - 1) / seconds) if seconds and counted > 1 else STILL_FPS)
        duration = duration if duration is not None else float(seconds + 1 / fps)
    _check_span(duration, frame_count or 0, limits)
    color = _color(stream, coded_width, coded_height)
    aspect = _pixel_aspect(stream)
    aspect = 1 / aspect if rotation in (90, 270) else aspect
    return VideoInfo(codec, width, height, fps, duration, frame_count, rotation, is_mirrored, color, aspect)


def _declared_fps(stream: av.VideoStream) -> Fraction | None:
    """The rate that headers give: the average, or the base rate where the two agree (it is the rounder one)."""
    average, base = stream.average_rate, stream.base_rate
    if average and base and abs(base / average - 1) < Fraction(1, 100):
        return snap_fps(base)
    # an mp4's average counts also the samples that an edit list hides: ask the samples' own distances
    rate = _even_rate(stream) or average or base
    return snap_fps(rate) if rate else None


def _even_rate(stream: av.VideoStream) -> Fraction | None:
    """Frames per second where the headers list all frames and they are evenly spaced, else None."""
    times = [entry.timestamp for entry in stream.index_entries] if stream.frames else []
    distances = {later - earlier for earlier, later in pairwise(times)}
    if len(distances) != 1 or not stream.time_base or len(times) != stream.frames:
        return None
    distance = distances.pop()
    return 1 / (distance * stream.time_base) if distance > 0 else None


def _declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration and container.duration > 0 else None


def _scan(container: av.container.InputContainer, stream: av.VideoStream, limits: Limits) -> tuple[int, Fraction]:
    """Packets and seconds from first to last of a file without headers for them, as browsers record it."""
    deadline = Deadline(limits.wall_clock_min_s)
    times: list[int] = []
    for packet in container.demux(stream):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            times.append(time)
        if len(times) > limits.frames:
            break
        deadline.check()
    base = stream.time_base or Fraction(0)
    seconds = (max(times) - min(times)) * base if times else Fraction(0)
    _check_span(float(seconds), len(times), limits)
    return len(times), seconds


_WIDEST_PIXEL = 4


def _pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width over height of a coded pixel; 1 where nothing, or nothing that makes sense, is said."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return aspect.limit_denominator(1000) if 1 <= _WIDEST_PIXEL * aspect <= _WIDEST_PIXEL**2 else Fraction(1)


_MATRICES: dict[int, Literal["bt709", "bt601", "bt2020"]] = {
    0: "bt709", 1: "bt709", 4: "bt601", 5: "bt601", 6: "bt601", 7: "bt601", 9: "bt2020", 10: "bt2020",
}  # fmt: skip
_TRANSFERS: dict[int, Literal["pq", "hlg"]] = {16: "pq", 18: "hlg"}


def _color(stream: av.VideoStream, width: int, height: int) -> Color:
    """From the stream's tags (ITU-T H.273 numbers); untagged pictures are BT.709 from 720 lines or 1280 columns on."""
    context = stream.codec_context
    guess: Literal["bt709", "bt601"] = "bt709" if width >= 1280 or height >= 720 else "bt601"
    is_full = context.color_range == 2 or (context.pix_fmt or "").startswith("yuvj")
    return Color(_MATRICES.get(context.colorspace, guess), is_full, _TRANSFERS.get(context.color_trc, "sdr"))


# ---------------------------------------------------------------- audio


def _audio_info(container: av.container.InputContainer, stream: av.AudioStream) -> AudioInfo:
    context = stream.codec_context
    duration = None
    if stream.duration and stream.duration > 0 and stream.time_base:
        duration = float(stream.duration * stream.time_base)
    elif container.duration and container.duration > 0:
        duration = container.duration / av.time_base
    codec = codec_of(stream)
    if codec == "unknown":
        return AudioInfo(codec, 0, 0, duration)
    return AudioInfo(codec, context.sample_rate or 0, context.layout.nb_channels, duration)


def _check_audio(audio: AudioInfo, limits: Limits) -> None:
    if not is_accepted_audio(audio.codec):
        raise UnsupportedMedia(f"The audio codec {audio.codec} is not accepted. Convert it to AAC, mp3 or wav.")
    if audio.sample_rate_hz <= 0 or audio.channels <= 0:
        raise UnreadableMedia("The sound's headers give no sample rate or channels. The file is damaged; re-encode it.")
    if not limits.min_sample_rate_hz <= audio.sample_rate_hz <= limits.max_sample_rate_hz:
        raise LimitExceeded(
            f"The voice has {audio.sample_rate_hz} samples per second; {limits.min_sample_rate_hz} to "
            f"{limits.max_sample_rate_hz} are allowed. Resample it."
        )
    if audio.channels > limits.channels:
        raise LimitExceeded(
            f"The voice has {audio.channels} channels; at most {limits.channels} are allowed. Mix it down."
        )
    if audio.duration_s is not None and audio.duration_s > limits.duration_s:
        raise LimitExceeded(
            f"The voice lasts {audio.duration_s:.1f} s; at most {limits.duration_s:g} s are allowed. Shorten it."
        )


# ---------------------------------------------------------------- limits


def _check_bytes(blob: Blob, limit: int, kind: str) -> None:
    if blob.byte_count > limit:
        raise InputTooLarge(
            f"The {kind} has {blob.byte_count:,} bytes; at most {limit:,} are allowed. Send a smaller file."
        )


def _check_picture(width: int, height: int, limits: Limits) -> None:
    if min(width, height) < limits.min_side:
        raise LimitExceeded(f"The video is {width}×{height}; each side must have at least {limits.min_side} pixels.")
    if max(width, height) > limits.max_side or width * height > limits.video_pixels:
        raise LimitExceeded(
            f"The video is {width}×{height}; at most {limits.max_side} pixels a side and {limits.video_pixels:,} in "
            "all are allowed. Scale it down."
        )


def _check_span(seconds: float, frames: int, limits: Limits) -> None:
    if seconds > limits.duration_s:
        raise LimitExceeded(
            f"The video lasts {seconds:.1f} s; at most {limits.duration_s:g} s are allowed. Shorten it."
        )
    if frames > limits.frames:
        raise LimitExceeded(f"The video has {frames} frames; at most {limits.frames} are allowed. Shorten it.")
