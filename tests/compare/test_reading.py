"""The reader of image files: what their tags say is read, or refused with the reason."""

import csv
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from compared_files import definition, patch, png16, run
from PIL import Image, ImageOps

from perceptual_losses._images.picture import NotReadError, Reading, colour
from perceptual_losses._images.reader import read_picture

SIDES = 20, 28
RANDOM = np.random.RandomState(0)


def read(path, **reading):
    """The values of a file, or the reason why it is refused."""
    try:
        return read_picture(path, Reading(**reading)).values
    except NotReadError as error:
        return str(error).removeprefix(f"{path} ")


def is_same(found, expected):
    return not isinstance(found, str) and np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i1", "i2", "u4", "f2", "f4", "f8"])
def test_every_tiff_that_tifffile_writes(tmp_path, dtype):
    path, kind = tmp_path / "x.tif", np.dtype(dtype)
    top = {"u": np.iinfo(kind).max if kind.kind == "u" else 0, "i": 99, "f": 1}[kind.kind]
    reading = {"data_range": float(top)} if dtype in ("u4", "f2", "f4", "f8") else {}
    equal, refused = set(), set()
    for channels in (1, 2, 3, 4, 5):
        values = (RANDOM.rand(*SIDES, channels) * top).astype(kind)
        for photometric, planar, packed in [
            (photometric, planar, packed)
            for photometric in ("minisblack", "miniswhite", "rgb")
            for planar in ("contig", "separate")
            for packed in ({}, {"compression": "zlib"})
            if (photometric != "rgb" or channels > 2) and (planar == "contig" or channels > 1)
        ]:
            if planar == "contig":
                packed = {**packed, "tile": (16, 16)}
            stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
            form = {"planarconfig": planar} if channels > 1 else {}
            stored = stored if channels > 1 else stored[..., 0]
            tifffile.imwrite(path, stored, photometric=photometric, **form, **packed)
            found = read(path, **reading)
            expected = top - values if photometric == "miniswhite" else values
            case = channels, photometric
            if isinstance(found, str):
                refused.add(case)
                assert found.startswith(
                    ("has signed values", "has floats that are", f"has {channels} channels, which")
                    if channels in (2, 5) or photometric != "rgb" or kind.kind == "i"
                    else ("is transparent in parts", "has floats that are")
                ), found
            else:
                equal.add(case)
                assert np.array_equal(found, expected), case
    reads = {(1, "minisblack"), (3, "rgb")} | ({(1, "miniswhite")} if kind.kind == "u" else set())
    assert equal == (reads if kind.kind != "i" else set())
    assert not equal & refused


MODES = ("L", "RGB", "P", "1", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")


@pytest.mark.parametrize("packed", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
def test_every_tiff_that_pillow_writes(tmp_path, packed):
    path = tmp_path / "x.tif"
    colours = Image.fromarray((RANDOM.rand(*SIDES, 3) * 255).astype(np.uint8))
    grey = colours.convert("L")
    deep = Image.fromarray(np.array(grey) * np.uint16(250))
    images = {mode: colours.convert(mode) for mode in MODES if mode not in ("P", "LAB", "I;16")}
    images |= {"P": colours.quantize(20), "I;16": deep, "1": grey.convert("1")}
    images |= {"LA": grey.convert("LA"), "F": grey.convert("F"), "I": grey.convert("I")}
    equal = set()
    for mode, image in images.items():
        for orientation in (1, 3, 6):
            image.save(path, compression=packed, tiffinfo={274: orientation})
            found = read(path)
            if isinstance(found, str):
                assert found.startswith(
                    ("has pixels of the kind", "has 8 bits in", "has signed", "has floats")
                )
                continue
            flat = {"P": "RGB", "1": "L", "LA": "L", "RGBA": "RGB"}
            expected = image.convert(flat[mode]) if mode in flat else image
            turns = {1: 0, 3: 2, 6: -1}[orientation]
            values = np.rot90(np.array(expected).reshape(*SIDES, -1), turns)
            assert np.array_equal(found, values), (mode, orientation)
            equal.add(mode)
    assert equal == {"L", "RGB", "P", "1", "LA", "RGBA", "I;16"}


def test_every_orientation_of_a_tiff(tmp_path):
    values = (RANDOM.rand(*SIDES, 3) * 65535).astype(np.uint16)
    image = Image.fromarray((values // 256).astype(np.uint8))
    for orientation in range(1, 9):
        tags = [(274, "H", 1, orientation, False)]
        tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb", extratags=tags)
        exif = Image.Exif()
        exif[274] = orientation
        image.save(tmp_path / "x.png", exif=exif)
        turned = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
        assert np.array_equal(read(tmp_path / "x.tif") // 256, turned), orientation


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_packed_by_lzw(tmp_path, order, predictor, channels):
    """As Photoshop writes them. Pillow packs the bytes, and tifffile writes the tags."""
    path = tmp_path / "x.tif"
    values = (RANDOM.rand(*SIDES, channels) * 65535).astype(np.uint16)
    stored = values.copy()
    if predictor:
        stored[:, 1:] -= values[:, :-1]
    rows = stored.astype(f"{order}u2").view(np.uint8).reshape(SIDES[0], -1)
    Image.fromarray(rows).save(path, compression="tiff_lzw", tiffinfo={278: 8})
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        parts = [
            data[begin : begin + size]
            for begin, size in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    assert len(parts) == 3
    tifffile.imwrite(
        path,
        iter(parts),
        shape=values.shape if channels > 1 else SIDES,
        dtype=f"{order}u2",
        byteorder=order,
        photometric="rgb" if channels > 1 else "minisblack",
        compression="zlib",
        predictor=predictor,
        rowsperstrip=8,
    )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(5)
    assert is_same(read(path), values)


def test_palettes_of_16_bits(tmp_path):
    indices = (RANDOM.rand(*SIDES) * 255).astype(np.uint8)
    for factor, dtype in ((257, np.uint8), (256, np.uint8), (1, np.uint16)):
        palette = (RANDOM.rand(3, 256) * 255).astype(np.uint16) * factor
        palette[0, indices[0, 0]] |= factor == 1
        tifffile.imwrite(tmp_path / "x.tif", indices, colormap=palette)
        found = read(tmp_path / "x.tif")
        assert found.dtype == dtype
        scale = factor if dtype == np.uint8 else 1
        assert np.array_equal(found.astype(int) * scale, np.moveaxis(palette, 0, -1)[indices])


def test_tiffs_of_no_use(tmp_path):
    path = tmp_path / "x.tif"
    values = (RANDOM.rand(*SIDES) * 255).astype(np.uint8)
    tifffile.imwrite(path, np.stack([values] * 3), photometric="minisblack")
    assert read(path) == "has 3 frames or pages: save the one that is meant"
    tifffile.imwrite(path, values, compression="zlib")
    path.write_bytes(path.read_bytes()[:-100])
    assert read(path) == "is cut off: some of its pixels are missing"
    tifffile.imwrite(path, np.stack([values] * 2), volumetric=True, tile=(1, 16, 16))
    assert read(path) == "is a volume: save the slice that is meant"
    tifffile.imwrite(path, values.astype(np.complex64))
    assert read(path).startswith("has pixels that are no real numbers")
    tifffile.imwrite(path, values.astype(np.uint32))
    assert read(path).startswith("has 32 bits, of which few files use all: pass --data-range")
    path.write_bytes(b"II*\0" + bytes(20))
    assert read(path).startswith("has 0 frames") or read(path).startswith("cannot be read")


def test_a_smaller_copy_in_a_tiff_is_no_second_page(tmp_path):
    values = (RANDOM.rand(*SIDES) * 255).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        tiff.write(values)
        tiff.write(values[::2, ::2], subfiletype=1)
    assert is_same(read(tmp_path / "x.tif"), values[..., None])


# Values


@pytest.fixture
def photos():
    return patch("astronaut", 40, bits=16)


def ssim_of(capsys, *flags):
    assert run(*flags, "--csv", "-") == 0
    captured = capsys.readouterr()
    (row,) = csv.DictReader(captured.out.splitlines())
    return float(row["ssim"]), captured.err


def test_planes_and_inverted_values_have_the_right_similarity(tmp_path, photos, capsys):
    for name, values in zip("ab", photos, strict=True):
        planes = np.moveaxis(values, -1, 0)
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
        png16(tmp_path / f"{name}.png", values)
        inverted = 65535 - values[..., 1]
        tifffile.imwrite(tmp_path / f"{name}-white.tif", inverted, photometric="miniswhite")
        tifffile.imwrite(tmp_path / f"{name}-black.tif", values[..., 1])
    expected = pytest.approx(definition(*photos), abs=1e-12)
    assert ssim_of(capsys, tmp_path / "a.tif", tmp_path / "b.tif")[0] == expected
    assert ssim_of(capsys, tmp_path / "a.png", tmp_path / "b.tif")[0] == expected
    assert ssim_of(capsys, tmp_path / "a-white.tif", tmp_path / "a-black.tif")[0] == 1
    expected = pytest.approx(definition(photos[0][..., 1], photos[1][..., 1]), abs=1e-12)
    assert ssim_of(capsys, tmp_path / "a-white.tif", tmp_path / "b-black.tif")[0] == expected


def test_12_bits_in_16(tmp_path, photos, capsys):
    x, y = (values[..., 0] // 16 for values in photos)
    for name, values in (("a", x), ("b", y)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values)
    files = tmp_path / "a.tif", tmp_path / "b.tif"
    wrong, said = ssim_of(capsys, *files)
    text = "no value exceeds 4095 of 65535: pass --data-range 4095 if none can"
    assert said == "; ".join(f"{path}: {text}" for path in files) + "\n"
    right, said = ssim_of(capsys, *files, "--data-range", 4095)
    assert said == ""
    assert right == pytest.approx(definition(x, y, data_range=4095), abs=1e-12)
    assert right < wrong - 0.05
    assert "up to 4095" in read(files[0], data_range=1000).replace(str(x.max()), "up to 4095")
    for top, usual in ((1023, 1023), (1024, 4095), (16383, 16383), (16384, None)):
        tifffile.imwrite(tmp_path / "x.tif", np.full(SIDES, top, np.uint16))
        notices = read_picture(tmp_path / "x.tif").notices
        assert [notice.split()[3] for notice in notices] == [str(usual)] * (usual is not None)


def test_floats_with_a_range(tmp_path, photos, capsys):
    x, y = (values.astype(np.float32) / 65535 for values in photos)
    for name, values in (("a", x), ("b", y)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="rgb")
    files = tmp_path / "a.tif", tmp_path / "b.tif"
    assert run(*files) == 1
    assert "has floats of 32 bits, whose range no tag says: pass --data-range" in (
        capsys.readouterr().err
    )
    found, _ = ssim_of(capsys, *files, "--data-range", 1)
    assert found == pytest.approx(definition(x, y, data_range=1), abs=1e-9)
    for wrong, text in (
        (np.nan, "has NaN among its values: save it with numbers from 0 to 1"),
        (-0.1, "which are not all from 0 to 1: pass"),
        (1.1, "which are not all from 0 to 1: pass"),
    ):
        tifffile.imwrite(tmp_path / "x.tif", np.where(x[..., 0] < 0.2, wrong, x[..., 0]))
        assert text in read(tmp_path / "x.tif", data_range=1)


# Backgrounds


def test_transparent_images_on_a_background(tmp_path):
    values = (RANDOM.rand(*SIDES, 4) * 255).astype(np.uint8)
    opacity = values[..., 3:] / 255
    Image.fromarray(values).save(tmp_path / "x.png")
    deep = values * np.uint16(257)
    png16(tmp_path / "deep.png", deep)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    multiplied = np.round(values[..., :3] * opacity).astype(np.uint8)
    associated = np.dstack([multiplied, values[..., 3]])
    tifffile.imwrite(tmp_path / "m.tif", associated, photometric="rgb", extrasamples=["assocalpha"])
    for name in ("white", "black", "#10c020"):
        behind = np.array(colour(name))
        expected = opacity * values[..., :3] + (1 - opacity) * behind
        for path in ("x.png", "x.tif"):
            found = read_picture(tmp_path / path, Reading(background=name))
            assert np.array_equal(found.values, np.round(expected))
            assert found.notices == (f"transparent parts are put on {name}",)
        assert np.abs(read(tmp_path / "deep.png", background=name) / 257 - expected).max() < 0.01
        assert np.abs(read(tmp_path / "m.tif", background=name) - expected).max() <= 1
    assert (colour("white"), colour("#10c020")) == ((255, 255, 255), (16, 192, 32))
    Image.fromarray(values[..., 2:]).save(tmp_path / "grey.png")
    found = read(tmp_path / "grey.png", background="#808080")
    assert np.array_equal(found, np.round(opacity * values[..., 2:3] + (1 - opacity) * 128))
    assert read(tmp_path / "grey.png", background="#10c020").startswith(
        "is grey and the background"
    )


def test_a_transparent_colour_of_a_deep_png(tmp_path):
    values = (RANDOM.rand(*SIDES, 3) * 65535).astype(np.uint16)
    png16(tmp_path / "x.png", values, chunk=b"tRNS" + struct.pack(">HHH", *values[2, 3]))
    assert read(tmp_path / "x.png", background="white").startswith("has a transparent colour")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey(tmp_path, bits):
    """Pillow looks for a transparent colour of fewer bits among pixels that it has scaled."""
    path, top = tmp_path / "x.png", 2**bits - 1
    stored = (np.arange(12).reshape(3, 4) % (top + 1)).astype(np.uint8)
    lines = [np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel() for row in stored]
    header = struct.pack(">IIBBBBB", 4, 3, bits, 0, 0, 0, 0)
    data = b"".join(b"\0" + np.packbits(line).tobytes() for line in lines)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">H", 1)), (b"IDAT", zlib.compress(data))]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
            for kind, part in [*parts, (b"IEND", b"")]
        )
    )
    found = read(path, background="white")
    if bits == 8:
        assert is_same(found[..., 0], np.where(stored == 1, 255, stored))
    else:
        assert found == "has a transparent colour in fewer than 8 bits: save it with alpha"


def test_files_are_read_in_several_threads(tmp_path, monkeypatch):
    """The settings of Pillow and of warnings belong to the process, and a notice to its file."""
    Image.new("L", SIDES).save(tmp_path / "x.png")
    inside, outside = threading.Event(), threading.Event()

    def complaining(image, *, in_place):
        warnings.warn(threading.current_thread().name, UserWarning, stacklevel=2)
        if threading.current_thread().name == "first":
            inside.set()
            assert outside.wait(30)
        return image

    monkeypatch.setattr(ImageOps, "exif_transpose", complaining)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    notices = {}

    def work():
        name = threading.current_thread().name
        notices[name] = read_picture(tmp_path / "x.png").notices

    before = warnings.showwarning, list(warnings.filters)
    first = threading.Thread(target=work, name="first")
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=work, name="second")
    second.start()
    second.join()
    assert Image.MAX_IMAGE_PIXELS is None
    outside.set()
    first.join()
    assert notices == {"first": ("first",), "second": ("second",)}
    assert (warnings.showwarning, list(warnings.filters)) == before
    assert Image.MAX_IMAGE_PIXELS == 100
