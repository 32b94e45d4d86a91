from __future__ import annotations

import struct
import sys
import zlib
from calendar import timegm
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Frames
from genmote.signals.readers import image

Image = pytest.importorskip("PIL.Image", reason="wants the extra: pip install 'genmote[signals]'")

DRAW = np.random.default_rng(4)
COLOURED = DRAW.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def png(path: Path, pixels: np.ndarray, bits: int, kind: int) -> Path:
    """A PNG file (ISO/IEC 15948) by hand; `pixels` (H, W, C)."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    body = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels)
    raw = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + raw)
    return path


def one(path: Path, notes: list[str] | None = None) -> Frames:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Frames) and found.shape == "grid"
    return found


@pytest.mark.parametrize(
    ("kind", "count", "channels"),
    [(0, 1, ("grey",)), (4, 2, ("grey", "alpha")), (2, 3, image.COLOURS), (6, 4, (*image.COLOURS, "alpha"))],
)
def test_pixels_come_back(tmp_path: Path, kind: int, count: int, channels: tuple[str, ...]) -> None:
    pixels = DRAW.integers(0, 256, (5, 7, count))
    notes: list[str] = []
    found = one(png(tmp_path / "a.png", pixels, 8, kind), notes)
    assert found.channels == channels and found.units == ("",) * count and found.times_s is None and notes == []
    (frame,) = found.frames
    assert frame.dtype == np.uint8 and (frame == pixels).all()


def test_more_than_8_bits(tmp_path: Path) -> None:
    deep = DRAW.integers(0, 65536, (5, 7, 1))
    assert (one(png(tmp_path / "a.png", deep, 16, 0)).frames[0] == deep).all()
    for kind in ("<u2", ">u2", "<f4", "<i4"):
        pixels = deep[:, :, 0].astype(kind)
        Image.fromarray(pixels).save(tmp_path / "a.tif")
        (frame,) = one(tmp_path / "a.tif").frames
        assert (frame[:, :, 0] == pixels).all() and frame.dtype.isnative
    notes: list[str] = []
    found = one(png(tmp_path / "a.png", DRAW.integers(0, 65536, (5, 7, 3)), 16, 2), notes)
    assert found.frames[0].dtype == np.uint8 and notes == ["a.png: has 16 bits a colour; Pillow reads 8 of them"]


def test_black_and_white_palettes_and_other_colours(tmp_path: Path) -> None:
    bits = DRAW.integers(0, 2, (5, 7)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "a.tif")
    assert (one(tmp_path / "a.tif").frames[0][:, :, 0] == 255 * bits).all()
    few = COLOURED // 128 * 128
    Image.fromarray(few).quantize(8).save(tmp_path / "a.png")
    found = one(tmp_path / "a.png")
    assert found.channels == image.COLOURS and (found.frames[0] == few).all()
    Image.fromarray(COLOURED).convert("CMYK").save(tmp_path / "a.tif")
    assert one(tmp_path / "a.tif").channels == image.COLOURS


@pytest.mark.parametrize(("suffix", "form"), [("gif", {}), ("png", {}), ("webp", {"lossless": True})])
def test_an_animation_has_times(tmp_path: Path, suffix: str, form: dict[str, bool]) -> None:
    greys = [np.full((6, 8, 3), 40 * n + 10, np.uint8) for n in range(5)]
    pictures = [Image.fromarray(grey) for grey in greys]
    path = tmp_path / f"a.{suffix}"
    lengths = [100, 200, 300, 100, 100]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=lengths, **form)
    found = one(path)
    assert found.times_s is not None and np.allclose(found.times_s, [0, 0.1, 0.3, 0.6, 0.7])
    assert all((frame == grey).all() for frame, grey in zip(found.frames, greys, strict=True))
    parts = list(reading.pieces(path, rows=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    again = reading.joined(parts)
    assert isinstance(again, Frames) and again.times_s is not None and (again.times_s == found.times_s).all()


def test_pages_of_a_tiff_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [COLOURED, DRAW.integers(0, 256, (3, 4, 3), dtype=np.uint8), DRAW.integers(0, 256, (9, 2), dtype=np.uint8)]
    pictures = [Image.fromarray(page) for page in pages]
    pictures[0].save(tmp_path / "a.tiff", save_all=True, append_images=pictures[1:])
    notes: list[str] = []
    found = one(tmp_path / "a.tiff", notes)
    assert (found.frames[0] == pages[0]).all() and (found.frames[1] == pages[1]).all() and found.times_s is None
    assert (found.frames[2] == pages[2][:, :, None]).all() and found.frames[2].shape == (9, 2, 3)
    assert notes == ["a.tiff: 1 frames have other channels than the first; made as it is"]
    monkeypatch.setattr(image, "HELD", 100)  # large frames make small pieces
    assert [len(part) for part in reading.pieces(tmp_path / "a.tiff")] == [1, 2]


def test_words_of_a_png_are_no_times(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", COLOURED, 8, 2)
    raw, said = path.read_bytes(), b"tEXtduration\0an hour"
    chunk = struct.pack(">I", len(said) - 4) + said + struct.pack(">I", zlib.crc32(said))
    path.write_bytes(raw[:33] + chunk + raw[33:])
    found = one(path)
    assert found.times_s is None and (found.frames[0] == COLOURED).all()


def test_when_it_was_taken(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags.get_ifd(image.EXIF).update({image.TAKEN: "2024:05:06 07:08:09", image.PART: "25", image.OFFSET: "+02:00"})
    Image.fromarray(COLOURED).save(tmp_path / "a.jpg", exif=tags)
    found = one(tmp_path / "a.jpg")
    assert found.times_s is not None and found.times_s.tolist() == [timegm((2024, 5, 6, 5, 8, 9)) + 0.25]
    tags.get_ifd(image.EXIF)[image.TAKEN] = "2024:13:06 07:08:09"
    Image.fromarray(COLOURED).save(tmp_path / "a.jpg", exif=tags)
    assert one(tmp_path / "a.jpg").times_s is None


def test_a_picture_on_its_side_is_set_upright(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[image.ORIENTATION] = 6  # to be turned right
    Image.fromarray(COLOURED).save(tmp_path / "a.png", exif=tags)
    notes: list[str] = []
    assert (one(tmp_path / "a.png", notes).frames[0] == np.rot90(COLOURED, -1)).all()
    assert notes == ["a.png: 1 pictures lie on a side, or are mirrored; set upright"]


def test_a_jpeg_with_a_preview(tmp_path: Path) -> None:
    pictures = [Image.fromarray(COLOURED), Image.fromarray(COLOURED[:3])]
    pictures[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pictures[1:])
    notes: list[str] = []
    assert len(one(tmp_path / "a.jpg", notes)) == 1
    assert notes == ["a.jpg: has more pictures than its first, such as a preview; left out"]


def test_what_is_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    pictures = [Image.fromarray(DRAW.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(3)]
    path = tmp_path / "a.tiff"
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    raw = path.read_bytes()
    second = raw.index(pictures[1].tobytes()[:100])
    path.write_bytes(raw[: second + 40])
    notes: list[str] = []
    found = one(path, notes)
    assert len(found) == 1 and (found.frames[0] == np.array(pictures[0])).all()
    assert notes[0].startswith("a.tiff: ends after 1 frames, as another cannot be decoded (")


def test_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.tile(COLOURED, (20, 20, 1))).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        SignalError, match=r"a\.jpg: frame 1 cannot be decoded \(.*truncated.*\): wanted a whole picture"
    ):
        reading.read(path)
    path.write_bytes(b"\xff\xd8\xff" + bytes(99))
    with pytest.raises(SignalError, match=r"a\.jpg: the file cannot be decoded \(cannot identify .*\): wanted a whole"):
        reading.read(path)
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(SignalError, match=r"a\.eps: the file cannot be decoded"):
        reading.read(tmp_path / "a.eps", reader="image")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SignalError, match=r"a\.jpg: to be read it needs pillow: run pip install 'genmote\[signals\]'"):
        reading.read(path)


@pytest.mark.parametrize("side", [9000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    path = png(tmp_path / "a.png", np.zeros((2, 2, 1)), 8, 0)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", side, side)
    raw[29:33] = struct.pack(">I", zlib.crc32(bytes(raw[12:29])))
    path.write_bytes(raw)
    with pytest.raises(SignalError, match=r"a\.png: .* has more than 67108864 pixels: wanted a smaller picture"):
        reading.read(path)


def test_which_files_it_takes(tmp_path: Path) -> None:
    for name, raw in (("a.ppm", b"P6\n1 1\n255\nabc"), ("a.bmp", b"BM123"), ("a", b"GIF89a"), ("a", b"II*\0")):
        assert image.knows(tmp_path / name, raw)
    for name, raw in (("a.txt", b"P6\n1 1\n255\nabc"), ("a.csv", b"BM123"), ("a.wav", b"RIFF\0\0\0\0WAVE")):
        assert not image.knows(tmp_path / name, raw)
