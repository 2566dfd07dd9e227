# SPDX-License-Identifier: Apache-2.0
"""Networks of a family that are not its authors'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metaformer_export import create_model
from metaformer_export.errors import CheckpointError, InputError
from metaformer_export.models.loading import load_model
from metaformer_export.options import parse_size

SMALL = {"width": 16, "depths": (1, 1, 2, 1)}


def test_a_smaller_network_has_the_parts_of_the_large_one() -> None:
    model = create_model("hornet_t_gf", num_classes=10, sizes=SMALL)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.03 * 22_950_000
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    features = create_model("poolformer_s12", features=True, sizes={"dims": (8, 16, 24, 32)})
    assert [each.shape[1] for each in features(torch.zeros(1, 3, 64, 64))] == [8, 16, 24, 32]


def test_it_loads_weights_of_its_own_size_alone(tmp_path: Path) -> None:
    model = create_model("focalnet_t", num_classes=10, sizes=SMALL, seed=3)
    file = tmp_path / "small.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    loaded = load_model("focalnet_t", checkpoint=file, sizes=SMALL)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.module(x), model(x))
    assert loaded.spec.sizes == SMALL
    assert "width 16, depths 1,1,2,1" in loaded.notes[0]
    with pytest.raises(CheckpointError, match="is not a whole"):
        load_model("focalnet_t", checkpoint=file)


@pytest.mark.parametrize(
    ("model", "sizes", "said"),
    [
        ("hornet_t", {"dims": (1, 2, 3, 4)}, "hornet_tiny|hornet_t has no 'dims' to set; it has width, depths"),
        ("hornet_t", {"depths": (1, 2, 3)}, "takes 4 numbers, for instance 2,3,18,2"),
        ("hornet_t", {"width": (1, 2)}, "takes one number, for instance 64"),
        ("hornet_t", {"width": 0}, "at least 1 and at most 65536; got 0"),
        ("acmix_r26", {"depths": (1, 1, 1, 1)}, "it comes as it is"),
        ("boat_swin_t", {"width": 10}, "cannot be built with width 10"),
    ],
)
def test_what_cannot_be_is_refused(model: str, sizes: dict[str, int | tuple[int, ...]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        create_model(model, sizes=sizes)


def test_sizes_are_read_from_a_command_line() -> None:
    assert parse_size("width=16") == ("width", 16)
    assert parse_size("depths = 1, 1,2,1") == ("depths", (1, 1, 2, 1))
    for wrong in ("width", "width=", "width=a", "depths=1,,1", "width=-1", "width=9999999999"):
        with pytest.raises(InputError, match="--set takes NAME=N"):
            parse_size(wrong)
