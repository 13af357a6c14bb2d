"""Models that are chains of blocks, and models that only look like it."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, walk_blocks
from bitwright.graph.layerwise.solvers.error_feedback import solve_gptq
from bitwright.graph.layerwise.walking import walk
from bitwright.graph.layerwise.walking.chain import chain_of
from bitwright.graph.layerwise.walking.stages import Kept

WIDTH = 4


def layer(width=WIDTH):
    return qnn.QuantLinear(width, width, weight_bit_width=3)


class Masked(nn.Module):
    """A block that gets more than the values, and returns more."""

    def __init__(self):
        super().__init__()
        self.layer = layer()

    def forward(self, x, scale, flag=None):
        return self.layer(x) * scale, x.mean()


class Arguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = layer()
        self.blocks = nn.ModuleList(Masked() for _ in range(3))
        self.head = layer()

    def forward(self, x):
        x, scale = self.stem(x), x.abs().amax()
        for block in self.blocks:
            x, _ = block(x, scale, flag=True)
        return self.head(x)


class Skipping(Arguments):
    """What goes in comes back behind the blocks."""

    def forward(self, x):
        first = self.stem(x)
        x = first
        for block in self.blocks:
            x = block(x, 2.0)[0]
        return self.head(x + first)


class Pyramid(Arguments):
    """What blocks return is used twice."""

    def forward(self, x):
        kept, x = [], self.stem(x)
        for block in self.blocks:
            x = block(x, 2.0)[0]
            kept.append(x)
        return self.head(sum(kept))


class Counting(Arguments):
    """Blocks that keep something from one forward to the next."""

    def forward(self, x):
        seen = [0]
        for block in self.blocks:
            x = block(x, seen)[0]
        return self.head(x)


class Counted(Masked):
    def forward(self, x, seen):  # type: ignore[override]
        seen[0] += 1
        return self.layer(x) * seen[0], x.mean()


class Deciding(Pyramid):
    """Like it, and all that it returns are whole numbers."""

    def forward(self, x):
        return super().forward(x).argmax(1)


class Between(Arguments):
    """Something comes between the blocks."""

    def forward(self, x):
        for block in self.blocks:
            x = torch.relu(block(x, 2.0)[0])
        return self.head(x)


class Varied(Arguments):
    """Blocks get different arguments."""

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            x = block(x, float(number + 1))[0]
        return self.head(x)


def counting():
    model = Counting()
    model.blocks = nn.ModuleList(Counted() for _ in range(3))
    return model


def nested():
    return nn.Sequential(
        nn.Sequential(layer(), nn.ReLU()),
        nn.Sequential(nn.Sequential(layer(), nn.ReLU()), layer()),
        layer(),
    )


CHAINS = {
    "a sequence": (lambda: nn.Sequential(layer(), nn.ReLU(), layer()), ("0", "1", "2")),
    "nested sequences": (nested, ("0.0", "0.1", "1.0.0", "1.0.1", "1.1", "2")),
    "a list of blocks with arguments": (Arguments, ("blocks.0", "blocks.1", "blocks.2")),
    "a skip from the head to the tail": (Skipping, ("blocks.0", "blocks.1", "blocks.2")),
}
NONE = {
    "inner outputs used": Pyramid,
    "whole numbers": Deciding,
    "blocks with a memory": counting,
    "between": Between,
    "varied": Varied,
}


def walked(model, x, **options):
    """The problems of a walk, and the chain that it takes."""
    problems, chains, own = {}, [], walk._Walk._chain

    def spy(self, *args):
        chains.append(own(self, *args))
        return chains[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk._Walk, "_chain", spy)
        walk_blocks(model.eval(), x, problems.__setitem__, progress=False, **options)
    return problems, chains[0]


@pytest.mark.parametrize("name", [*CHAINS, *NONE])
def test_chains_are_found_and_give_what_the_model_does(name, monkeypatch):
    torch.manual_seed(0)
    model, paths = CHAINS[name] if name in CHAINS else (NONE[name], None)
    model, x = model(), list(torch.randn(12, WIDTH).split(5))
    problems, chain = walked(model, x)
    assert (None if chain is None else chain.paths) == paths
    monkeypatch.setattr(walk, "chain_of", lambda *args: None)
    whole, none = walked(model, x)
    assert none is None
    assert list(problems) == list(whole)
    for path, problem in problems.items():
        assert torch.allclose(problem.gram, whole[path].gram, rtol=1e-5, atol=1e-6)
        assert torch.allclose(problem.cross, whole[path].cross, rtol=1e-5, atol=1e-6)


def test_blocks_that_are_named():
    torch.manual_seed(0)
    _, chain = walked(Arguments(), torch.randn(8, WIDTH), blocks=["blocks.1", "blocks.2"])
    assert chain.paths == ("blocks.1", "blocks.2")


@pytest.mark.parametrize(
    ("model", "blocks", "said"),
    [
        (
            Pyramid,
            ["blocks"],
            "blocks=['blocks'] is no chain: run one by one, they don't give what the model does. What "
            "they return is used elsewhere, too, or they keep something from one forward to the next. Leave blocks "
            "out, or name others.",
        ),
        (Arguments, ["blocks.9"], "blocks=['blocks.9']: this Arguments has no module 'blocks.9'."),
        (
            Arguments,
            ["blocks.0", "blocks.2"],
            "blocks=['blocks.0', 'blocks.2'] don't follow one another: blocks.2 doesn't get the output of the one "
            "before it, or gets more of it. Name blocks each of which gets what the one before it returns, or leave "
            "blocks out.",
        ),
        (
            Varied,
            ["blocks"],
            "blocks=['blocks'] don't follow one another: blocks.1 gets other arguments than the first of them. Name "
            "blocks each of which gets what the one before it returns, or leave blocks out.",
        ),
        (
            lambda: nn.Sequential(*[layer()] * 2),
            ["0", "0"],
            "blocks=['0', '0'] don't follow one another: 0 is called 2 times. Name blocks each of which gets what the "
            "one before it returns, or leave blocks out.",
        ),
    ],
)
def test_blocks_that_are_no_chain(model, blocks, said):
    torch.manual_seed(0)
    with pytest.raises(GraphError) as caught:
        walk_blocks(model().eval(), torch.randn(8, WIDTH), lambda path, problem: None, blocks=blocks)
    assert str(caught.value) == f"walk_blocks: {said}"


def test_a_batch_that_does_not_come_to_the_blocks():
    class Short(Arguments):
        def forward(self, x):
            return super().forward(x) if x[0, 0] > 0 else x

    torch.manual_seed(0)
    with pytest.raises(GraphError) as caught:
        walk_blocks(Short().eval(), [torch.ones(2, WIDTH), -torch.ones(2, WIDTH)], lambda path, problem: None)
    assert str(caught.value) == (
        "Batch 1 doesn't come to blocks.0, the first block. Leave that batch out, or name other blocks."
    )


def test_a_module_that_comes_twice_is_in_no_chain():
    torch.manual_seed(0)
    relu = nn.ReLU()
    problems, chain = walked(nn.Sequential(layer(), relu, layer(), relu), torch.randn(8, WIDTH))
    assert chain is None
    assert list(problems) == ["0", "2"]


def test_a_model_without_lists_is_no_chain():
    assert chain_of(nn.Linear(2, 2), ((torch.ones(1, 2),), {}), None) is None


@pytest.mark.parametrize("wait_on", ["device", "cpu", "folder"])
def test_what_is_kept_comes_back(wait_on, tmp_path):
    kept = Kept(tmp_path if wait_on == "folder" else wait_on)
    calls = [
        ((torch.full((2,), float(number)), None), {"text": "a", "pair": (torch.ones(1), 3)}) for number in range(3)
    ]
    for call in calls:
        kept.append(call)
    kept.replace(1, ((torch.zeros(5),), {}))
    assert len(kept) == 3
    assert torch.equal(kept[2][0][0], torch.full((2,), 2.0))
    assert kept[0][1]["text"] == "a"
    assert [tuple(call[0][0].shape) for call in kept] == [(2,), (5,), (2,)]
    assert len(list(tmp_path.iterdir())) == (wait_on == "folder")
    kept.close()
    assert len(kept) == 0
    assert not list(tmp_path.iterdir())


def bytes_of(value):
    tensors = [each for each in torch.utils._pytree.tree_leaves(value) if isinstance(each, torch.Tensor)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


@pytest.mark.parametrize("blocks", [2, 8])
def test_a_walk_keeps_the_inputs_of_one_block_and_a_byte_for_each_weight(blocks, monkeypatch):
    """Memory grows with the number of blocks by the codes alone."""
    width, samples = 16, 64
    torch.manual_seed(0)
    model = nn.Sequential(*(layer(width) for _ in range(blocks))).eval()
    kept, walks, largest = [], [], []
    own, began = Kept.__init__, walk._Walk.__init__

    def watched(self, *args):
        own(self, *args)
        kept.append(self)

    def begin(self, *args):
        began(self, *args)
        walks.append(self)

    monkeypatch.setattr(Kept, "__init__", watched)
    monkeypatch.setattr(walk._Walk, "__init__", begin)

    def solve(path, problem):
        inputs = bytes_of([each._calls for each in kept])
        choices = walks[0].choices.values()
        codes = sum(each.codes.nbytes for each in choices if each.codes is not None)
        values = bytes_of([[each.values for each in choices], list(walks[0].chosen.values()), walks[0].kept])
        largest.append((inputs, codes, values))
        return solve_gptq(problem)

    x = list(torch.randn(samples, width).split(16))
    walk_blocks(model, x, solve, progress=False)
    assert len(largest) == blocks
    activations, weight = 4 * samples * width, 4 * width * width
    # the data itself, and the inputs of a block in the quantized model and in the float one
    assert max(inputs for inputs, _, _ in largest) == 3 * activations
    assert largest[-1][1] <= (blocks - 1) * width * width
    assert max(values for _, _, values in largest) <= 3 * weight
