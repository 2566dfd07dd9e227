# SPDX-License-Identifier: Apache-2.0
"""calibration.json is used again where it fits, and refused where it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metaformer_export.artifacts import Traced
from metaformer_export.calibration.table import Calibration, Key, check_for, key_of, read_calibration
from metaformer_export.errors import InputError
from metaformer_export.export.lower import lower
from metaformer_export.export.serialize import apart

KEY = Key("graph", "weights", "data", "entropy", equalize=True)
TABLE = Calibration(KEY, "hornet_tiny_7x7", "photographs", 12, {"a": (-1.5, 2.25), "b": (0.0, 1e-7)})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    TABLE.write(file)
    assert read_calibration(file) == TABLE
    replace(TABLE, images=13).write(file)
    assert read_calibration(file).images == 13
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "calibration.json"
    TABLE.write(file)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(TABLE, images=13).write(file)
    assert read_calibration(file) == TABLE
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_a_key_follows_the_graph_the_weights_the_images_and_the_method(traced_small_gf: Traced) -> None:
    file = apart(lower(traced_small_gf, "portable").model)
    key = key_of(file.graph, file.weights, "data", "mse", equalize=True)
    assert key == key_of(file.graph, file.weights, "data", "mse", equalize=True)
    name, array = next(iter(file.weights.items()))
    moved = {**file.weights, name: array + np.float32(1e-3)}
    assert key.difference(key_of(file.graph, moved, "data", "mse", equalize=True)) == "other weights"
    assert key.difference(key_of(file.graph + b" ", file.weights, "data", "mse", equalize=True)) == "another graph"
    assert key.difference(key_of(file.graph, file.weights, "others", "mse", equalize=True)) == "other images"
    assert key.difference(key_of(file.graph, file.weights, "data", "minmax", equalize=True)) == "another method"
    assert key.difference(key) == ""


def test_a_table_of_another_model_is_refused() -> None:
    check_for(
        TABLE, Path("c.json"), replace(KEY, data_sha256="more", method="minmax", equalize=True), "hornet_tiny_7x7"
    )
    with pytest.raises(InputError, match=r"c.json is of other weights \(hornet_tiny_7x7\) than this hornet_tiny_7x7"):
        check_for(TABLE, Path("c.json"), replace(KEY, weights_sha256="x"), "hornet_tiny_7x7")
    with pytest.raises(InputError, match="is of another graph"):
        check_for(TABLE, Path("c.json"), replace(KEY, graph_sha256="x"), "focalnet_tiny_srf")


def _changed(**changes: object) -> str:
    content = {"format": 1, "key": vars(KEY), "model": "m", "source": "s", "images": 1}
    content |= {"ranges": {"a": [0, 1]}, "equalized": {"a": "1 0"}}
    return json.dumps({**content, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        (_changed(format=2), "is of format 2, this version reads 1"),
        (_changed(ranges={"a": [1]}), "damaged"),
        (_changed(equalized={"a": "1 x"}), "damaged"),
        (_changed(ranges={"a": [2, 1]}), "has no range for a"),
        (_changed(ranges={"a": [0, float("nan")]}), "has no range for a"),
        (_changed(key={**vars(KEY), "method": "guess"}), "method 'guess', which is not known"),
    ],
)
def test_a_damaged_table_is_refused_in_a_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_calibration(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_calibration(tmp_path / "calibration.json")


def test_exponents_of_an_equalised_graph_come_back(tmp_path: Path) -> None:
    written = replace(TABLE, equalized={"a/Conv": (0, -3, 8), "b": ()})
    written.write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json") == written
