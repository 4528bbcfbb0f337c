"""The ladder: what each technique of the engine is worth on the machine at hand, with the quality beside the speed.

``python -m lipsync.bench`` needs torch, numpy and OpenCV alone; its end-to-end rows want the media libraries too, and
say so where these are missing.
"""
