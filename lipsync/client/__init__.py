"""Calls a served application over HTTP: the same face and voice in, the same mp4 and the same errors out.

    with Client("http://localhost:8000") as client:
        client.lipsync("face.jpg", "voice.wav", output_path="out.mp4", options=Options(crf=20))

``Client`` blocks, ``AsyncClient`` awaits; everything else they share. A request is a pure function of its inputs, so a
lost connection, a full server or a dead worker is met by sending it again, within ``Retries`` and ``timeout_s``.
"""

from lipsync.client.asynchronous import AsyncClient, AsyncStream
from lipsync.client.blocking import Client, Stream
from lipsync.client.exchange import Retries
from lipsync.client.receive import Result
from lipsync.client.upload import Transfer

__all__ = ["AsyncClient", "AsyncStream", "Client", "Result", "Retries", "Stream", "Transfer"]
