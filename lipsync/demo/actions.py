"""What a face can do: the names of the actions, in the order of every weight vector."""

from __future__ import annotations

SINGLE_ACTIONS = ("jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthRollLower", "mouthRollUpper")
PAIRED_ACTIONS = ("mouthSmile", "mouthStretch", "mouthPress", "mouthLowerDown", "mouthUpperUp", "eyeBlink", "browInner")
ACTIONS = SINGLE_ACTIONS + PAIRED_ACTIONS
"""What a face can do here; a paired action moves both sides alike. Action weights are vectors in this order."""

SPOKEN = tuple(name for name in ACTIONS if name not in ("mouthClose", "eyeBlink", "browInner"))
"""The actions that speech drives."""
