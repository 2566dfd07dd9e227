# SPDX-License-Identifier: Apache-2.0
"""Train the small models of `trained_models.py`: python tests/assets/train.py [NAME ...]; about a minute each."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from trained_models import CLASSES, TRAINED, Digits, Trained, digits

from metaformer_export.calibration.images import preprocess
from metaformer_export.models import registry
from metaformer_export.models.building import build
from metaformer_export.models.family import BuildOptions, Variant
from metaformer_export.models.sizes import resized

_TESTED = 64
"""Images at once."""
_SCALES = ("gamma1", "gamma2", "gamma_1", "gamma_2", "layer_scale_1", "layer_scale_2")
"""Layer scales, which start near zero for networks ten times as deep."""


def tensors(data: Digits, variant: Variant, side: int) -> tuple[Tensor, Tensor]:
    """All images preprocessed as an export does it."""
    count = len(data.labels)
    images = [preprocess(data.picture(i).convert("RGB"), variant.preprocessing, (side, side)) for i in range(count)]
    return torch.from_numpy(np.stack(images)), torch.from_numpy(data.labels)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(-1) for part in images.split(_TESTED)])
    return 100 * float((found == labels).float().mean())


def train(wanted: Trained) -> str:
    """Train one, write its weights, and say in a line how it went."""
    torch.manual_seed(0)
    started = time.perf_counter()
    family, variant = registry.find(wanted.model)
    variant = resized(variant, wanted.sizes)
    model = build(family, variant, BuildOptions(num_classes=CLASSES))
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in _SCALES:
            nn.init.constant_(parameter, 0.5)
    training, testing = digits()
    images, labels = tensors(training, variant, wanted.side)
    optimizer = torch.optim.AdamW(model.parameters(), wanted.learning_rate, weight_decay=0.05)
    steps = wanted.epochs * -(-len(labels) // wanted.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, wanted.learning_rate, total_steps=steps)
    for epoch in range(wanted.epochs):
        model.train()
        losses = []
        for chosen in torch.randperm(len(labels)).split(wanted.batch):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"{wanted.name}: epoch {epoch + 1}, loss {np.mean(losses):.3f}", file=sys.stderr)
    seconds = time.perf_counter() - started
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, wanted.weights)
    reached = accuracy(model, *tensors(testing, variant, wanted.side))
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{wanted.name}: {reached:.2f} % of {len(testing.labels)} test images, {count} parameters, "
        f"{wanted.weights.stat().st_size / 1e6:.2f} MB, {wanted.epochs} epochs, {seconds:.0f} s"
    )


if __name__ == "__main__":
    for each in TRAINED:
        if not sys.argv[1:] or each.name in sys.argv[1:]:
            print(train(each), flush=True)
