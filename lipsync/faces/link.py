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
MOST_DISTANCE = 2.0
"""A face that no longer overlaps its last box may have moved this far, in sides of that box."""
MOST_GROWTH = 2.5
MOST_GROWTH_APART = 1.5
"""From one look to the next a face may become this many times larger or smaller; less if it no longer overlaps."""
MOST_OTHERS = 64
"""So many faces are told from the one that is followed; those seen longest ago are forgotten."""


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


@dataclass(frozen=True, slots=True)
class Seen:
    """A face where it was last seen, the other faces that were seen with it, and the link it had."""

    face: Detection
    others: tuple[Detection, ...]
    link: int

    @classmethod
    def at(cls, anchor: Anchor, face: Detection, *, link: int) -> Seen:
        return cls(face, tuple(other for other in anchor.faces if other is not face), link)

    def find(self, faces: Sequence[Detection]) -> Detection | None:
        """This face a moment later, or None.

        Everyone who was seen then takes one of ``faces``, the most likely pairs first: so a passer-by does not become
        the person behind, who is still there.
        """
        pairs = [(_likeness(old, new), i, j) for i, old in enumerate((self.face, *self.others))
                 for j, new in enumerate(faces) if _may_become(old, new)]  # fmt: skip
        taken: set[int] = set()
        found: dict[int, int] = {}
        for _, i, j in sorted(pairs, key=lambda pair: pair[0], reverse=True):
            if i not in found and j not in taken:
                found[i] = j
                taken.add(j)
        return faces[found[0]] if 0 in found else None

    def without(self, faces: Sequence[Detection]) -> Seen:
        """This face, which is not among ``faces``: all of those are others, as are those who went unseen meanwhile.

        So whoever was in sight all along does not become this face by walking to where it was.
        """
        unseen = tuple(old for old in self.others if not any(_may_become(old, new) for new in faces))
        return Seen(self.face, (*faces, *unseen)[:MOST_OTHERS], self.link)

    def find_in_place(self, faces: Sequence[Detection]) -> Detection | None:
        """The face that overlaps this one most, whoever it is."""
        in_place = [face for face in faces if overlap_of(self.face, face) >= LEAST_OVERLAP]
        return max(in_place, key=lambda face: overlap_of(self.face, face), default=None)


def _may_become(old: Detection, new: Detection) -> bool:
    ratio = _side(new) / max(_side(old), 1e-6)
    growth = max(ratio, 1 / max(ratio, 1e-6))
    if overlap_of(old, new) >= LEAST_OVERLAP:
        return growth <= MOST_GROWTH
    return growth <= MOST_GROWTH_APART and _distance(old, new) <= MOST_DISTANCE * _side(old)


def _likeness(old: Detection, new: Detection) -> tuple[float, float]:
    """More overlap first, then less distance."""
    return overlap_of(old, new), -_distance(old, new)


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
        self._last: Seen | None = None
        self._last_time_s = 0.0
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
        if self._last is not None:
            found, last = self._search(self._last)
            if found:
                return found
            if not self._gives_up:
                self._last = last
                return [self._without_face(anchor) for anchor in self._unsure]
            if self._unsure[-1].time_s - self._last_time_s <= GAP_S:
                return []
        first = self._unsure[0]
        face = self._choose(first.faces)
        self._last = None
        if face is None:
            return [self._without_face(first)]
        self._link += 1
        return [self._with_face(first, face)]

    def _search(self, last: Seen) -> tuple[list[Linked], Seen]:
        """The unsure anchors up to the one that shows the face again, or none and what was learnt of the others."""
        for i, anchor in enumerate(self._unsure):
            face = last.find(anchor.faces)
            if face is not None:
                return [*map(self._without_face, self._unsure[:i]), self._with_face(anchor, face)], last
            last = last.without(anchor.faces)
        return [], last

    def _with_face(self, anchor: Anchor, face: Detection) -> Linked:
        self._last, self._last_time_s = Seen.at(anchor, face, link=self._link), anchor.time_s
        return Linked(anchor.frame, anchor.time_s, face, self._link)

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
        self._last: Seen | None = None
        self._link = 0

    def feed(self, anchor: Anchor) -> list[Linked]:
        if self._last is not None:
            return [self._step(self._last, anchor)]
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
        self._last = Seen.at(waiting[at], face, link=0)
        before = _go_back(waiting[:at], self._last, cut=waiting[at].starts_scene)
        taken = Linked(waiting[at].frame, waiting[at].time_s, face, 0)
        return [*before, taken, *(self._step(self._last, anchor) for anchor in waiting[at + 1 :])]

    def _step(self, last: Seen, anchor: Anchor) -> Linked:
        self._link += anchor.starts_scene
        self._last, linked = _find_again(last, anchor, link=self._link)
        return linked

    def _distance_to_point(self, face: Detection) -> tuple[float, float]:
        """Distance to the box (0 inside), then to its centre."""
        dx = max(face.x1 - self._x, 0.0, self._x - face.x2)
        dy = max(face.y1 - self._y, 0.0, self._y - face.y2)
        off_x, off_y = (face.x1 + face.x2) / 2 - self._x, (face.y1 + face.y2) / 2 - self._y
        return dx * dx + dy * dy, off_x * off_x + off_y * off_y


def _go_back(anchors: Sequence[Anchor], last: Seen, *, cut: bool) -> list[Linked]:
    """``anchors`` linked from last to first; links count down from 0. ``cut``: there is one right after them."""
    linked: list[Linked] = []
    link = 0
    for anchor in reversed(anchors):
        link -= cut
        last, found = _find_again(last, anchor, link=link)
        linked.append(found)
        cut = anchor.starts_scene
    return linked[::-1]


def _find_again(last: Seen, anchor: Anchor, *, link: int) -> tuple[Seen, Linked]:
    """Within a scene (a link) the face is followed; in another scene only its place counts."""
    face = last.find(anchor.faces) if link == last.link else last.find_in_place(anchor.faces)
    if face is not None:
        seen = Seen.at(anchor, face, link=link)
    else:
        seen = last.without(anchor.faces) if link == last.link else last
    return seen, Linked(anchor.frame, anchor.time_s, face, link)
