"""The last box of a stream: written, read back in any pieces, and missed when it is not there."""

import itertools
import random
import struct
import uuid
from fractions import Fraction

import pytest
from flash_clip import Clip, encode, play
from hypothesis import given
from hypothesis import strategies as st

from lipsync.ending import KIND, LARGEST_BOX, Complete, EndingReader, complete, failed
from lipsync.errors import LipsyncError, NoFace, ServiceError, StreamBroken, all_errors
from lipsync.media.mp4 import write_progressive_bytes

END = complete(frames=75, fps=Fraction(30000, 1001), timings_ms={"decode": 12.3456, "total": 99})
WHOLE = Complete(75, Fraction(30000, 1001), {"decode": 12.346, "total": 99.0})


def box(name: bytes, body: bytes, *, large: bool = False) -> bytes:
    if large:
        return struct.pack(">I4sQ", 1, name, 16 + len(body)) + body
    return struct.pack(">I4s", 8 + len(body), name) + body


OTHER = box(b"uuid", uuid.UUID(int=7).bytes + b"priming")
MEDIA = [box(b"ftyp", b"isom"), box(b"moov", bytes(90)), OTHER, box(b"moof", b""), box(b"mdat", bytes(range(256)))]


def read(pieces):
    reader = EndingReader()
    media = b"".join(map(reader.feed, pieces))
    return media, reader


def cut(data: bytes, places):
    edges = [0, *sorted(places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


@given(st.data())
def test_any_row_of_boxes_comes_out_the_same_however_it_is_cut(data):
    names = st.sampled_from([b"moof", b"mdat", b"free", b"uuid"])
    boxes = data.draw(st.lists(st.builds(box, names, st.binary(max_size=60), large=st.booleans()), max_size=6))
    media = b"".join(boxes)
    stream = media + END
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    out, reader = read(cut(stream, places))
    assert out == media
    assert reader.finish() == WHOLE


def test_byte_by_byte_only_what_may_be_an_ending_is_held_back():
    media = b"".join(MEDIA)
    reader = EndingReader()
    most, seen = 0, 0
    for position in range(len(media)):
        seen += len(reader.feed(media[position : position + 1]))
        most = max(most, position + 1 - seen)
    assert seen == len(media)
    assert most == 23  # another uuid box's header, one byte before it is known


def test_a_piece_of_media_is_passed_on_in_the_same_call():
    reader = EndingReader()
    assert reader.feed(box(b"mdat", bytes(1000))[:500]) == box(b"mdat", bytes(1000))[:500]


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.slug)
def test_every_failure_is_raised_as_the_class_that_its_slug_names(error):
    out, reader = read([*MEDIA, failed(error("what is wrong, and what to do."), request_id="r1")])
    assert out == b"".join(MEDIA)
    with pytest.raises(LipsyncError) as caught:
        reader.finish()
    assert type(caught.value) is error
    assert caught.value.detail == "what is wrong, and what to do."


def test_a_slug_of_a_later_version_is_a_service_error_that_says_its_text():
    ending = mine(b'{"status":"failed","error":"face_too_shy","detail":"The face hides.","request_id":"r1"}')
    with pytest.raises(ServiceError, match=r"The face hides\. \(face_too_shy\)"):
        read([ending])[1].finish()


def test_a_long_detail_still_fits():
    ending = failed(NoFace("\N{PILE OF POO}" * 100_000), request_id="x" * 100_000)
    assert len(ending) <= LARGEST_BOX
    with pytest.raises(NoFace):
        read([ending])[1].finish()


@pytest.mark.parametrize("missing", range(len(END) + 1))
def test_an_ending_that_is_cut_anywhere_is_none(missing):
    _, reader = read([*MEDIA, END[: len(END) - missing]])
    if missing == 0:
        assert reader.finish() == WHOLE
    else:
        with pytest.raises(StreamBroken):
            reader.finish()


def test_a_stream_cut_inside_its_media_is_broken():
    with pytest.raises(StreamBroken):
        read([b"".join(MEDIA)[:-1]])[1].finish()


def mine(body: bytes) -> bytes:
    return box(b"uuid", KIND + body)


@pytest.mark.parametrize(
    "stream",
    [
        END + b"\0", END + END, struct.pack(">I4s", LARGEST_BOX + 1, b"uuid") + KIND, mine(b"{"), mine(b"[]"),
        mine(b"{}"), mine(b'{"status":"complete"}'), mine(b'{"status":"paused","frames":1,"fps":"25","timings_ms":{}}'),
        mine(b'{"status":"complete","frames":1,"fps":"1/0","timings_ms":{}}'),
        mine(b'{"status":"complete","frames":1,"fps":"25","timings_ms":[]}'),
        mine(b'{"status":"complete","frames":null,"fps":"25","timings_ms":{}}'),
        mine(b"[" * 50_000), mine(b"\xff"), struct.pack(">I4s", 4, b"moof"), struct.pack(">I4sQ", 1, b"mdat", 0),
        b"<html>502 Bad Gateway</html>",
    ],
    ids=lambda stream: repr(stream[:60]),
)  # fmt: skip
def test_a_stream_with_another_ending_is_broken(stream):
    with pytest.raises(StreamBroken):
        read([stream])[1].finish()


def test_a_box_to_the_end_of_the_stream_hides_no_ending():
    media, reader = read([struct.pack(">I4s", 0, b"mdat") + b"picture" + END])
    assert media.endswith(END)
    with pytest.raises(StreamBroken):
        reader.finish()


def test_random_bytes_never_look_whole():
    source = random.Random(1)
    for _ in range(300):
        try:
            _, reader = read(cut(source.randbytes(200), [source.randrange(200)]))
            reader.finish()
        except StreamBroken:
            continue
        raise AssertionError("random bytes were taken for a whole stream")


@pytest.mark.parametrize("ending", [END, failed(NoFace("Nobody."), request_id="r1")], ids=["complete", "failed"])
def test_a_player_and_the_remuxer_skip_the_ending_of_a_real_stream(ending):
    stream = encode(Clip(Fraction(25), 48_000, seconds=1.0), [8, 24])
    media, _ = read([stream, ending])
    assert media == stream
    assert play(stream + ending) == play(stream)
    assert write_progressive_bytes(stream + ending) == write_progressive_bytes(stream)
