"""Training of classifiers. The same code trains float and quantized models."""

from collections.abc import Callable
from typing import TypeVar

import torch
from digits import Digits
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BATCH", "accuracy", "train"]

ModelT = TypeVar("ModelT", bound=nn.Module)

BATCH = 64
REACH = 2  # pixels; the digits are four pixels away from the border


def train(
    model: ModelT,
    digits: Digits,
    *,
    name: str,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Progress,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> ModelT:
    """Train with Adam under a one-cycle learning rate, on images shifted by up to two pixels.

    Args:
        model: a classifier that returns logits.
        digits: the data; only the train_ part is used.
        name: the label of the progress bar.
        epochs: passes over the training images.
        learning_rate: the peak of the cycle.
        seed: of the order and the shifts.
        progress: the display that gets a bar.
        penalty: what is added to the loss, called with the model after its forward.

    Returns:
        The model, in evaluation mode.
    """
    images, labels = digits.train_images, digits.train_labels
    chance = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    bar = progress.add_task(name, total=steps, note="")
    model.train()
    for _ in range(epochs):
        total = torch.zeros(())
        for batch in torch.randperm(len(images), generator=chance).split(BATCH):
            loss = F.cross_entropy(model(_shifted(images[batch], chance)), labels[batch])
            loss = loss if penalty is None else loss + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(batch)
            progress.advance(bar)
        progress.update(bar, note=f"loss {total.item() / len(images):.4f}")
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that get the right label, from 0 to 1."""
    return (model(images).argmax(1) == labels).float().mean().item()


def _shifted(images: Tensor, chance: torch.Generator) -> Tensor:
    """The images, each shifted by a random number of whole pixels."""
    shifts = torch.randint(-REACH, REACH + 1, (len(images), 2), generator=chance).tolist()
    return torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)])
