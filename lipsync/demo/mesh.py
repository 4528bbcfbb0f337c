"""The parametric head: anny's mesh with its facial actions, cut down to what a portrait shows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import anny
import numpy as np
import numpy.typing as npt
import torch
from anny.utils.obj_utils import load_obj_file
from scipy import sparse

from lipsync.core import F32, F64, I32, Bool
from lipsync.demo.actions import SINGLE_ACTIONS
from lipsync.demo.subdivide import subdivide

SKIN, INSIDE, TONGUE, EYE, TEETH, LASH, CLOTH = range(7)
"""What a vertex is made of, for the shader."""

NEUTRAL = {
    "gender": 0.5, "age": 0.6, "muscle": 0.5, "weight": 0.5, "height": 0.5, "proportions": 0.8,
    "cupsize": 0.4, "firmness": 0.5, "african": 0.33, "asian": 0.33, "caucasian": 0.34,
}  # fmt: skip
LOWEST_M = -0.32
"""Where the portrait's mesh ends, below the shoulders' top, in metres on the canonical body."""

_PARTS = (
    ("helper-l-eye", EYE),
    ("helper-r-eye", EYE),
    ("helper-tongue", TONGUE),
    ("helper-upper-teeth", TEETH),
    ("helper-lower-teeth", TEETH),
    ("helper-l-eyelashes-2", LASH),
    ("helper-r-eyelashes-2", LASH),
)


@dataclass(frozen=True, eq=False)
class HeadMesh:
    """The topology that all people share; metres, y up, z to the viewer."""

    triangles: I32  # (T, 3)
    material: I32  # (V,) SKIN to CLOTH
    canonical: F64  # (V, 3) the neutral body
    lip: F32  # (V,) 0..1 how much lip
    inner: F32  # (V,) 0..1 how much inside of the mouth
    ear: F32  # (V,) 0..1 how much ear
    kept: npt.NDArray[np.int64]  # (K,) the base mesh's vertices that the cut keeps
    finer: sparse.csr_matrix  # (V, K) from the kept vertices to this mesh's
    parts: Mapping[str, npt.NDArray[np.int64]]  # part name -> its vertices

    @property
    def skull(self) -> Bool:
        """Vertices that no facial action moves: the upper head."""
        above: Bool = (self.material == SKIN) & (self.canonical[:, 1] > 0.205)
        return above


@lru_cache(maxsize=1)
def _model() -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: torch.nn.Module = anny.create_head_model(
            facial_actions=True, all_phenotypes=True, remove_unattached_vertices=False
        )
    return model


def _data(name: str) -> Path:
    return Path(anny.__file__).parent / "data" / name


@torch.no_grad()
def shape(phenotype: Mapping[str, float], actions: Mapping[str, float] | None = None) -> F64:
    """All base-mesh vertices (19158, 3) in metres for a phenotype and one set of facial actions."""
    phenotypes = {k: torch.tensor([float(v)]) for k, v in {**NEUTRAL, **phenotype}.items()}
    weights = {k: torch.tensor([float(v)]) for k, v in (actions or {}).items()}
    vertices = _model()(phenotype_kwargs=phenotypes, facial_actions=weights)["vertices"][0]
    return np.asarray(vertices.numpy(), np.float64)


def shown_shape(phenotype: Mapping[str, float], actions: Mapping[str, float] | None = None) -> F64:
    """The same for the portrait's own vertices (V, 3)."""
    mesh = head_mesh()
    return np.asarray(mesh.finer @ shape(phenotype, actions)[mesh.kept])


def unit_action(name: str) -> dict[str, float]:
    """The model's own weights for one of our actions at full strength."""
    if name == "browInner":
        return {"browInnerUp": 1.0}
    return {name: 1.0} if name in SINGLE_ACTIONS else {f"{name}Left": 1.0, f"{name}Right": 1.0}


@lru_cache(maxsize=1)
def head_mesh() -> HeadMesh:
    """The head, neck and shoulders, with eyes, tongue, teeth and lashes; read once from anny's data."""
    import cv2

    _, coordinates, groups = load_obj_file(str(_data("mpfb2/3dobjs/base.obj")), dtype=torch.float64)
    canonical = shape({})
    quads, corner_uv, material = [], [], np.zeros(len(canonical), np.int32)
    body = groups["body"]["face_vertex_indices"].numpy()
    high = (canonical[body][:, :, 1] > LOWEST_M).all(1) & (np.abs(canonical[body][:, :, 0]) < 0.30).all(1)
    quads.append(body[high])
    corner_uv.append(groups["body"]["face_texture_coordinate_indices"].numpy()[high])
    for part, kind in _PARTS:
        faces = groups[part]["face_vertex_indices"].numpy()
        quads.append(faces)
        corner_uv.append(groups[part]["face_texture_coordinate_indices"].numpy())
        material[np.unique(faces)] = kind
    quad, corner = np.concatenate(quads), np.concatenate(corner_uv)
    kept, inverse = np.unique(quad, return_inverse=True)
    quad = inverse.reshape(quad.shape)
    uv = np.zeros((len(kept), 2), np.float32)
    uv[quad.reshape(-1)] = coordinates.numpy()[corner.reshape(-1)]
    finer, quad = subdivide(quad, len(kept))
    skin = material[kept] == SKIN

    def painted(texture: str) -> F32:
        stored = np.fromfile(_data(f"mpfb2/textures/{texture}"), np.uint8)
        image = np.asarray(cv2.imdecode(stored, cv2.IMREAD_GRAYSCALE), np.float32) / 255
        height, width = image.shape
        rows = np.clip(((1 - uv[:, 1]) * (height - 1)).round().astype(int), 0, height - 1)
        columns = np.clip((uv[:, 0] * (width - 1)).round().astype(int), 0, width - 1)
        return np.where(skin, image[rows, columns], 0).astype(np.float32)

    inner = painted("mpfb_inside-mouth.jpg")
    lip = (painted("mpfb_lips.jpg") * (inner < 0.5)).astype(np.float32)
    smooth = (finer @ np.stack([lip, inner, painted("mpfb_ears.jpg")], 1)).astype(np.float32)
    kind = np.rint(finer @ material[kept]).astype(np.int32)
    numbered = np.full(len(canonical), -1)
    numbered[kept] = np.arange(len(kept))
    parts = {}
    for part, _ in _PARTS:
        coarse = np.zeros(len(kept))
        coarse[numbered[np.unique(groups[part]["face_vertex_indices"].numpy())]] = 1
        parts[part] = np.flatnonzero(finer @ coarse > 0.5)
    triangles = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]).astype(np.int32)
    return HeadMesh(
        triangles, kind, finer @ canonical[kept], smooth[:, 0], smooth[:, 1], smooth[:, 2], kept, finer, parts
    )
