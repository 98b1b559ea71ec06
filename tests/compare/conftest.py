"""Folders of images that can be compared."""

import pytest
from compared_files import patch, write


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same four images, of every depth and channel count."""
    images = {
        "camera.png": patch("camera"),
        "colour/astronaut.png": patch("astronaut"),
        "colour/deep.png": patch("astronaut", bits=16),
        "moon.png": patch("moon", bits=16),
    }
    for name, values in images.items():
        for folder, value in zip("ab", values, strict=True):
            write(tmp_path / folder / name, value)
    return tmp_path, images
