"""How much boxes overlap, and greedy suppression of all but the best of those that do."""

from __future__ import annotations

import numpy as np

from lipsync.core import F32, I64, Detection


def intersection_over_union(box: F32, others: F32, *, extra_px: float = 0.0) -> F32:
    """IoU of one (4,) box with (n, 4) others. ``extra_px=1`` counts sides as pixels inclusive, as S3FD does."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    inner = np.clip(high - low + extra_px, 0.0, None).prod(axis=1)
    area = (box[2:] - box[:2] + extra_px).prod()
    areas = (others[:, 2:] - others[:, :2] + extra_px).prod(axis=1)
    iou: F32 = inner / np.maximum(area + areas - inner, np.finfo(np.float32).tiny)
    return iou


def suppress(boxes: F32, scores: F32, *, threshold: float, extra_px: float = 0.0) -> I64:
    """Rows of (n, 4) boxes that survive, best score first: each drops all others that overlap it by more."""
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[intersection_over_union(boxes[best], boxes[order], extra_px=extra_px) <= threshold]
    return np.array(kept, dtype=np.int64)


def overlap_of(a: Detection, b: Detection) -> float:
    """IoU of two detections."""
    width = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    height = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    inner = width * height
    return inner / (a.area + b.area - inner) if inner > 0 else 0.0
