"""Small measures of agreement between two curves."""

from __future__ import annotations

import numpy as np

from lipsync.core import F32


def correlation(a: F32, b: F32, shift: int = 0) -> float:
    """Pearson's correlation of a[i + shift] with b[i]; NaN where either stands still."""
    count = len(b)
    a, b = a[max(0, shift) : count + min(0, shift)], b[max(0, -shift) : count - max(0, shift)]
    if min(a.std(), b.std()) < 1e-5:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def lag(a: F32, b: F32, *, reach: int = 5) -> int:
    """How many frames a comes after b, by the best correlation within the reach."""
    values = [correlation(a, b, shift) for shift in range(-reach, reach + 1)]
    return int(np.nanargmax(values)) - reach
