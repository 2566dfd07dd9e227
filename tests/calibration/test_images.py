# SPDX-License-Identifier: Apache-2.0
"""Images as users have them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import support
from PIL import Image

from metaformer_export.artifacts import ModelSpec
from metaformer_export.calibration.images import MAX_IMAGES, decode, load_images, preprocess
from metaformer_export.errors import ImageError
from metaformer_export.models.family import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SPEC = support.spec_for("hornet_t", (64, 96))


def read_image(path: Path, spec: ModelSpec) -> np.ndarray:
    return decode(path.read_bytes(), path, spec)


def picture(width: int = 120, height: int = 80, mode: str = "RGB") -> Image.Image:
    """Left half dark, right half bright."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 200
    return Image.fromarray(pixels).convert(mode)


def test_the_shipped_photographs_load_with_their_sources_listed() -> None:
    images = load_images(None, SPEC)
    assert images.batch.shape == (MAX_IMAGES, 3, 64, 96)
    assert images.batch.dtype == np.float32
    assert all(2.0 > float(image.std()) > 0.2 for image in images.batch)
    listed = resources.files("metaformer_export.calibration").joinpath("photographs/SOURCES.md").read_text("utf-8")
    assert all(f"| {name} |" in listed for name in images.names)


def test_preprocessing_resizes_crops_and_normalises() -> None:
    flat = Image.new("RGB", (300, 200), (255, 0, 51))
    got = preprocess(flat, Preprocessing(), (224, 224))
    want = (np.array([1.0, 0.0, 0.2]) - IMAGENET_MEAN) / IMAGENET_STD
    assert got.shape == (3, 224, 224)
    assert np.abs(got - want[:, None, None]).max() <= 1e-6


def test_the_crop_is_the_centre_that_torchvision_takes() -> None:
    """Resize the shorter side to 224 / 0.875 = 256, cut 224: 16 of 256 rows go on each side."""
    ramp = np.repeat(np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, 1), 3, 2)
    got = preprocess(Image.fromarray(ramp), Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)), (224, 224))
    assert np.abs(got[0, :, 0] * 255 - np.arange(16, 240)).max() <= 1e-4


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1", "LA"])
def test_every_colour_mode_becomes_three_planes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture(mode=mode).save(path)
    got = read_image(path, SPEC)
    assert got.shape == (3, 64, 96)
    assert got[:, :, -8:].mean() > got[:, :, :8].mean() + 1


def test_sixteen_bit_greys_keep_their_steps(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    got = decode((tmp_path / "deep.png").read_bytes(), tmp_path, SPEC)
    assert len(np.unique(np.round(got[0], 3))) > 100


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    upright, turned = tmp_path / "up.png", tmp_path / "turned.png"
    picture().save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture().transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    assert np.array_equal(read_image(upright, SPEC), read_image(turned, SPEC))


def test_a_folder_is_read_below_sorted_and_spread(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for i in range(12):
        picture(100 + i).save(tmp_path / "b" / f"{i:02d}.webp")
    picture().save(tmp_path / ".hidden.png")
    images = load_images(tmp_path, SPEC)
    assert images.names == tuple(f"b/{i:02d}.webp" for i in range(0, 12, 2))
    assert np.array_equal(images.take(4, 2), images.batch[4:])


def test_a_batch_larger_than_the_set_has_no_two_rows_alike(tmp_path: Path) -> None:
    """Rows that are all the same would not show that a graph mixes them up."""
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "same.png")
    images = load_images(tmp_path, SPEC)
    assert images.names == ("same.png",)
    first, second, third = images.take(0, 3)
    assert np.array_equal(first, images.batch[0])
    assert min(np.abs(a - b).max() for a, b in ((first, second), (second, third), (first, third))) > 1


def test_other_numbers_of_channels_repeat_the_planes(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    five = read_image(tmp_path / "a.png", replace(SPEC, in_chans=5))
    three = read_image(tmp_path / "a.png", SPEC)
    assert np.array_equal(five, three[[0, 1, 2, 0, 1]])


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        load_images(tmp_path / "nowhere", SPEC)
    with pytest.raises(ImageError, match="there are no images"):
        load_images(tmp_path, SPEC)
    picture().save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is not a folder"):
        load_images(tmp_path / "a.png", SPEC)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImageError, match=r"notes\.txt is not an image"):
        load_images(tmp_path, SPEC)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "bomb.png").write_bytes(png_of_size(60_000, 60_000))
    with pytest.raises(ImageError, match=r"bomb\.png is not an image that can be read"):
        load_images(tmp_path, SPEC)
    (tmp_path / "bomb.png").unlink()
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 60])
    with pytest.raises(ImageError, match=r"cut\.png cannot be decoded"):
        load_images(tmp_path, SPEC)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims to be large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(100)
