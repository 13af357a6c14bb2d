"""The rules that hold for every algorithm: what a walk may change, and what it must not depend on."""

import copy
import os
import re
import signal

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import W4, GraphError, Solution, gptq, magr, qronos, quantize, search_scales, walk_blocks
from bitwright.graph.layerwise.solvers.error_feedback import solve_gptq
from bitwright.graph.layerwise.walking import choosing, walk
from bitwright.graph.layerwise.walking.guarding import uninterrupted
from bitwright.quantizers import Int4WeightPerGroup, Int8Act, NF4Weight, ShiftedUint4WeightPerChannel


class Block(nn.Module):
    def __init__(self, width, **settings):
        super().__init__()
        self.up = qnn.QuantLinear(width, 2 * width, **settings)
        self.act = qnn.QuantReLU(act_quant=None)
        self.drop = nn.Dropout(0.5)
        self.down = qnn.QuantLinear(2 * width, width, **settings)

    def forward(self, x):
        return x + self.down(self.drop(self.act(self.up(x))))


class Model(nn.Module):
    """A small transformer without attention: a chain of blocks between two layers."""

    def __init__(self, blocks=2, width=6, **settings):
        super().__init__()
        settings = settings or {"weight_bit_width": 3}
        self.first = qnn.QuantLinear(width, width, **settings)
        self.blocks = nn.ModuleList(Block(width, **settings) for _ in range(blocks))
        self.norm = nn.BatchNorm1d(width)
        self.last = qnn.QuantLinear(width, 3, **settings)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x))


def made(seed=0, **settings):
    torch.manual_seed(seed)
    return Model(**settings).eval()


def data(samples=48, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, generator=generator) @ torch.randn(3, 6, generator=generator)


def weights(model):
    return torch.cat([each.detach().double().flatten() for each in model.parameters()])


def state_of(model):
    """All that a walk must leave as it was."""
    attributes = {}
    for path, module in model.named_modules():
        for name, item in vars(module).items():
            if name in ("_kept", "_seen") and item is None:  # what the class says
                continue
            attributes[f"{path}:{name}"] = dict(item) if isinstance(item, dict) else item
    tensors = {name: each.clone() for name, each in model.state_dict().items()}
    return attributes, tensors, torch.random.get_rng_state()


def assert_as_before(model, before):
    attributes, tensors, generator = state_of(model)
    assert attributes.keys() == before[0].keys()
    for name, item in attributes.items():
        if isinstance(item, dict):
            assert item.keys() == before[0][name].keys(), name
            assert all(item[key] is before[0][name][key] for key in item), name
        else:
            assert item is before[0][name] or item == before[0][name], name
    assert tensors.keys() == before[1].keys()
    assert all(torch.equal(each, before[1][name]) for name, each in tensors.items())
    assert torch.equal(generator, before[2])


# What a walk does


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_bit_width": 3},
        {"weight_quant": ShiftedUint4WeightPerChannel, "weight_bit_width": 3},
        {"weight_quant": Int4WeightPerGroup, "weight_group_size": 4, "weight_bit_width": 3},
        {"weight_quant": NF4Weight, "weight_group_size": 4},
    ],
    ids=["per tensor", "zero points", "groups", "codebook"],
)
@pytest.mark.parametrize("algorithm", [gptq, qronos])
def test_grids_stay_and_weights_lie_on_them(algorithm, settings):
    model, x = made(**settings), data()
    layers = {path: each for path, each in model.named_modules() if isinstance(each, qnn.QuantLinear)}
    grids = {path: layer.take("weight")[1] for path, layer in layers.items()}
    floats = {path: layer.weight.clone() for path, layer in layers.items()}
    report = algorithm(model, x, progress=False)
    assert [entry.path for entry in report] == list(layers)
    assert len(report.changed) >= 3
    for path, layer in layers.items():
        values, after = layer.take("weight")
        assert torch.equal(after.scale, grids[path].scale)
        assert (after.zero_point is None) or torch.equal(after.zero_point, grids[path].zero_point)
        changed = report[path].changed
        assert layer.weight_quant.fixed is changed
        assert torch.equal(layer.weight, values if changed else floats[path])
        figures = report[path].figures
        assert (figures["after"] < figures["before"]) if changed else (figures["after"] == figures["before"])
        assert figures["rows"] == 48
        assert figures["seconds"] > 0


def test_what_is_no_better_than_rounding_to_nearest_is_not_kept():
    model, x = made(), data()
    before = state_of(model)
    report = walk_blocks(model, x, lambda path, problem: Solution(torch.zeros_like(problem.weight)), progress=False)
    assert {entry.reason for entry in report} == {"walk_blocks is not better than round-to-nearest"}
    assert not report.changed
    assert_as_before(model, before)


def test_outputs_for_which_rounding_to_nearest_is_better_keep_it():
    model, x = made(), data()
    wanted = {}

    def solve(path, problem):
        if path != "first":
            return None
        better = solve_gptq(problem).weight
        worse = torch.zeros_like(problem.weight)
        half = torch.arange(problem.weight.shape[1]).unsqueeze(1) < 3
        wanted[path] = torch.where(
            half & (problem.loss(better) < problem.loss(problem.nearest())).mT, better, problem.nearest()
        )
        return Solution(torch.where(half, better, worse))

    report = walk_blocks(model, x, solve, progress=False)
    assert report["first"].changed
    assert report["first"].figures["kept"] >= 0.5
    assert torch.equal(model.first.weight, wanted["first"][0])
    assert report["last"].reason == "the algorithm leaves it"


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (
            lambda problem: problem.nearest(),
            "the solver returned Tensor, which is no solution. Return Solution(weight), or None to leave the weight.",
        ),
        (
            lambda problem: Solution(problem.nearest()[0]),
            "the solver's weight has the shape (6, 6), and problem.weight has (1, 6, 6): (groups, outputs, inputs).",
        ),
        (
            lambda problem: Solution(problem.grid.scales.view(1, -1, 1) * torch.full((1, 6, 6), 0.5)),
            "the solver's weight is not on its grid: {half} is 0 there. End with problem.grid.nearest(weight), or "
            "write Solution(weight, on_grid=False) for float weights.",
        ),
        (
            lambda problem: Solution(problem.nearest() * float("nan")),
            "the solver's weight is not on its grid: nan is nan there. End with problem.grid.nearest(weight), or write "
            "Solution(weight, on_grid=False) for float weights.",
        ),
        (
            lambda problem: Solution(problem.weight.mul_(0)),
            "the solver changed problem.weight in place, which is measured against, and may serve other weights, too. "
            "Work on problem.weight.clone().",
        ),
        (
            lambda problem: problem.diagonal.add_(1),
            "the solver changed problem.gram in place, which is measured against, and may serve other weights, too. "
            "Work on problem.gram.clone().",
        ),
    ],
)
def test_what_is_no_solution_is_refused(solve, message):
    model = made()
    before = state_of(model)
    half = f"{float(model.first.weight_quant.grid(model.first.weight).scale.flatten()[0]) / 2:.6g}"
    message = f"mine: first: {message.replace('{half}', half)}"
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        walk_blocks(model, data(), lambda path, problem: solve(problem), name="mine", progress=False)
    assert_as_before(model, before)


def test_inputs_that_are_not_finite_are_the_reason():
    report = gptq(made(), data() * float("inf"), progress=False)
    why = "rounded to nearest: the second moments of the inputs aren't finite; its weight or its inputs aren't finite"
    assert {entry.reason for entry in report} == {why}


def test_weights_that_were_rounded_are_not_rounded_again():
    """Also where inputs of the float model would say that there is an error: its weights aren't known any more."""
    float_model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(256, 16)
    model = quantize(float_model, {nn.Linear: W4}).eval()
    assert len(gptq(model, x, progress=False).changed) == 2
    before = weights(model)
    message = (
        ": nothing to do. All weights lie on their grids already. Quantize the float model again, and begin with that."
    )
    for call in (gptq, qronos):
        with pytest.raises(GraphError, match=f"^{call.__name__}{re.escape(message)}$"):
            call(model, x, reference=float_model, progress=False)
    assert torch.equal(weights(model), before)
    model[2].weight_quant.release()
    with torch.no_grad():
        model[2].weight.copy_(float_model[2].weight)
    report = qronos(model, x, reference=float_model, progress=False)
    assert report["0"].reason == "its weight lies on its grid already"
    assert report["2"].action == "qronos"


def test_prepared_weights_and_grids():
    model, x = made(), data()
    floats = weights(model)
    report = search_scales(model, x, progress=False)
    assert torch.equal(weights(model), floats)  # only grids are fixed
    assert all(model.get_submodule(entry.path).weight_quant.fixed for entry in report.changed)
    assert report.changed
    model = made()
    largest = model.first.weight.abs().amax()
    report = magr(model, x, alpha=0.02, progress=False)
    assert len(report.changed) == 6
    assert model.first.weight.abs().amax() < largest
    assert not model.first.weight_quant.fixed


def test_a_model_in_training_with_dropout_and_batch_norm():
    model, x = made(), data()
    evaluated = copy.deepcopy(model)
    model.train()
    model.blocks[0].eval()
    before = {path: each.training for path, each in model.named_modules()}
    means = model.norm.running_mean.clone()
    gptq(model, x, progress=False)
    gptq(evaluated, x, progress=False)
    assert {path: each.training for path, each in model.named_modules()} == before
    assert torch.equal(model.norm.running_mean, means)
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(weights(model), weights(evaluated))


def test_parameters_that_are_not_trained():
    model = made().requires_grad_(False)
    gptq(model, data(), progress=False)
    assert model.first.weight_quant.fixed
    assert not model.first.weight.requires_grad


# What goes wrong leaves nothing behind


class Interrupted(nn.Module):
    """A layer that fails in one of its forwards."""

    def __init__(self, at, error):
        super().__init__()
        self.calls, self.at, self.error = [], at, error

    def forward(self, x):
        self.calls.append(0)
        if len(self.calls) == self.at:
            raise self.error
        return x


@pytest.mark.parametrize("where", ["solver", 5, 7])
@pytest.mark.parametrize(
    ("error", "wait_on"), [(RuntimeError("broken"), "device"), (KeyboardInterrupt(), "folder")], ids=["error", "Ctrl-C"]
)
def test_an_exception_leaves_everything_as_it_was(error, where, wait_on, tmp_path):
    model, x = made(), data()
    model.norm = nn.Sequential(model.norm, Interrupted(where, error))
    model.train()
    before = state_of(model)
    solved = []

    def solve(path, problem):
        solved.append(path)
        if where == "solver" and len(solved) == 3:
            raise error
        return Solution(problem.grid.nearest(problem.weight * 1.1))

    with pytest.raises(type(error)):
        walk_blocks(
            model,
            list(x.split(16)),
            solve,
            wait_on="device" if wait_on == "device" else tmp_path,
            progress=False,
        )
    model.norm[1].calls.clear()
    before[0]["norm.1:calls"].clear()
    assert_as_before(model, before)
    assert not os.listdir(tmp_path)


def test_a_failure_while_weights_are_written_leaves_the_grids_as_they_were(monkeypatch):
    model = made(weight_quant=ShiftedUint4WeightPerChannel, weight_bit_width=3)
    before = state_of(model)

    def fail(self):
        raise OSError("broken")

    monkeypatch.setattr(choosing.Choice, "write", fail)
    with pytest.raises(OSError, match="broken"):
        gptq(model, data(), progress=False)
    assert_as_before(model, before)
    assert not model.first.weight_quant.fixed


def test_an_interrupt_waits_until_all_is_written():
    done = []

    def written():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background start without one
    try:
        with pytest.raises(KeyboardInterrupt):
            written()
        assert done == [1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        written()
        assert done == [1, 1]
    finally:
        signal.signal(signal.SIGINT, before)


class Noisy(Model):
    """Random numbers in every forward, also in evaluation."""

    def forward(self, x):
        return super().forward(x + 1e-3 * torch.rand_like(x))


def test_random_numbers_go_on_where_they_were():
    torch.manual_seed(0)
    model = Noisy().eval()
    before = torch.random.get_rng_state()
    gptq(model, data(), progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)


# What the result doesn't depend on


def repaired(algorithm=gptq, batches=None, seed=0, model=None, **options):
    model = made(seed) if model is None else model
    x = data()
    algorithm(model, x if batches is None else list(x.split(batches)), progress=False, **options)
    return weights(model)


@pytest.mark.parametrize("algorithm", [gptq, qronos])
def test_batches_do_not_matter(algorithm):
    whole = repaired(algorithm)
    for batches in ([1, 30, 17], 7):
        assert torch.equal(repaired(algorithm, batches), whole)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = qnn.QuantConv2d(2, 4, 3, weight_bit_width=3)
        self.next = qnn.QuantConv2d(4, 4, 3, weight_bit_width=3)

    def forward(self, x):
        return self.next(torch.relu(self.conv(x)))


@pytest.mark.parametrize("rows", [1, 60, 100])
def test_batches_do_not_matter_where_rows_are_drawn(rows):
    torch.manual_seed(0)
    model, x = Images().eval(), torch.randn(12, 2, 8, 8)
    found = []
    for batches in (12, 5, 1):
        seen = {}
        walk_blocks(model, list(x.split(batches)), seen.__setitem__, rows=rows, progress=False)
        found.append(seen)
    each = -(-rows // 12)
    assert {problem.rows for seen in found for problem in seen.values()} == {12 * each}
    for seen in found[1:]:
        for path, problem in seen.items():
            assert torch.allclose(problem.gram, found[0][path].gram, rtol=1e-5, atol=1e-6)
            assert torch.allclose(problem.cross, found[0][path].cross, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", [gptq, qronos])
def test_a_chain_gives_what_the_whole_model_does(algorithm, monkeypatch):
    chained = repaired(algorithm, 24)
    monkeypatch.setattr(walk, "chain_of", lambda *args: None)
    assert torch.equal(repaired(algorithm, 24), chained)
    assert torch.equal(repaired(algorithm), chained)


@pytest.mark.parametrize("wait_on", ["cpu", "folder", "name of the folder"])
def test_where_inputs_wait_does_not_matter(wait_on, tmp_path):
    where = {"cpu": "cpu", "folder": tmp_path}.get(wait_on, str(tmp_path))
    assert torch.equal(repaired(qronos, 24, wait_on=where), repaired(qronos, 24))
    assert not os.listdir(tmp_path)


def test_a_float_model_as_reference_is_the_default():
    model = made()
    floats = nn.Module.__new__(FloatModel)
    FloatModel.__init__(floats)
    floats.load_state_dict({name: each for name, each in model.state_dict().items() if "quant" not in name})
    assert torch.equal(repaired(qronos, 24, reference=floats.eval()), repaired(qronos, 24))
    assert torch.equal(repaired(qronos, reference=floats), repaired(qronos))


class FloatBlock(Block):
    def __init__(self, width):
        nn.Module.__init__(self)
        self.up, self.act, self.drop = nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(0.5)
        self.down = nn.Linear(2 * width, width)


class FloatModel(Model):
    def __init__(self):
        nn.Module.__init__(self)
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(FloatBlock(6) for _ in range(2))
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(6, 3)


def test_repaired_models_are_nearer_to_the_float_model():
    x = data(400)
    for algorithm in (gptq, qronos):
        model = made(weight_bit_width=3, blocks=1)
        with torch.no_grad(), qnn.unquantized(model):
            wanted = model(x)
        with torch.no_grad():
            before = (model(x) - wanted).square().mean()
            algorithm(model, x, progress=False)
            assert (model(x) - wanted).square().mean() < 0.7 * before


# What can't be


def test_a_solver_is_a_function():
    said = (
        "walk_blocks: solve='gptq' is no function. Pass one that takes the path of a weight and a Problem, and returns "
        "a Solution or None."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(said)}$"):
        walk_blocks(made(), data(), "gptq")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 0}, "rows=0 is not possible: expected a whole number from 1 on, or None."),
        ({"rows": True}, "rows=True is not possible: expected a whole number from 1 on, or None."),
        ({"blocks": "blocks"}, "blocks='blocks' is no list of paths. Write blocks=['blocks']."),
        ({"wait_on": "disk"}, "wait_on='disk' is neither 'device' nor 'cpu' nor a folder that exists."),
        ({"checkpoint": True}, "checkpoint=True is no path of a file. Write checkpoint='walk.pt'."),
        (
            {"mask": "tokens"},
            "mask='tokens' is no argument that data gives; these are x. Leave mask out where all tokens count.",
        ),
        ({"mask": "x"}, None),
    ],
)
def test_options_that_mean_nothing(options, said):
    model = made()
    if said is None:
        with pytest.raises(GraphError) as caught:
            gptq(model, torch.zeros(2, 3, 6), **options)
        assert str(caught.value) == (
            "gptq: the mask x has the shape (2, 3, 6), and says nothing of tokens: that is a tensor (samples, tokens). "
            "Write mask=None to count all tokens."
        )
        return
    with pytest.raises(GraphError, match=re.escape(f"gptq: {said}") + "$"):
        gptq(model, data(), **options)


def test_models_that_a_walk_refuses():
    with pytest.raises(GraphError) as caught:
        gptq(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    assert str(caught.value) == (
        "gptq: this Sequential has no quantized weight. Quantize it first: "
        "quantize(model, {nn.Conv2d: W8A8, nn.Linear: W8A8})."
    )
    uncalibrated = nn.Sequential(*(qnn.QuantLinear(2, 2, input_quant=Int8Act) for _ in range(10)))
    with pytest.raises(GraphError) as caught:
        gptq(uncalibrated, torch.ones(1, 2))
    named = ", ".join(f"{number}.input_quant" for number in range(8))
    assert str(caught.value) == (
        f"gptq: {named} and 2 more saw no data and have no range yet, so inputs are not those of the quantized model. "
        "Calibrate first: with calibrate(model): model(batch)."
    )
    with pytest.raises(GraphError) as caught:
        gptq(nn.Sequential(qnn.QuantLinear(2, 2, device="meta")), torch.ones(1, 2))
    assert str(caught.value) == "gptq: 0.weight is on the meta device, without numbers. Load the model first."


class Sequences(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def test_a_reference_that_hides_its_products():
    model = Sequences(qnn.QuantLSTM(4, 3, hidden_quant=None)).eval()
    with pytest.raises(GraphError) as caught:
        qronos(model, torch.randn(4, 5, 4), reference=Sequences(nn.LSTM(4, 3)))
    assert str(caught.value) == (
        "qronos: the reference hides what meets layer.weight_ih_l0, layer.weight_hh_l0: a function of torch computes "
        "the whole layer. Leave reference out; the model with its quantizers off stands for it."
    )


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (nn.Sequential(nn.Linear(6, 6)), "The reference has no layer first."),
        (Model(width=4), "The reference has another layer at first."),
    ],
)
def test_a_reference_of_another_model(reference, said):
    with pytest.raises(GraphError) as caught:
        qronos(made(), data(), reference=reference, progress=False)
    assert str(caught.value) == f"{said} Pass the float model that this one was made from, with the same paths."
