"""Which of the faces at each anchor is the one that speaks: chosen once per scene, then followed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lipsync.core import Detection
from lipsync.faces.overlap import overlap_of

GAP_S = 1.0
"""A face that is not seen for longer than this is lost; shorter gaps are bridged."""
LEAST_OVERLAP = 0.1
MOST_DISTANCE = 1.0
"""A face that no longer overlaps its last box may have moved this far, in sides of that box."""
MOST_GROWTH = 2.5


@dataclass(frozen=True, slots=True)
class Anchor:
    """The faces seen in one source frame."""

    frame: int
    time_s: float
    faces: Sequence[Detection]
    starts_scene: bool


@dataclass(frozen=True, slots=True)
class Linked:
    """The chosen face at an anchor, or None. Anchors with one ``link`` show one face in one scene."""

    frame: int
    time_s: float
    face: Detection | None
    link: int


class Follower(Protocol):
    """Takes anchors in order; gives each back with its face, in order, once that is certain."""

    def feed(self, anchor: Anchor) -> Iterable[Linked]: ...

    def finish(self) -> Iterable[Linked]: ...


def create_follower(
    choice: Literal["largest", "highest_score", "index", "point"],
    *,
    index: int = 0,
    point: tuple[float, float, float] | None = None,
) -> Follower:
    """The follower for a way of choosing: see FollowChosen and FollowPoint."""
    if choice == "point":
        assert point is not None, "Options has checked this"
        return FollowPoint(point)
    if choice == "index":
        return FollowChosen(lambda faces: _nth_from_left(faces, index), gives_up=False)
    if choice == "largest":
        return FollowChosen(lambda faces: max(faces, key=lambda face: face.area, default=None), gives_up=True)
    return FollowChosen(_best, gives_up=True)


def _best(faces: Sequence[Detection]) -> Detection | None:
    return max(faces, key=lambda face: face.score, default=None)


def _nth_from_left(faces: Sequence[Detection], n: int) -> Detection | None:
    ordered = sorted(faces, key=lambda face: (face.x1 + face.x2, face.y1 + face.y2))
    return ordered[n] if n < len(ordered) else None


def same_face(last: Detection, faces: Sequence[Detection]) -> Detection | None:
    """The face that most likely is ``last`` a moment later: most overlap, then least distance; None if all are far."""

    def likeness(face: Detection) -> tuple[float, float]:
        return overlap_of(last, face), -_distance(last, face)

    near = [face for face in faces if _may_be(last, face)]
    return max(near, key=likeness, default=None)


def _may_be(last: Detection, face: Detection) -> bool:
    growth = _side(face) / max(_side(last), 1e-6)
    if not 1 / MOST_GROWTH <= growth <= MOST_GROWTH:
        return False
    return overlap_of(last, face) >= LEAST_OVERLAP or _distance(last, face) <= MOST_DISTANCE * _side(last)


def _side(face: Detection) -> float:
    return math.sqrt(face.area)


def _distance(a: Detection, b: Detection) -> float:
    dx, dy = (a.x1 + a.x2 - b.x1 - b.x2) / 2, (a.y1 + a.y2 - b.y1 - b.y2) / 2
    return math.hypot(dx, dy)


class FollowBest:
    """The highest score at every anchor, whoever it is: the reference's rule."""

    def feed(self, anchor: Anchor) -> list[Linked]:
        return [Linked(anchor.frame, anchor.time_s, _best(anchor.faces), 0)]

    def finish(self) -> list[Linked]:
        return []


class FollowChosen:
    """Chooses at the first anchor of a scene where ``choose`` finds one, then follows that face to the scene's end.

    With ``gives_up``, a face not seen for more than GAP_S is lost, and the choice is made anew from the first anchor
    after it was last seen. Without, nobody takes its place until the scene ends. Looks ahead by GAP_S at most.
    """

    def __init__(self, choose: Callable[[Sequence[Detection]], Detection | None], *, gives_up: bool) -> None:
        self._choose = choose
        self._gives_up = gives_up
        self._last: Linked | None = None
        self._link = 0
        self._unsure: list[Anchor] = []  # anchors since the followed face was last seen

    def feed(self, anchor: Anchor) -> Iterator[Linked]:
        if anchor.starts_scene:
            yield from self.finish()
            self._last = None
            self._link += 1
        self._unsure.append(anchor)
        while self._unsure:
            settled = self._settle()
            if not settled:
                return
            del self._unsure[: len(settled)]
            yield from settled

    def finish(self) -> Iterator[Linked]:
        yield from (self._without_face(anchor) for anchor in self._unsure)
        self._unsure.clear()

    def _settle(self) -> list[Linked]:
        """The next unsure anchors that are now certain; none if more must be seen."""
        if self._last is not None and not self._is_lost():
            return self._follow(self._last)
        if self._last is not None and not self._gives_up:
            return self._follow(self._last) or [self._without_face(anchor) for anchor in self._unsure]
        first = self._unsure[0]
        face = self._choose(first.faces)
        self._last = None
        if face is None:
            return [self._without_face(first)]
        self._link += 1
        return [self._with_face(first, face)]

    def _is_lost(self) -> bool:
        assert self._last is not None and self._last.face is not None
        seen_again = any(same_face(self._last.face, anchor.faces) for anchor in self._unsure)
        return not seen_again and self._unsure[-1].time_s - self._last.time_s > GAP_S

    def _follow(self, last: Linked) -> list[Linked]:
        assert last.face is not None
        for i, anchor in enumerate(self._unsure):
            face = same_face(last.face, anchor.faces)
            if face is not None:
                return [*map(self._without_face, self._unsure[:i]), self._with_face(anchor, face)]
        return []

    def _with_face(self, anchor: Anchor, face: Detection) -> Linked:
        self._last = Linked(anchor.frame, anchor.time_s, face, self._link)
        return self._last

    def _without_face(self, anchor: Anchor) -> Linked:
        return Linked(anchor.frame, anchor.time_s, None, self._link)


class FollowPoint:
    """The face at (x, y) at a time, followed forward and backward from there.

    Taken at the anchor nearest to the time among those with faces: the face that holds the point, else the nearest.
    In other scenes, the face in the same place as where it was last seen goes on; where there is none, nobody does.
    Nothing is certain before that anchor has been seen, so all until then is held back.
    """

    def __init__(self, point: tuple[float, float, float]) -> None:
        self._x, self._y, self._time_s = point
        self._waiting: list[Anchor] = []
        self._last: Detection | None = None
        self._link = 0

    def feed(self, anchor: Anchor) -> list[Linked]:
        if self._last is not None:
            return [self._step(anchor)]
        self._waiting.append(anchor)
        return self._start() if anchor.faces and anchor.time_s >= self._time_s else []

    def finish(self) -> list[Linked]:
        return self._start()

    def _start(self) -> list[Linked]:
        waiting, self._waiting = self._waiting, []
        with_faces = [i for i, anchor in enumerate(waiting) if anchor.faces]
        if not with_faces:
            return [Linked(anchor.frame, anchor.time_s, None, 0) for anchor in waiting]
        at = min(with_faces, key=lambda i: abs(waiting[i].time_s - self._time_s))
        face = min(waiting[at].faces, key=self._distance_to_point)
        before = self._go_back(waiting[: at + 1], face)
        self._last = face
        return [*before, *(self._step(anchor) for anchor in waiting[at + 1 :])]

    def _go_back(self, anchors: Sequence[Anchor], face: Detection) -> list[Linked]:
        """``anchors`` up to the one where ``face`` was taken, linked from last to first; links count down from 0."""
        last, link = face, 0
        linked: list[Linked] = []
        for anchor in reversed(anchors):
            found = same_face(last, anchor.faces)
            last = found or last
            linked.append(Linked(anchor.frame, anchor.time_s, found, link))
            link -= anchor.starts_scene
        return linked[::-1]

    def _step(self, anchor: Anchor) -> Linked:
        assert self._last is not None
        self._link += anchor.starts_scene
        face = same_face(self._last, anchor.faces)
        self._last = face or self._last
        return Linked(anchor.frame, anchor.time_s, face, self._link)

    def _distance_to_point(self, face: Detection) -> tuple[float, float]:
        """Distance to the box (0 inside), then to its centre."""
        dx = max(face.x1 - self._x, 0.0, self._x - face.x2)
        dy = max(face.y1 - self._y, 0.0, self._y - face.y2)
        off_x, off_y = (face.x1 + face.x2) / 2 - self._x, (face.y1 + face.y2) / 2 - self._y
        return dx * dx + dy * dy, off_x * off_x + off_y * off_y
