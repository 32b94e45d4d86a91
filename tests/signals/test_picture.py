from __future__ import annotations

import base64
import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest

from genmote.signals import modality, picture
from genmote.signals.kinds import Field, Frames, Records, Series


@pytest.mark.parametrize("name", [name for name in modality.names() if modality.load(name).synthetic])
def test_every_kind_is_drawn(name: str) -> None:
    (found,) = modality.load(name).sample()
    text = picture.svg(found, "a < b & c")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "a &lt; b &amp; c" in text and found.name in text
    if isinstance(found, Series):
        assert text.count("<polyline") == min(picture.MOST, len(found.channels))
    if isinstance(found, Frames):
        assert text.count("<image") == min(picture.MOST, len(found))


def test_a_png_has_the_pixels() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    frames = Frames("f", "grid", [grey[:, :, None]], ("grey",), ("",))
    found = re.search(r"base64,([^\"]+)", picture.svg(frames, ""))
    assert found
    png = base64.b64decode(found[1])
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[16:24] == b"\0\0\0\3\0\0\0\2"
    at = png.index(b"IDAT") + 4
    size = int.from_bytes(png[at - 8 : at - 4], "big")
    assert zlib.decompress(png[at : at + size]) == b"\0" + bytes([0, 51, 102]) + b"\0" + bytes([153, 204, 255])


def test_what_has_nothing_to_draw() -> None:
    hole = Series("hole", np.full((10, 1), np.nan, np.float32), 1.0, ("x",), ("",))
    ElementTree.fromstring(picture.svg(hole, ""))
    words = Records("words", (Field("w", "category"),), (np.array(["a", "b"], object),))
    ElementTree.fromstring(picture.svg(words, ""))
    ElementTree.fromstring(picture.svg(Frames("none", "points", [], ("x", "y", "z"), ("m",) * 3), ""))
    ElementTree.fromstring(picture.svg(Frames("empty", "points", [np.zeros((0, 3))], ("x", "y", "z"), ("m",) * 3), ""))
    row = Series("one", np.ones((1, 1), np.float32), 1.0, ("x",), ("",))
    ElementTree.fromstring(picture.svg(row, ""))
