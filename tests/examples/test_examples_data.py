"""The example's data: folders as people have them, and data sets that have to be fetched."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision import datasets

from perceptual_losses._images.reader import read_picture
from perceptual_losses.examples import __main__, data, squares

FORM = data.Form(image_size=16)


def picture(path, size=(20, 16), color=(255, 0, 0), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


def test_a_folder(tmp_path):
    for i in range(12):
        picture(tmp_path / ("cats" if i % 2 else "dogs/old") / f"{i:02}.png", color=(20 * i, 0, 0))
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    found = data.load(str(tmp_path), FORM)
    assert found.classes == ["cats", "dogs"]
    assert len(found.training) == 2 * 10
    assert len(found.held_out) == 2
    shade = {"cats": range(1, 12, 2), "dogs": range(0, 12, 2)}
    ordered = [i for name in found.classes for i in shade[name]]
    held_out = [found.held_out[i] for i in range(2)]
    assert [round(image[0].mean().item() * 255 / 20) for image, _ in held_out] == ordered[::10]
    assert [label for _, label in held_out] == [0, 1]
    trained = {round(found.training[i][0][0].mean().item() * 255 / 20) for i in range(20)}
    assert trained == set(range(12)) - set(ordered[::10])
    assert found.training[0][0].shape == (3, 16, 16)


def square(path, form=FORM, reading=data.READING):
    """What a file becomes, or the reason why it becomes nothing."""
    result = squares.read_square(path, form, reading)
    if isinstance(result, str):
        return result
    shape = form.channels, form.image_size, form.image_size
    return torch.frombuffer(bytearray(result[0]), dtype=torch.uint8).reshape(shape)


def test_images_of_every_kind_come_in_one_form(tmp_path):
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    Image.fromarray(deep.astype(np.uint16)).save(tmp_path / "deep.png")
    planes = np.moveaxis(np.full((16, 20, 3), (65535, 25700, 0), np.uint16), -1, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    inverse = np.full((16, 20), 65535 - 25700, np.uint16)
    tifffile.imwrite(tmp_path / "inverse.tif", inverse, photometric="miniswhite")
    picture(tmp_path / "grey.png", color=(100, 100, 100), mode="L")
    picture(tmp_path / "palette.png", color=(100, 100, 100), mode="P")
    picture(tmp_path / "alpha.png", color=(100, 100, 100), mode="RGBA")
    turned = Image.new("RGB", (16, 32))
    turned.paste((255, 255, 255), (0, 0, 16, 8))
    exif = turned.getexif()
    exif[274] = 3  # Upside down.
    turned.save(tmp_path / "turned.png", exif=exif)

    for name in ("grey.png", "palette.png", "alpha.png", "inverse.tif"):
        for channels in (1, 3):
            x = square(tmp_path / name, data.Form(16, channels))
            assert x.shape == (channels, 16, 16)
            assert x.float().mean().item() == pytest.approx(100, abs=5)
    assert square(tmp_path / "deep.png").float().mean().item() == pytest.approx(127.5, abs=1)
    assert square(tmp_path / "planes.tif")[:, 3, 3].tolist() == [255, 100, 0]
    upright = square(tmp_path / "turned.png")
    assert upright[:, 15].sum() >= upright[:, 0].sum()
    pairs = data.Squares(square(tmp_path / "grey.png")[None], [4], data.Form(16, 3, (-1, 1)))
    image, label = pairs[0]
    assert image.mean().item() == pytest.approx(200 / 255 - 1, abs=0.01)
    assert label == 4


def test_transparent_images_are_put_on_a_background(tmp_path, capsys):
    for i in range(4):
        image = Image.new("RGBA", (16, 16), (255, 0, 0, 0 if i < 3 else 255))
        image.save(tmp_path / f"{i}.png")
    for flag, first in (("white", [1, 1, 1]), ("#0000ff", [0, 0, 1])):
        found = data.load(str(tmp_path), FORM, reading=data.Reading(background=flag))
        assert found.held_out[0][0][:, 3, 3].tolist() == first
        said = capsys.readouterr().err.splitlines()
        assert said == [
            f"3 of 4 images: transparent parts are put on {flag}",
            "1 of 4 images: alpha is opaque everywhere and left out",
        ]


def test_leftovers_are_no_classes(tmp_path, capsys):
    for name in ("cats/a.png", "dogs/b.png", "cats/c.png"):
        picture(tmp_path / name)
    for name in (".ipynb_checkpoints/a.png", "cats/@eaDir/a.png", "__MACOSX/b.png", "dogs/._b.png"):
        picture(tmp_path / name)
    (tmp_path / "dogs" / "Thumbs.db").write_bytes(b"")
    found = data.load(str(tmp_path), FORM)
    assert found.classes == ["cats", "dogs"]
    assert len(found.training) + len(found.held_out) == 2 * 2 + 1
    assert capsys.readouterr().err == ""


def test_many_squares_are_mapped_and_each_file_is_decoded_once(tmp_path, monkeypatch):
    for i in range(6):
        picture(tmp_path / f"{i}.png", color=(40 * i, 0, 0))
    decoded = []
    read = squares.read_picture

    def counted(path, *args, **options):
        decoded.append(path.name)
        return read(path, *args, **options)

    monkeypatch.setattr(squares, "read_picture", counted)
    in_memory = data.load(str(tmp_path), FORM)
    for _ in range(3):
        assert [round(255 * in_memory.training[2 * i][0].max().item()) for i in range(5)] == [
            40 * i for i in range(1, 6)
        ]
    assert sorted(decoded) == [f"{i}.png" for i in range(6)]
    monkeypatch.setattr(squares, "MAPPED_FROM", 100)
    mapped = data.load(str(tmp_path), FORM)
    for a, b in zip(in_memory.training, mapped.training, strict=False):
        assert torch.equal(a[0], b[0])


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    shades = np.add.outer(np.arange(640), np.arange(800)) / 6
    image = Image.fromarray(shades.astype(np.uint8))
    image.save(tmp_path / "x.jpg", quality=95)
    assert read_picture(tmp_path / "x.jpg", at_least=16).values.shape == (80, 100, 1)
    assert read_picture(tmp_path / "x.jpg").values.shape == (640, 800, 1)
    expected = data.Form(16, 1).of(image)[0] * 255
    assert (square(tmp_path / "x.jpg", data.Form(16, 1)) - expected).abs().max() < 2


def test_files_of_no_use_are_named_counted_and_left_out(tmp_path, monkeypatch, capsys):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.JPG").write_text("this is text")
    (tmp_path / "empty.png").write_bytes(b"")
    picture(tmp_path / "tiny.png", size=(40, 15))
    found = data.load(str(tmp_path), FORM)
    assert len(found.training) + len(found.held_out) == 2 * 3 + 1
    said = capsys.readouterr().err
    assert "cut.png cannot be read (" in said
    for name in ("text.JPG", "empty.png"):
        assert f"{name} is not in any of BMP" in said
    assert "tiny.png has 40x15 pixels, less than 16x16" in said
    assert said.count("left out 4 of 8 images\n") == 1
    monkeypatch.setenv("RANK", "1")
    data.load(str(tmp_path), FORM)
    assert capsys.readouterr().err == ""


def test_images_whose_values_have_no_known_range_are_left_out(tmp_path, capsys):
    deep = np.full((16, 20), 30000, np.uint16)
    for name, dtype in (("16.png", "<u2"), ("16.pgm", "<i4"), ("little.tif", "<u2")):
        Image.fromarray(deep.astype(dtype)).save(tmp_path / name)
    Image.fromarray(deep.astype(">u2")).save(tmp_path / "big.tif")
    found = data.load(str(tmp_path), FORM)
    assert capsys.readouterr().err == ""
    for images in (found.training, found.held_out):
        assert images[0][0].unique().tolist() == pytest.approx([117 / 255])

    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "32.tif")
    Image.fromarray(deep).save(tmp_path / "signed.tif", tiffinfo={339: 2})
    picture(tmp_path / "print.jpg", mode="CMYK")
    found = data.load(str(tmp_path), FORM)
    assert len(found.training) + len(found.held_out) == 2 * 3 + 1
    reasons = {
        "32.tif": "has signed values of 32 bits: save it with unsigned ones",
        "float.tif": "has floats of 32 bits, whose range no tag says: pass --data-range with their "
        "highest possible value",
        "print.jpg": "has pixels of the kind CMYK: save it with 8 or 16 bits, in grey or RGB",
        "signed.tif": "has signed values of 16 bits: save it with unsigned ones",
    }
    assert capsys.readouterr().err.splitlines() == [
        *(f"{tmp_path / name} {text}" for name, text in reasons.items()),
        "left out 4 of 8 images",
    ]
    ranged = data.Reading(data_range=60000)
    x = square(tmp_path / "float.tif", reading=ranged)
    assert x.unique().tolist() == [128]  # Half of 255, rounded.


def test_folders_of_no_use(tmp_path, capsys):
    bare, broken, file = tmp_path / "bare", tmp_path / "broken", tmp_path / "file.png"
    bare.mkdir()
    broken.mkdir()
    (broken / "a.png").write_bytes(b"")
    picture(broken / "b.png", size=(4, 4))
    picture(file)
    for given, text in {
        tmp_path / "absent": "absent does not exist: pass a folder of images, 'photos' or cifar10",
        file: "file.png is a file: pass a folder of images",
        bare: "bare has no images: pass a folder with files .bmp .gif .jpeg",
        broken: "broken has 0 images that can be used, of 2: pass a folder with at least 2 of 16x",
    }.items():
        out = tmp_path / "out"
        flags = ["--data", str(given), "--image-size", "16", "--out", str(out)]
        assert __main__.main(["train", "--model", "vae", *flags]) == 2
        assert text in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifar10", "cifar-10-python.tar.gz at {root}/cifar-10-python.tar.gz"),
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("celeba", "img_align_celeba.zip, unpacked"),
    ],
)
def test_data_sets_that_cannot_be_fetched(monkeypatch, tmp_path, capsys, name, text):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    for source in (datasets.CIFAR10, datasets.MNIST, datasets.CelebA):
        monkeypatch.setattr(source, "download", unreachable)
    flags = ["--data", name, "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    assert __main__.main(["train", "--model", "vae", *flags]) == 2
    said = capsys.readouterr().err
    assert f"{name} is not at {tmp_path / 'root'} and could not be downloaded" in said
    assert text.format(root=tmp_path / "root") in said


def test_data_sets_of_torchvision(monkeypatch):
    class Source:
        classes = ("no", "yes")

        def __init__(self, *, root, download, transform, target_transform=int, **split):
            assert download
            self.training = split in ({"train": True}, {"split": "train"})
            self.transform, self.target = transform, target_transform

        def __len__(self):
            return 30 if self.training else 2500

        def __getitem__(self, index):
            attributes = torch.arange(40) == 31
            label = self.target(attributes) if self.target is data.smiling else index % 2
            return self.transform(Image.new("L", (30, 20), 255 if self.training else 0)), label

    for source in ("CIFAR10", "MNIST", "CelebA"):
        monkeypatch.setattr(datasets, source, Source)
    for name, mirrored in (("cifar10", 2), ("mnist", 1), ("celeba", 2)):
        found = data.load(name, FORM)
        assert len(found.training) == mirrored * 30
        assert len(found.held_out) == data.HELD_OUT_AT_MOST
        image, label = found.training[0]
        assert image.shape == (3, 16, 16)
        assert image.min() == 1
        assert label == (1 if name == "celeba" else 0)
        assert found.held_out[999][0].max() == 0
        assert len(found.classes) == 2


def test_photos_in_other_forms(monkeypatch):
    few = {"camera": data.TRAINING_PHOTOS["camera"]}
    monkeypatch.setattr(data, "TRAINING_PHOTOS", few)
    monkeypatch.setattr(data, "HELD_OUT_PHOTOS", few)
    monkeypatch.setattr(data, "SHORT_SIDES", (96, 64))
    found = data.load("photos", data.Form(32, 1, (-1, 1)))
    image, label = found.held_out[0]
    assert image.shape == (1, 32, 32)
    assert -1 <= image.min() < -0.5 < 0.5 < torch.stack([i for i, _ in found.held_out]).max() <= 1
    assert label == 0
    assert [int(label) for _, label in found.held_out] == [0] * 9 + [1] * 4
    text = "image_size=80 is larger .*: pass at most 64, or a folder of larger"
    with pytest.raises(ValueError, match=text):
        data.load("photos", data.Form(80))
    with pytest.raises(ValueError, match="channels=2: pass 1 for grey images or 3"):
        data.Form(16, 2)
