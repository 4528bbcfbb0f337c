"""Every error that this library raises: one tree, a stable slug each.

    LipsyncError                      error
    ├── InputError                    bad_input            the caller's input is at fault: never retried
    │   ├── InvalidOption             invalid_option
    │   ├── MalformedRequest          malformed_request
    │   ├── InputCrashedWorker        input_crashed_worker
    │   ├── InvalidBoxes              invalid_boxes
    │   ├── UnreadableMedia           media_unreadable
    │   │   └── TruncatedMedia        media_truncated
    │   ├── UnsupportedMedia          media_unsupported
    │   ├── NoVideoStream             no_video_stream
    │   ├── NoAudioStream             no_audio_stream
    │   ├── LimitExceeded             limit_exceeded
    │   │   ├── InputTooLarge         input_too_large
    │   │   └── DecodeTimeout         decode_timeout
    │   ├── NonFiniteAudio            audio_not_finite
    │   ├── NoFace                    no_face
    │   └── FaceMissing               face_missing
    ├── CheckpointError               checkpoint_error
    │   ├── CheckpointNotFound        checkpoint_not_found
    │   ├── CheckpointUnreadable      checkpoint_unreadable
    │   ├── CheckpointMismatch        checkpoint_mismatch
    │   └── CheckpointUntrusted       checkpoint_untrusted
    ├── WeightsError                  weights_error
    ├── DetectorUnavailable           detector_unavailable
    ├── EngineError                   engine_error
    │   ├── DeviceUnavailable         device_unavailable
    │   ├── DeviceOutOfMemory         device_out_of_memory
    │   └── NonFiniteOutput           output_not_finite
    ├── OutputError                   output_error
    │   └── ResultTooLarge            result_too_large
    ├── ServiceError                  service_error        a served application is at fault, or refuses
    │   ├── Overloaded                overloaded
    │   ├── Unauthorized              unauthorized
    │   ├── DeadlineExceeded          deadline_exceeded
    │   ├── WorkerLost                worker_lost
    │   └── StreamBroken              stream_broken
    └── Closed                        closed

Each takes exactly one positional ``detail``, a sentence that says what is wrong and what to do, so that an
error survives pickling between processes. HTTP status codes live in the server, not here.
"""

from __future__ import annotations

from typing import ClassVar


class LipsyncError(Exception):
    """Base of all errors of this library; ``slug`` is stable, ``detail`` is for people."""

    slug: ClassVar[str] = "error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InputError(LipsyncError, ValueError):
    """What the caller sent is at fault; the same call again fails again."""

    slug = "bad_input"


class InvalidOption(InputError):
    """An option has a value outside its allowed set, or two options contradict each other."""

    slug = "invalid_option"


class MalformedRequest(InputError):
    """An HTTP request that is not what the API describes: not multipart, a part missing, twice, or unknown."""

    slug = "malformed_request"


class InputCrashedWorker(InputError):
    """Two workers died on this input; it is not tried again."""

    slug = "input_crashed_worker"


class InvalidBoxes(InputError):
    """Given face boxes do not fit the face input."""

    slug = "invalid_boxes"


class UnreadableMedia(InputError):
    """The bytes claim a known type but cannot be decoded."""

    slug = "media_unreadable"


class TruncatedMedia(UnreadableMedia):
    """The file holds less than its own headers declare."""

    slug = "media_truncated"


class UnsupportedMedia(InputError):
    """The content is of a type or codec that is not accepted."""

    slug = "media_unsupported"


class NoVideoStream(InputError):
    """The face input has no picture."""

    slug = "no_video_stream"


class NoAudioStream(InputError):
    """The voice input has no sound."""

    slug = "no_audio_stream"


class LimitExceeded(InputError):
    """The input is larger, longer or denser than the limits allow."""

    slug = "limit_exceeded"


class InputTooLarge(LimitExceeded):
    """A file, or a whole request, has more bytes than are taken."""

    slug = "input_too_large"


class DecodeTimeout(LimitExceeded):
    """Decoding took longer than the wall-clock limit."""

    slug = "decode_timeout"


class NonFiniteAudio(InputError):
    """The voice holds NaN or infinite samples."""

    slug = "audio_not_finite"


class NoFace(InputError):
    """No face was found in any frame that was looked at."""

    slug = "no_face"


class FaceMissing(InputError):
    """A frame has no face and ``on_missing_face="error"`` was asked for."""

    slug = "face_missing"


class CheckpointError(LipsyncError):
    """A generator or detector checkpoint cannot be used."""

    slug = "checkpoint_error"


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """There is no file at the checkpoint's path."""

    slug = "checkpoint_not_found"

    def __str__(self) -> str:
        return self.detail  # FileNotFoundError would format (errno, strerror)


class CheckpointUnreadable(CheckpointError):
    """The file is not a checkpoint: an HTML page, a Git LFS pointer, a cut download."""

    slug = "checkpoint_unreadable"


class CheckpointMismatch(CheckpointError):
    """The file is a checkpoint, but of another network."""

    slug = "checkpoint_mismatch"


class CheckpointUntrusted(CheckpointError):
    """The file could run code when loaded and was not explicitly trusted."""

    slug = "checkpoint_untrusted"


class WeightsError(LipsyncError):
    """A weights file could not be fetched, or is not the pinned one."""

    slug = "weights_error"


class DetectorUnavailable(LipsyncError):
    """The face detector asked for cannot run here."""

    slug = "detector_unavailable"


class EngineError(LipsyncError):
    """The generator failed on the device."""

    slug = "engine_error"


class DeviceUnavailable(EngineError):
    """The device asked for is not there."""

    slug = "device_unavailable"


class DeviceOutOfMemory(EngineError):
    """Not even one frame fits into the device's memory."""

    slug = "device_out_of_memory"


class NonFiniteOutput(EngineError):
    """The generator emitted NaN or infinite values."""

    slug = "output_not_finite"


class OutputError(LipsyncError, OSError):
    """The result cannot be written where it was asked for."""

    slug = "output_error"

    def __str__(self) -> str:
        return self.detail


class ResultTooLarge(OutputError):
    """The result outgrew what this endpoint may answer with."""

    slug = "result_too_large"


class ServiceError(LipsyncError):
    """A served application could not answer, though the request may be fine."""

    slug = "service_error"


class Overloaded(ServiceError):
    """Refused because enough is under way; the same request may succeed a little later."""

    slug = "overloaded"
    retry_after_s: float = 1.0
    """Seconds after which to try again, at the earliest."""
    reason: str = ""
    """What there is enough of: ``requests``, ``frames``, ``key`` (this API key's requests) or ``spool``."""


class Unauthorized(ServiceError):
    """The API key is missing or not one of those that are known."""

    slug = "unauthorized"


class DeadlineExceeded(ServiceError):
    """The request took longer than the application allows."""

    slug = "deadline_exceeded"


class WorkerLost(ServiceError):
    """Workers died under the same piece of work as often as it may be tried."""

    slug = "worker_lost"


class StreamBroken(ServiceError):
    """A streamed result ended before its last fragment."""

    slug = "stream_broken"


class Closed(LipsyncError):
    """The service was closed before or while the request ran."""

    slug = "closed"


def all_errors() -> list[type[LipsyncError]]:
    """Every class of the tree, the base first."""
    found: list[type[LipsyncError]] = [LipsyncError]
    for error in found:
        # Ray wraps an error of a replica in a subclass of its class, made as it goes
        found.extend(child for child in error.__subclasses__() if child.__module__ == __name__)
    return list(dict.fromkeys(found))


def named(slug: str, detail: str) -> LipsyncError:
    """The error that a slug of another process stands for; an unknown one makes a ServiceError that says it."""
    for error in all_errors():
        if error.slug == slug:
            return error(detail)
    return ServiceError(f"{detail} ({slug})" if slug else detail)
