"""One round of Catmull–Clark subdivision, as a matrix: it rounds a coarse mesh and everything that is linear on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

Ints = npt.NDArray[np.int64]


def subdivide(quads: Ints, count: int) -> tuple[sparse.csr_matrix, Ints]:
    """The matrix (count', count) from old vertices to new ones, and the new quads (4 Q, 4).

    ``quads`` (Q, 4) over ``count`` vertices; open borders are allowed and keep their own curve.
    """
    sides = np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2)
    edges, edge_of = np.unique(np.sort(sides, 1), axis=0, return_inverse=True)
    edge_of = edge_of.reshape(quads.shape)
    faces = _rows(quads, 0.25, count)
    edge_faces = sparse.csr_matrix(
        (np.ones(edge_of.size), (edge_of.reshape(-1), np.repeat(np.arange(len(quads)), 4))), (len(edges), len(quads))
    )
    shared = np.asarray(edge_faces.sum(1)).reshape(-1)
    middle = _rows(edges, 0.5, count)
    inside = sparse.diags((shared == 2).astype(float))
    border = sparse.diags((shared != 2).astype(float))
    edge_points = inside @ (0.5 * middle + 0.25 * edge_faces @ faces) + border @ middle
    points = _old_vertices(quads, edges, shared, faces, middle, count)
    matrix = sparse.vstack([points, edge_points, faces]).tocsr()
    face_point = (count + len(edges) + np.arange(len(quads)))[:, None].repeat(4, 1)
    before, after = count + np.roll(edge_of, 1, 1), count + edge_of
    return matrix, np.stack([quads, after, face_point, before], -1).reshape(-1, 4)


def _rows(indices: Ints, weight: float, count: int) -> sparse.csr_matrix:
    """One row for each row of indices, the same weight at each of them."""
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    return sparse.csr_matrix((np.full(indices.size, weight), (rows, indices.reshape(-1))), (len(indices), count))


def _old_vertices(
    quads: Ints,
    edges: Ints,
    shared: npt.NDArray[np.float64],
    faces: sparse.csr_matrix,
    middle: sparse.csr_matrix,
    count: int,
) -> sparse.csr_matrix:
    """Where the old vertices go: (faces' mean + 2 edges' mean + (n - 3) itself) / n, on a border (1, 6, 1) / 8."""
    at_face = sparse.csr_matrix(
        (np.ones(quads.size), (quads.reshape(-1), np.repeat(np.arange(len(quads)), 4))), (count, len(quads))
    )
    ends = edges.reshape(-1)
    at_edge = sparse.csr_matrix((np.ones(edges.size), (ends, np.repeat(np.arange(len(edges)), 2))), (count, len(edges)))
    degree = np.asarray(at_edge.sum(1)).reshape(-1).clip(1)
    inner = (
        sparse.diags(1 / degree**2) @ (at_face @ faces)
        + sparse.diags(2 / degree**2) @ (at_edge @ middle)
        + sparse.diags((degree - 3) / degree)
    )
    open_edge = sparse.diags((shared != 2).astype(float))
    at_border = at_edge @ open_edge
    on_border = np.asarray(at_border.sum(1)).reshape(-1) > 0
    border = 0.25 * (at_border @ middle) + sparse.diags(np.full(count, 0.5))
    keep, swap = sparse.diags((~on_border).astype(float)), sparse.diags(on_border.astype(float))
    return (keep @ inner + swap @ border).tocsr()
