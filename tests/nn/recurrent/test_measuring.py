"""All steps of a loop are measured as one tensor."""

import pytest
import torch

from bitwright.nn.recurrent.measuring import grid_of_steps, measured_once, quantizing, settled_steps, to_measure
from bitwright.nn.recurrent.sequence import steps_of
from bitwright.qcore import resolve
from bitwright.quantizers import Int8Act, Int8ActPerChannel

STEPS = [torch.tensor([[0.5]]), torch.tensor([[-1.28]]), torch.tensor([[0.25]])]


def quantizer(**settings):
    return resolve(Int8Act(statistic="abs_max", **settings))


def over_all_steps(sites):
    return [sites["hidden"](step) for step in STEPS]


def test_sites_quantize_in_the_range_of_all_steps():
    quant, grids = quantizer(), {}
    with measured_once({"hidden": quant}, over_all_steps):
        found = [each.item() for each in over_all_steps(quantizing({"hidden": quant}, grids))]
    assert found == pytest.approx([0.5, -1.28, 0.25])
    assert grids["hidden"].scale.item() == pytest.approx(0.01)
    assert quant.scaling.steps.item() == 1


def test_the_dry_run_uses_the_range_there_is():
    """The second forward sees what the first range clips: 1.28 becomes 1.27."""
    quant, seen = quantizer(momentum=1.0), []

    def run(sites):
        seen.append(sites["hidden"](torch.tensor([[1.28]])).item())

    for _ in range(2):
        with measured_once({"hidden": quant}, run):
            quant(torch.ones(1, 1))
    assert seen == [pytest.approx(1.28), pytest.approx(1.27)]


def test_slots_that_share_a_module_are_measured_together():
    quant = quantizer()
    shared = {"hidden": quant, "cell": quant}

    def run(sites):
        sites["hidden"](torch.full((1, 2), 0.5))
        sites["cell"](torch.full((1, 3), 1.28))

    with measured_once(shared, run):
        quant(torch.ones(1, 2))
    assert quant.scale().item() == pytest.approx(0.01)
    assert quant.scaling.steps.item() == 1


@pytest.mark.parametrize(
    ("settings", "training", "measures"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"calibration_steps": 1}, True, False),
        ({"scaling": "running"}, True, True),
        ({"scaling": "running"}, False, False),
        ({"scaling": "learned"}, True, False),
        ({"scaling": "statistic"}, True, False),
        ({"scale": 0.5}, True, False),
    ],
)
def test_what_is_measured_after_a_first_forward(settings, training, measures):
    quant = resolve(Int8Act(**settings))
    quant(torch.ones(1, 1))
    quant.train(training)
    assert bool(to_measure({"hidden": quant})) is measures


def test_settled_grids():
    quant = quantizer()
    with measured_once({"hidden": quant}, over_all_steps):
        steps = settled_steps({"hidden": quant}, STEPS[0])
    assert steps["hidden"].scale.item() == pytest.approx(0.01)
    assert quant.scaling.steps.item() == 1
    grid = grid_of_steps(quant, steps["hidden"])
    assert (grid.bounds, grid.source) == ((-128, 127), quant.source)
    assert steps_of(quant).scale.item() == steps["hidden"].scale.item()


def test_there_is_no_settled_grid_with_scales_for_each_feature_or_an_intercept():
    assert settled_steps({"hidden": resolve(Int8ActPerChannel(scale=0.5))}, STEPS[0]) is None
    quant = resolve(Int8Act(scale=0.5))
    quant.__dict__["intercept"] = lambda quant, x: (x, None)
    assert settled_steps({"hidden": quant}, STEPS[0]) is None
