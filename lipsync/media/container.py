"""The boundary to FFmpeg: the one place that opens containers, and what its errors become."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import av
import av.container
from av.codec.context import CodecContext
from av.stream import Disposition

from lipsync.errors import DecodeTimeout, LipsyncError, TruncatedMedia, UnreadableMedia, UnsupportedMedia
from lipsync.media.source import Blob

_OLD_VIDEO = "mpeg1video mpeg2video h263 flv1 msmpeg4v1 msmpeg4v2 msmpeg4v3 wmv1 wmv2 wmv3 vc1 theora"
VIDEO_CODECS = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores", "dnxhd", "dvvideo", *_OLD_VIDEO.split(" ")}
)
_TELEPHONE_AUDIO = (
    "amr_nb amr_wb speex gsm gsm_ms adpcm_ms adpcm_ima_wav adpcm_ima_qt adpcm_g722 adpcm_g726 adpcm_g726le"
)
_WINDOWS_AUDIO = "wmav1 wmav2 wmapro wmalossless wmavoice"
AUDIO_CODECS = frozenset(
    {"aac", "alac", "ac3", "eac3", "dts", "mp1", "mp2", "mp3", "opus", "vorbis", "flac", "wavpack", "tta"}
    | {*_TELEPHONE_AUDIO.split(" "), *_WINDOWS_AUDIO.split(" ")}
)
_PCM_KINDS = "alaw mulaw s8 u8 s16le s16be u16le u16be s24le s24be s32le s32be s64le s64be f32le f32be f64le f64be"
_PCM_CODECS = frozenset(f"pcm_{kind}" for kind in f"{_PCM_KINDS} bluray dvd".split(" "))
_OTHER_NAMES = (
    "libdav1d libvpx libvpx-vp9 mp3float mp2float mp1float aac_latm libopus libvorbis amrnb amrwb "
    "dca flv msmpeg4 g722 g726 g726le"
)
_DECODERS = ",".join([*sorted(VIDEO_CODECS | AUDIO_CODECS | _PCM_CODECS), *_OTHER_NAMES.split(" ")])
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,wav,mp3,flac,ogg,aac,aiff,w64,caf,amr,au,ac3,eac3,"
    "dts,dtshd,wv,tta"
)
_OPEN_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 5.0
_NOT_SHOWN = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


def open_demuxer(blob: Blob, demuxer: str) -> av.container.InputContainer:
    """The blob in the demuxer named; use as a context manager, or its memory leaks.

    The demuxer may open nothing else: no other file, no protocol, no decoder outside the list. Raises UnreadableMedia.
    """
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none", "codec_whitelist": _DECODERS}
    if demuxer == "mov":
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    reader = blob.open()
    with media_errors("open the file"):
        return av.open(
            reader,
            "r",
            format=demuxer,
            container_options=options,
            buffer_size=1 << 16,
            metadata_errors="replace",
            timeout=(_OPEN_TIMEOUT_S, _READ_TIMEOUT_S),
            io_open=_refuse,
        )


def _refuse(url: str, flags: int, options: Any) -> NoReturn:
    raise UnsupportedMedia("The file refers to another file or address. Send one file that holds everything.")


def codec_of(stream: av.VideoStream | av.AudioStream) -> str:
    """FFmpeg's name of the stream's codec, whatever decoder was chosen: "h264", "av1", "mp3"."""
    context = cast("CodecContext | None", stream.codec_context)  # None where FFmpeg has no decoder at all
    return "unknown" if context is None else context.codec.canonical_name


def is_accepted_audio(codec: str) -> bool:
    return codec in AUDIO_CODECS or codec in _PCM_CODECS


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The picture track: the first default one that is no cover art; None where there is none."""
    shown = [stream for stream in container.streams.video if not stream.disposition & _NOT_SHOWN]
    default = [stream for stream in shown if stream.disposition & Disposition.default]
    return next(iter(default or shown), None)


def audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    """The sound track: the first default one, else the first; None where there is none."""
    streams = list(container.streams.audio)
    default = [stream for stream in streams if stream.disposition & Disposition.default]
    return next(iter(default or streams), None)


def comes_in_order(container: str, codec: str) -> bool:
    """Whether frames are told apart by counting: AVI and ASF have no presentation times, and those that FFmpeg makes up
    for reordered frames are other frames'."""
    return container in ("avi", "asf") and codec in ("h264", "hevc", "wmv3", "vc1")


def shown_at(packet: av.Packet[Any], *, in_order: bool) -> int | None:
    """When the packet's frame is shown, in ticks; with ``in_order`` when the frame in its place is."""
    return packet.dts if in_order or packet.pts is None else packet.pts


@contextmanager
def media_errors(doing: str) -> Iterator[None]:
    """Whatever FFmpeg or Pillow raise on strange bytes becomes one of our errors; "Cannot {doing}: …"."""
    try:
        yield
    except LipsyncError:
        raise
    except av.error.ExitError as error:
        raise DecodeTimeout(f"Cannot {doing}: no answer within {_READ_TIMEOUT_S:g} s. Re-encode the file.") from error
    except (av.error.DecoderNotFoundError, av.error.DemuxerNotFoundError, av.error.PatchWelcomeError) as error:
        raise UnsupportedMedia(f"Cannot {doing}: {reason_of(error)}. Convert it to H.264 mp4.") from error
    except MemoryError as error:
        if not isinstance(error, av.error.FFmpegError):  # FFmpeg's own means a header that asks for absurd sizes
            raise
        raise UnreadableMedia(f"Cannot {doing}: it asks for too much memory. Re-encode the file.") from error
    except Exception as error:  # also IndexError, UnicodeDecodeError, EOFError, SyntaxError: seen on mutated files
        reason = reason_of(error)
        if "truncated" in reason.lower():
            raise TruncatedMedia(f"Cannot {doing}: {reason}. The file was cut off; send it again.") from error
        raise UnreadableMedia(f"Cannot {doing}: {reason}. The file is damaged; re-encode it.") from error


def reason_of(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:160].rstrip(".")


class Deadline:
    """A wall clock for reading one input."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raises DecodeTimeout once the time is over."""
        if time.monotonic() > self._end:
            raise DecodeTimeout(
                f"Reading the input took longer than {self.seconds:g} s, the limit. Send a shorter or smaller file."
            )


class WorkClock:
    """A limit on the time spent inside ``with clock:``, summed over its entries; the time between does not count."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._spent_s = 0.0
        self._entered = 0.0

    def restart(self) -> None:
        self._spent_s = 0.0

    def check(self) -> None:
        """Raises DecodeTimeout once the time is used up; to be called inside."""
        if self._spent_s + time.monotonic() - self._entered > self._limit_s:
            raise DecodeTimeout(
                f"Decoding the input took longer than {self._limit_s:g} s, the limit. Send a shorter or smaller file."
            )

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._spent_s += time.monotonic() - self._entered
