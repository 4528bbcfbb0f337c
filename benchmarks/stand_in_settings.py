"""Settings of the application with stand-ins. Light to import: every replica does."""

from pydantic import BaseModel, ConfigDict

from serve.settings import Settings


class StandIn(BaseModel):
    """What is not the real thing, and what it costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_gpus: float = 0.0
    """GPUs that a Generator declares; its network runs on a CPU all the same."""
    batch_s: float | None = None
    """A device that takes this long for every batch and draws the crop that it was given; none: the real engine."""
    batch_size: int = 512
    encode_s: float | None = None
    """An encoder that sleeps this long for each frame and makes no video; none: the real encoder."""
    fails_once: str | None = None
    """A path: the device that creates the file there fails for good at its first batch."""
    rescues: bool = False
    """That device says, after its first batch, that it ran out of memory once and drew a frame again."""
    leaks: bool = False
    """Renderers that keep, for each segment, a megabyte of memory and one of shared memory, an open temporary file and
    a thread."""
    poison: str | None = None
    """A Renderer kills itself on the face with this SHA-256, as a fault in a decoder would."""


class StandInSettings(Settings):
    stand_in: StandIn = StandIn()
