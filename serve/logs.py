"""What replicas say on standard output: one JSON line for each request, and nothing from libraries that chatter."""

from __future__ import annotations

import json
import logging

import cv2


def quiet_opencv() -> None:
    """OpenCV 5 warns for each YuNet it loads that it ignores a setting of its own."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


def log_request(fields: dict[str, object]) -> None:
    """One line for one request; names as in its response headers, ``error`` where it was refused or failed."""
    logging.getLogger("ray.serve").info(json.dumps({"event": "request"} | fields))
