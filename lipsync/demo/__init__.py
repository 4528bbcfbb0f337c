"""How the packaged faces, voices and generator are made: a renderer, a synthesiser, a data set, a training.

A development extra: it wants ``anny``, ``numba``, ``scipy`` and espeak-ng, and nothing else in the library imports it.
"""
