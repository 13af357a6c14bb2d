import torch
from rich.progress import Progress
from torch import nn


def test_accuracy(example):
    logits = torch.tensor([[0.0, 1.0], [3.0, 2.0], [5.0, 4.0], [0.0, 9.0]])
    assert example("training").accuracy(nn.Identity(), logits, torch.tensor([1, 0, 1, 1])) == 0.75


def test_training_learns_and_repeats(example):
    train, accuracy = example("training").train, example("training").accuracy
    labels = torch.arange(128) % 2
    images = torch.full((128, 1, 16, 16), -1.0)
    images[labels == 1, :, 6:10, 6:10] = 1.0
    digits = example("digits").Digits(images, labels, images, labels)

    def trained():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
        with Progress(disable=True) as progress:
            return train(model, digits, name="two", epochs=30, learning_rate=0.01, seed=3, progress=progress)

    model = trained()
    assert not model.training
    assert accuracy(model, images, labels) == 1
    assert torch.equal(model[1].weight, trained()[1].weight)
