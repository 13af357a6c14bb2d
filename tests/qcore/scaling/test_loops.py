"""Scalings that are called once for each step of a loop, and measure all steps together."""

import pytest
import torch

from bitwright.qcore import CalibratedScaling, IntRange, LearnedScaling, MinMax, RangeZeroPoint, RunningScaling

EIGHT = IntRange(8, signed=False)
STEPS = torch.tensor([[0.255], [2.55], [1.0]])


@pytest.mark.parametrize("kind", [CalibratedScaling, RunningScaling, LearnedScaling])
def test_all_steps_are_measured_once(kind):
    scaling = kind(EIGHT)
    scaling.start_loop(STEPS)
    scales = [scaling(step).item() for step in STEPS]
    scaling.end_loop()
    assert scales == [pytest.approx(0.01)] * 3
    assert scaling.steps.item() == 1


def test_afterwards_inputs_count_again():
    scaling = CalibratedScaling(EIGHT, momentum=1.0)
    scaling.start_loop(STEPS)
    scaling(STEPS[0])
    scaling.end_loop()
    assert scaling(STEPS[0]).item() == pytest.approx(0.001)
    assert scaling.steps.item() == 2


def test_the_last_step_of_a_calibration_is_measured_as_the_others():
    scaling = CalibratedScaling(EIGHT, calibration_steps=1)
    scaling.start_loop(STEPS)
    assert [scaling(step).item() for step in STEPS] == [pytest.approx(0.01)] * 3
    scaling.end_loop()
    assert scaling.phase == "calibrated"


def test_nothing_is_measured_in_a_loop_over_nothing():
    scaling = CalibratedScaling(EIGHT)
    scaling(STEPS)
    scaling.start_loop(None)
    scaling(100 * STEPS)
    scaling.end_loop()
    assert scaling.steps.item() == 1
    assert scaling.magnitude.item() == pytest.approx(2.55)


def test_evaluation_without_data_uses_the_range_of_all_steps():
    scaling = CalibratedScaling(EIGHT, MinMax()).eval()
    steps = torch.tensor([[-1.0], [1.55]])
    scaling.start_loop(steps)
    scales = [scaling(step) for step in steps]
    zero_points = [
        RangeZeroPoint(scaling, EIGHT)(step, scale).item() for step, scale in zip(steps, scales, strict=True)
    ]
    scaling.end_loop()
    assert [scale.item() for scale in scales] == [pytest.approx(0.01)] * 2
    assert zero_points == [100.0, 100.0]
    assert scaling.phase == "empty"


def test_a_loop_is_no_state():
    scaling = CalibratedScaling(EIGHT)
    scaling.start_loop(STEPS)
    assert scaling.__getstate__()["_loop"] is None
