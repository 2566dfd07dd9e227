# SPDX-License-Identifier: Apache-2.0
"""Data to calibrate and evaluate with, as users have it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import support
from PIL import Image

from metaformer_export.calibration.dataset import Dataset, open_dataset
from metaformer_export.calibration.images import decode
from metaformer_export.errors import ImageError

SPEC = support.spec_for("hornet_t", (32, 32))
RANDOM = np.random.RandomState(0)


def picture(path: Path, mode: str = "RGB", seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)  # type: ignore[arg-type]
    return path


def everything(dataset: Dataset, size: int) -> tuple[np.ndarray, list[int]]:
    batches = list(dataset.batches(size))
    labels = [int(label) for _, given in batches if given is not None for label in given]
    return np.concatenate([images for images, _ in batches]), labels


def test_every_format_is_found_in_any_depth_and_preprocessed_as_one_image_is(tmp_path: Path) -> None:
    files = [
        picture(tmp_path / "a.jpg", seed=1),
        picture(tmp_path / "b.PNG", "L", seed=2),
        picture(tmp_path / "deep" / "er" / "c.webp", seed=3),
        picture(tmp_path / "deep" / "d.bmp", seed=4),
        picture(tmp_path / "deep" / "e.jpeg", "CMYK", seed=5),
        picture(tmp_path / "deep" / "f.png", "RGBA", seed=6),
    ]
    picture(tmp_path / ".thumbnails" / "g.png")
    (tmp_path / "README.txt").write_text("about the images")
    dataset = open_dataset(tmp_path, SPEC)
    assert [each.name for each in dataset.samples] == [file.relative_to(tmp_path).as_posix() for file in sorted(files)]
    assert dataset.classes == ()
    assert not dataset.labelled
    images, labels = everything(dataset, 4)
    assert (images.shape, images.dtype, labels) == ((6, 3, 32, 32), np.float32, [])
    for sample, image in zip(dataset.samples, images, strict=True):
        assert np.array_equal(image, decode(sample.file.read_bytes(), sample.file, SPEC))


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = picture(tmp_path / "turned" / "a.png", exif=exif)
    upright = tmp_path / "upright" / "a.png"
    upright.parent.mkdir()
    with Image.open(turned) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(upright)
    found, wanted = (everything(open_dataset(file.parent, SPEC), 1)[0] for file in (turned, upright))
    assert np.array_equal(found, wanted)
    assert np.abs(found - found[:, :, ::-1, ::-1]).max() > 1


def test_folders_of_classes_give_labels(tmp_path: Path) -> None:
    for name, count in (("dog", 3), ("cat", 2), ("10", 1)):
        for i in range(count):
            picture(tmp_path / name / f"{i}.png", seed=i)
    dataset = open_dataset(tmp_path, SPEC)
    assert dataset.classes == ("10", "cat", "dog")
    assert dataset.labelled
    assert everything(dataset, 4)[1] == [0, 1, 1, 2, 2, 2]
    picture(tmp_path / "beside.png")
    assert open_dataset(tmp_path, SPEC).classes == ()


def test_a_subset_is_drawn_by_the_seed_and_keeps_the_order(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"{i:02}.png", seed=i)

    def names(size: int, seed: int) -> list[str]:
        return [each.name for each in open_dataset(tmp_path, SPEC, size=size, seed=seed).samples]

    assert names(8, 0) == names(8, 0) == sorted(names(8, 0))
    assert names(8, 0) != names(8, 1)
    assert len(set(names(8, 1))) == 8
    assert len(names(100, 0)) == 20
    assert open_dataset(tmp_path, SPEC, size=8).found == 20


def test_the_fingerprint_follows_names_labels_and_contents(tmp_path: Path) -> None:
    def of(*files: tuple[str, int]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, seed in files:
            picture(folder / name, seed=seed)
        return open_dataset(folder, SPEC).sha256

    first = of(("a.png", 1), ("b.png", 2))
    assert first == of(("a.png", 1), ("b.png", 2))
    others = [of(("a.png", 1), ("b.png", 3)), of(("a.png", 1), ("c.png", 2)), of(("x/a.png", 1), ("y/b.png", 2))]
    assert len({first, *others}) == 4


def test_tensors_are_taken_as_they_are(tmp_path: Path) -> None:
    first, second = (RANDOM.standard_normal((count, 3, 32, 32)).astype(np.float32) for count in (3, 2))
    np.save(tmp_path / "a.npy", first)
    np.savez(tmp_path / "b.npz", images=second, labels=np.array([7, 4]))
    dataset = open_dataset(tmp_path, SPEC)
    assert [each.name for each in dataset.samples] == ["a.npy[0]", "a.npy[1]", "a.npy[2]", "b.npz[0]", "b.npz[1]"]
    assert [each.label for each in dataset.samples] == [None, None, None, 7, 4]
    assert np.array_equal(everything(dataset, 2)[0], np.concatenate([first, second]))
    assert open_dataset(tmp_path, SPEC, size=2, seed=3).found == 5
    np.savez(tmp_path / "b.npz", images=2 * second, labels=np.array([7, 4]))
    assert np.array_equal(everything(open_dataset(tmp_path, SPEC), 2)[0], np.concatenate([first, 2 * second]))


def test_a_few_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / f"{i:02}.jpg", seed=i)
    (tmp_path / "03.jpg").write_bytes((tmp_path / "03.jpg").read_bytes()[:400])
    (tmp_path / "07.jpg").write_bytes(b"")
    told: list[None] = []
    dataset = open_dataset(tmp_path, SPEC, told=lambda: told.append(None))
    assert dataset.unreadable == ("03.jpg", "07.jpg")
    assert len(everything(dataset, 8)[0]) == 18
    assert len(told) == 20
    assert dataset.summary() == f"18 of 20 images in {tmp_path}; 2 unreadable: 03.jpg, 07.jpg"
    (tmp_path / "09.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"3 of 20 images in .* cannot be read \(03.jpg, 07.jpg, 09.jpg\)"):
        open_dataset(tmp_path, SPEC)


def _nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("no images here")


def _both(folder: Path) -> None:
    picture(folder / "a.png")
    np.save(folder / "b.npy", np.zeros((1, 3, 32, 32), np.float32))


def _shape(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((1, 32, 32, 3), np.float32))


def _type(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((1, 3, 32, 32), np.uint8))


def _nan(folder: Path) -> None:
    images = np.zeros((3, 3, 32, 32), np.float32)
    images[1, 0, 5, 5] = np.nan
    np.save(folder / "a.npy", images)


def _labels(folder: Path) -> None:
    np.savez(folder / "a.npz", images=np.zeros((3, 3, 32, 32), np.float32), labels=np.array([1, 2]))


def _unnamed(folder: Path) -> None:
    np.savez(folder / "a.npz", x=np.zeros(1), y=np.zeros(1))


def _pickled(folder: Path) -> None:
    np.save(folder / "a.npy", np.array([{"an": "object"}]), allow_pickle=True)


def _cut(folder: Path) -> None:
    np.savez(folder / "a.npz", images=np.zeros((3, 3, 32, 32), np.float32))
    (folder / "a.npz").write_bytes((folder / "a.npz").read_bytes()[:500])


def _empty_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.npz", "w"):
        pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_nothing, "there are no images in"),
        (_both, "holds both images (a.png) and tensors (b.npy)"),
        (_shape, "float32 of shape (1, 32, 32, 3); preprocessed float32 images (N, 3, 32, 32)"),
        (_type, "uint8 of shape (1, 3, 32, 32)"),
        (_nan, "a.npy[1] is not finite"),
        (_labels, "labels int64 (2,) for 3 images"),
        (_unnamed, "holds x, y; name the array of images 'images'"),
        (_pickled, "no file of NumPy arrays that can be read"),
        (_cut, "no file of NumPy arrays that can be read"),
        (_empty_zip, "holds nothing"),
    ],
    ids=lambda each: getattr(each, "__name__", "").strip("_"),
)
def test_data_that_cannot_be_used_is_refused_in_a_line(make, said: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ImageError) as caught:
        open_dataset(tmp_path, SPEC)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is not a folder"):
        open_dataset(file, SPEC)
    with pytest.raises(ImageError, match="does not exist"):
        open_dataset(tmp_path / "nowhere", SPEC)
