"""Deployments with known costs, for measuring and testing what lies between them: real calls, real objects, real order.

``build`` is an application builder like ``serve.app.build``, with a ``stand_in`` section beside the real settings.
"""

from ray.serve import Application

from benchmarks.stand_in_generator import StandInGenerator
from benchmarks.stand_in_renderer import StandInRenderer
from benchmarks.stand_in_settings import StandInSettings
from serve import app


def build(settings: StandInSettings) -> Application:
    """The application with what ``settings.stand_in`` says in place of the real things."""
    return app.compose(
        settings,
        device="cpu",
        num_gpus=settings.stand_in.num_gpus,
        renderer=StandInRenderer,
        generator=StandInGenerator,
    )
