"""Kinds and names of image files: which are read as they are, and which are refused."""

import io
import re
import struct
import sys
import unicodedata
import warnings

import numpy as np
import pytest
import tifffile
from compared_files import patch, png16, run, write
from PIL import Image, ImageOps

from perceptual_losses._images.picture import NotReadError
from perceptual_losses._images.reader import read_picture
from perceptual_losses.compare import output


def pixels(size=(24, 16)):
    return Image.fromarray(patch("astronaut", 40)[0]).resize(size)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def test_kinds_that_are_read_as_they_are(tmp_path):
    colour = pixels()
    grey = colour.convert("L")
    deep = np.array(grey).astype(np.uint16) * 257 + 3
    for image, name, expected in [
        (grey, "x.png", np.array(grey)),
        (grey, "x.pgm", np.array(grey)),
        (grey, "x.tif", np.array(grey)),
        (colour, "x.bmp", np.array(colour)),
        (colour, "x.ppm", np.array(colour)),
        (grey.convert("1"), "1.png", np.array(grey.convert("1"), np.uint8) * 255),
        (colour.quantize(20), "p.png", np.array(colour.quantize(20).convert("RGB"))),
        (colour.quantize(20), "p.gif", np.array(colour.quantize(20).convert("RGB"))),
        (Image.fromarray(deep), "deep.png", deep),
        (Image.fromarray(deep), "deep.tif", deep),
        (Image.fromarray(deep), "deep.pgm", deep),
    ]:
        picture = read_picture(saved(tmp_path / name, image))
        values = picture.values[..., 0] if expected.ndim == 2 else picture.values
        assert values.dtype == expected.dtype, name
        assert np.array_equal(values, expected), name
        assert picture.notices == ()
        assert picture.data_range == (65535 if "deep" in name else 255)
    lossless = read_picture(saved(tmp_path / "x.webp", colour, lossless=True))
    assert np.array_equal(lossless.values, np.array(colour))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    image = pixels()
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "x.png", image, exif=exif)
    turned = np.array(ImageOps.exif_transpose(Image.open(path)))
    assert (turned.shape == (24, 16, 3)) is (orientation > 4)
    assert np.array_equal(read_picture(path).values, turned)
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    png16(tmp_path / "deep.png", np.array(image).astype(np.uint16) * 257, chunk=chunk)
    deep = read_picture(tmp_path / "deep.png").values
    assert np.array_equal(deep, turned.astype(np.uint16) * 257)
    grey = Image.fromarray(np.array(image)[..., 0].astype(np.uint16) * 257)
    for kind in (None, "tiff_lzw"):
        path = saved(tmp_path / "deep.tif", grey, exif=exif, compression=kind)
        assert np.array_equal(read_picture(path).values, deep[..., :1])


def test_alpha_is_left_out_where_it_says_nothing(tmp_path, capsys):
    x = np.array(pixels())
    grey = x[..., 0]
    opaque = np.full_like(grey, 255)
    deep = np.dstack([x, opaque]).astype(np.uint16) * 257
    for mode, values, last in (
        ("RGBA", np.dstack([x, opaque]), -1),
        ("LA", np.dstack([grey, opaque]), -1),
        ("deep", deep, -1),
        ("deep", deep[..., 2:], -1),
    ):
        path = tmp_path / "x.png"
        write(path, values) if mode == "deep" else Image.fromarray(values).save(path)
        picture = read_picture(path)
        assert np.array_equal(picture.values, values[..., :last])
        assert picture.notices == ("alpha is opaque everywhere and left out",)
        values = values.copy()
        values[3, 4, -1] -= 1
        write(path, values) if mode == "deep" else Image.fromarray(values).save(path)
        with pytest.raises(NotReadError, match="x.png is transparent in parts: pass --background"):
            read_picture(path)
    Image.fromarray(np.dstack([x, opaque])).save(path)
    assert run(path, path, "--csv", tmp_path / "out.csv") == 0
    notice = f"{path}: alpha is opaque everywhere and left out"
    assert capsys.readouterr().err == f"{notice}; {notice}\n"
    assert f",{notice}; {notice},\n" in (tmp_path / "out.csv").read_text()


def refused_files(folder):
    """Files of no use, and why."""
    image = pixels()
    x = np.array(image)
    clear = image.quantize(20)
    deep = x.astype(np.uint16) * 257
    yield saved(folder / "t.png", clear, transparency=int(np.array(clear)[0, 0])), "is transparent"
    yield saved(folder / "t.gif", clear, transparency=int(np.array(clear)[0, 0])), "is transparent"
    colour = tuple(map(int, x[2, 3]))
    yield saved(folder / "rgb.png", image, transparency=colour), "is transparent in parts"
    png16(folder / "deep.png", deep, chunk=b"tRNS" + struct.pack(">HHH", *deep[2, 3]))
    yield folder / "deep.png", "has a transparent colour"
    more = {"save_all": True, "append_images": [image.rotate(180)]}
    for name in ("many.gif", "many.webp", "many.png", "many.tif"):
        yield saved(folder / name, image, **more), "has 2 frames or pages: save the one that is"
    yield saved(folder / "print.jpg", image.convert("CMYK")), "has pixels of the kind CMYK: save it"
    yield saved(folder / "lab.tif", image.convert("LAB")), "has pixels of the kind CIELAB: save it"
    yield saved(folder / "float.tif", image.convert("F")), "has floats of 32 bits, whose range"
    yield saved(folder / "wide.tif", image.convert("I")), "has signed values of 32 bits"
    yield saved(folder / "x.jp2", image), "is not in any of BMP"
    (folder / "deep.ppm").write_bytes(b"P6 24 16 65535\n" + deep.astype(">u2").tobytes())
    yield folder / "deep.ppm", "has more than 8 bits for each colour, which are read from PNG and"
    tifffile.imwrite(folder / "signed.tif", deep[..., 0].astype(np.int16))
    yield folder / "signed.tif", "has signed values of 16 bits"
    whole = io.BytesIO()
    image.save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:-200])
    yield folder / "cut.jpg", "cannot be read (OSError: "
    png16(folder / "cut.png", deep)
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-100])
    yield folder / "cut.png", "cannot be read (RuntimeError"
    (folder / "empty.png").write_bytes(b"")
    yield folder / "empty.png", "is not in any of"


def test_kinds_that_are_refused(tmp_path):
    for path, text in refused_files(tmp_path):
        with pytest.raises(NotReadError) as caught:
            read_picture(path)
        assert str(caught.value).startswith(f"{path} {text}")


def test_the_first_picture_of_a_camera(tmp_path):
    image, path = pixels(), tmp_path / "x.jpg"
    image.save(path, "MPO", save_all=True, append_images=[image.rotate(180)])
    picture = read_picture(path)
    assert np.abs(picture.values - np.array(image, int)).mean() < 10
    assert picture.notices == ("the first of 2 pictures is read",)


def test_what_pillow_warns_of_is_passed_on(tmp_path, monkeypatch):
    def complaining(image, *, in_place):
        warnings.warn("Corrupt EXIF data", UserWarning, stacklevel=2)
        return image

    path = saved(tmp_path / "x.png", pixels())
    monkeypatch.setattr(ImageOps, "exif_transpose", complaining)
    assert read_picture(path).notices == ("Corrupt EXIF data",)


def test_large_images(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "x.png", pixels((300, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses from 200 on.
    assert run(path, path, "--max-megapixels", "0.06") == 0
    assert run(path, path, "--max-megapixels", "0.0599") == 1
    said = capsys.readouterr().err
    assert "more than 0.0599 million: make it smaller, or pass a larger --max-megapixels" in said
    assert Image.MAX_IMAGE_PIXELS == 100


# Names


def test_names_in_any_script(tmp_path, capsys):
    x, y = patch("camera", 40)
    composed, name = "Café.png", "日本$^$.png"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    for folder, first, value in (("a", composed, x), ("b", decomposed, y)):
        write(tmp_path / folder / first, value)
        write(tmp_path / folder / name, value)
    pictures = tmp_path / "pictures"
    assert run(tmp_path / "a", tmp_path / "b", "--picture", pictures) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^{composed} +45x40", out, re.MULTILINE)
    assert re.search(rf"^{re.escape(name)} +45x40", out, re.MULTILINE)
    assert {path.name for path in pictures.iterdir()} == {f"{composed}.png", f"{name}.png"}
    # Both forms in one folder.
    write(tmp_path / "a" / decomposed, x)
    assert run(tmp_path / "a", tmp_path / "b") == 1
    said = f"{composed}: several files have this name in different Unicode forms\n"
    assert said in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="only there names are bytes")
def test_names_that_are_no_text(tmp_path, monkeypatch, capsys):
    x, y = patch("camera", 40)
    for folder, value in (("a", x), ("b", y)):
        write(tmp_path / folder / "\udcff.png", value)
    files = ["--csv", tmp_path / "out.csv", "--picture", tmp_path / "pictures"]
    assert run(tmp_path / "a", tmp_path / "b", *files) == 0
    assert "\\udcff.png  45x40" in capsys.readouterr().out
    assert "\n\\udcff.png,45,40," in (tmp_path / "out.csv").read_text()
    write(tmp_path / "b" / "\udcff.png", y[:20])
    assert run(tmp_path / "a", tmp_path / "b", *files) == 1
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    output.print_encodable("é")
    stdout.flush()
    assert stdout.buffer.getvalue() == b"\\xe9\n"


@pytest.mark.parametrize(
    ("tag", "changed", "value", "reason"),
    [
        # The entry of the colours becomes one of an unknown tag, or the number of bits unusual.
        ("ColorMap", "offset", 65000, "has a palette without its colours: save it as RGB"),
        ("BitsPerSample", "valueoffset", 40, "has 40 bits: save it with 8 or 16 bits"),
    ],
)
def test_tiffs_with_broken_tags(tmp_path, tag, changed, value, reason):
    path = tmp_path / "x.tif"
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    if tag == "ColorMap":
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(path, compression="tiff_lzw")
    assert read_picture(path).values.shape[:2] == (8, 8)
    with tifffile.TiffFile(path) as tiff:
        place = getattr(tiff.pages[0].tags[tag], changed)
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, place, value)
    path.write_bytes(content)
    with pytest.raises(NotReadError, match=reason):
        read_picture(path)
