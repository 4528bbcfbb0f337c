"""Frame rates: the common one that was meant, and the constant one that suits a clip's own timestamps."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from lipsync.core import I64, Bool, Index

_COMMON_RATES = tuple(
    Fraction(rate) for rate in (10, 12, Fraction(12_500, 1001), 15, 20, 24, 25, 30, 48, 50, 60, 100, 120)
) + tuple(Fraction(rate * 1000, 1001) for rate in (15, 24, 30, 48, 60, 120))
_SNAP = Fraction(4, 10_000)
_UNEVEN = Fraction(3, 100)
"""Frames that come at uneven distances have a rate to within about so much."""
_TWINS_S = Fraction(1, 130)
"""No camera's frames are closer than this, unless most are."""


def snap_fps(rate: Fraction, *, within: Fraction = _SNAP) -> Fraction:
    """The common rate nearest by, or ``rate`` with a small denominator: timestamps in milliseconds blur rates."""
    nearest = min(_COMMON_RATES, key=lambda common: abs(common - rate))
    return nearest if abs(nearest / rate - 1) < within else rate.limit_denominator(1001)


def steady_fps(index: Index, declared: Fraction) -> Fraction:
    """The constant rate for a clip: that of its frames where they come close together, however long it holds others.

    A recorder that writes a frame only where something changes makes an average that means nothing. About a tenth of
    the frames may come closer together than at this rate. ``declared`` (what the headers say) is taken where it agrees
    with the timestamps: it is exact where they are rounded.
    """
    steps = np.diff(index.pts_ticks)
    if len(steps) == 0:
        return declared
    is_usual = _usual(steps, index.time_base)
    usual = steps[is_usual]
    rate = 1 / (Fraction(int(usual.sum()), len(usual)) * index.time_base)
    within = _UNEVEN
    if np.ptp(usual) <= 1:  # as even as whole ticks allow: off by a tick in each stretch between holds
        stretches = 1 + np.count_nonzero(~is_usual[1:] & is_usual[:-1])
        within = _SNAP + Fraction(int(stretches), int(usual.sum()))
    return declared if abs(declared / rate - 1) < within else snap_fps(rate, within=within)


def _usual(steps: I64, time_base: Fraction) -> Bool:
    """Which steps between frames are neither holds nor twins, frames that two clocks put at almost one time."""
    is_apart = steps >= min(float(np.sort(steps)[(len(steps) - 1) // 2]), float(_TWINS_S / time_base))
    apart = np.sort(steps[is_apart])
    close = apart[len(apart) // 10]
    scattered = np.count_nonzero((apart > 1.25 * close) & (apart < 1.75 * close))
    if 20 * scattered > len(apart):  # trembling, or pulldown: no step is a hold because it is longer than the shortest
        return np.asarray(is_apart & (steps <= 3 * close))
    return np.asarray(is_apart & (4 * np.abs(steps - close) <= close))
