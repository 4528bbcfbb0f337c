"""The application: the deployments, composed. The only place where anything is bound.

Ingress ──▶ Admission
   ├──────▶ Preprocessor
   └──────▶ Renderer ──▶ Generator
"""

import ray
from ray import serve
from ray.serve import Application, Deployment

from .admission import Admission
from .generator import Generator
from .ingress import Ingress
from .preprocessor import Preprocessor
from .renderer import Renderer
from .settings import Settings


# NOTE: no ``from __future__ import annotations`` here: Ray reads the annotation to make Settings of the YAML's args
def build(settings: Settings) -> Application:
    """What ``serve_config.yaml`` names."""
    device = _device(settings)
    return compose(settings, device=device, num_gpus=settings.generator.gpus if device == "cuda" else 0)


def compose(
    settings: Settings,
    *,
    device: str,
    num_gpus: float,
    preprocessor: type[Preprocessor] = Preprocessor,
    renderer: type[Renderer] = Renderer,
    generator: type[Generator] = Generator,
) -> Application:
    """The application; other classes of the same kind may stand in for a deployment's own."""
    # a GPU node keeps a core back for it: one that Ray counts could go to a waiting Renderer while a Generator restarts
    gpu = {"num_gpus": num_gpus, "num_cpus": 0 if num_gpus else 1}
    drawing = _deployment(generator, "Generator").options(ray_actor_options=gpu).bind(settings, device)
    return _deployment(serve.ingress()(Ingress), "Ingress").bind(
        settings,
        _deployment(preprocessor, "Preprocessor").bind(settings),
        _deployment(renderer, "Renderer").bind(settings, drawing),
        drawing,
        _deployment(Admission, "Admission").options(ray_actor_options={"num_cpus": 0}).bind(settings.admission),
    )


def _deployment(replica: type, name: str) -> Deployment:
    made: Deployment = serve.deployment(replica).options(name=name)  # type: ignore[attr-defined]
    return made


def _device(settings: Settings) -> str:
    if settings.generator.device != "auto":
        return settings.generator.device
    resources: dict[str, float] = ray.cluster_resources() if ray.is_initialized() else {}
    has_gpus = resources.get("GPU", 0) > 0
    return "cuda" if has_gpus else "cpu"
