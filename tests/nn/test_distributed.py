"""Two gloo processes train as one process on the pooled data."""

import faulthandler
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import bitwright.nn as qnn
from bitwright.qcore import (
    AbsMax,
    AbsPercentile,
    Granularity,
    LearnedBitWidth,
    MeanSigma,
    MinMax,
    PerAxis,
    PerBlock,
    PercentileInterval,
    PerTensor,
    QuantizerError,
)
from bitwright.qcore.scaling.statistics import measure, measured
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int32Bias,
    ShiftedUint8Act,
)

RANKS = 2
STATISTICS = ("abs_max", "percentile", "min_max", "percentile_interval", "mean_sigma")


class LearnedGroups(Int4WeightPerGroup):
    """A learned scale for each group of weights: as many as the layer's shape says, the last group shorter."""

    scaling = "learned"
    group_size = 4


def _model(statistic: str) -> nn.Module:
    torch.manual_seed(0)
    settings = {"calibration_steps": 3, "return_quant_tensor": True, "statistic": statistic}
    if statistic in ("min_max", "percentile_interval"):
        settings["act_quant"] = ShiftedUint8Act
    return nn.Sequential(
        qnn.QuantIdentity(**settings),
        qnn.QuantLinear(6, 8, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannel),
        qnn.QuantReLU(calibration_steps=3, bit_width=4),
        qnn.QuantLinear(8, 3, weight_quant=LearnedGroups, weight_group_size=3),
    )


def _root_mean_square(rows: torch.Tensor) -> torch.Tensor:
    """A statistic of the user's own, which can't tell what several ranks have."""
    return rows.square().mean(1).sqrt()


def _name(statistic: Any) -> str:
    return getattr(statistic, "__name__", repr(statistic))


class _Block(nn.Module):
    """Every kind of state that there is: collected and learned scales, also of groups, zero points, a bit width."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = qnn.QuantIdentity(calibration_steps=3, return_quant_tensor=True)
        self.up = qnn.QuantLinear(6, 8, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannelLearned)
        self.act = qnn.QuantReLU(calibration_steps=3, bit_width=4)
        self.down = qnn.QuantLinear(
            8, 6, weight_bit_width=LearnedBitWidth, input_quant=ShiftedUint8Act, input_calibration_steps=3
        )
        self.groups = qnn.QuantLinear(6, 6, weight_quant=LearnedGroups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.act(self.up(self.entry(x))))
        return x + self.groups(x)


def _blocks() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(_Block(), _Block())


def _each_block(model: nn.Module, **settings: Any) -> Any:
    for block in model.children():
        fully_shard(block, **settings)
    return fully_shard(model, **settings)


def _each_layer(model: nn.Module) -> Any:
    for module in model.modules():
        if isinstance(module, (qnn.QuantLinear, qnn.QuantReLU, qnn.QuantIdentity)):
            fully_shard(module)
    return fully_shard(model)


SHARDINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "each block": _each_block,
    "each block, gathered until backward": lambda model: _each_block(model, reshard_after_forward=False),
    "each layer": _each_layer,
}
PER_CHANNEL = nn.Sequential(qnn.QuantIdentity(axis=1, channels=3)).state_dict()
WHOLE = StateDictOptions(full_state_dict=True)
SENT = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def _data(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    data = torch.randn(8, 6, generator=generator)
    data[4:] *= 4  # the second rank sees four times larger values
    return data


def _train(model: nn.Module, rank: int | None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(6):
        data = _data(step)
        share = data if rank is None else data[rank * 4 : rank * 4 + 4]
        optimizer.zero_grad()
        model(share).square().mean().backward()
        optimizer.step()


def _worker(rank: int, folder: str) -> None:
    faulthandler.enable()  # a rank that dies says where
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        for statistic in STATISTICS:
            model = DistributedDataParallel(_model(statistic))
            _train(model, rank)
            torch.save(model.module.state_dict(), f"{folder}/{statistic}-{rank}.pt")
        torch.save(_sharded(rank), f"{folder}/sharded-{rank}.pt")
        torch.save(_pooled(_shares()[rank]), f"{folder}/pooled-{rank}.pt")
        torch.save(_pooled(_shares()[0][: 7 * (1 - rank)], POOLED[:3]), f"{folder}/alone-{rank}.pt")
        dist.barrier()  # nobody leaves while another still reads what was sent
    finally:
        dist.destroy_process_group()


MEASURED = [AbsMax(), MinMax(), AbsPercentile(60.0), PercentileInterval(20.0, 80.0), MeanSigma(), _root_mean_square]
POOLED = [PerTensor(), PerAxis(1), PerAxis(-1), PerBlock((-1, 2)), PerBlock((-1, 4))]  # the last one of 4 + 2


def _shares() -> list[torch.Tensor]:
    """What each rank sees: 7 rows and 3."""
    return list(torch.randn(10, 6, generator=torch.Generator().manual_seed(7)).split([7, 3]))


def _pooled(x: torch.Tensor, granularities: list[Granularity] = POOLED) -> dict[tuple[str, str], list[torch.Tensor]]:
    return {
        (_name(statistic), str(granularity)): measure(statistic, x, granularity)
        for statistic in MEASURED
        for granularity in granularities
    }


def _sharded(rank: int) -> dict[str, Any]:
    """What one rank finds with FSDP."""
    found: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for name, shard in SHARDINGS.items():
        model = shard(_blocks())
        _train(model, rank)
        state = get_model_state_dict(model, options=WHOLE)  # of rank 0; the others get none
        found[name] = {key: each.clone() for key, each in state.items()}
        found[f"{name}, buffers"] = {key: each.clone() for key, each in model.named_buffers()}
        model.eval()
        with torch.no_grad():
            found[f"{name}, evaluated"] = [model(_data(9))]
            for parameter in model.parameters():
                parameter.mul_(1.5)
            found[f"{name}, evaluated"].append(model(_data(9)))
    with torch.device("meta"):
        model = _blocks()
    _each_block(model).to_empty(device="cpu")
    set_model_state_dict(model, state if rank == 0 else {}, options=SENT)
    with torch.no_grad():
        found["loaded"] = model.eval()(_data(9))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = _each_block(_blocks(), mp_policy=half)
    _train(model, rank)
    found["half"] = {key: each.clone() for key, each in get_model_state_dict(model, options=WHOLE).items()}
    for name, call in (
        ("forward", lambda model: model(torch.ones(2, 3))),
        ("load", lambda model: set_model_state_dict(model, PER_CHANNEL, options=WHOLE)),
    ):
        try:
            call(fully_shard(nn.Sequential(qnn.QuantIdentity(axis=1))))
        except QuantizerError as error:
            found[name] = str(error)
    model = fully_shard(nn.Sequential(qnn.QuantIdentity(axis=1, channels=3, calibration_steps=1)))
    found["told"] = model(torch.ones(2, 3) * (rank + 1))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the ranks wrote what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    # forked from a fresh server, ranks end without the interpreter's teardown, in which torch's threads may abort
    start_processes(_worker, (str(folder),), nprocs=RANKS, start_method="forkserver")
    return folder


@pytest.fixture(scope="module")
def saved(ranks: Any) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """The state of each rank after training, for each statistic."""
    return {
        (statistic, rank): torch.load(ranks / f"{statistic}-{rank}.pt", weights_only=True)
        for statistic in STATISTICS
        for rank in range(RANKS)
    }


@pytest.fixture(scope="module")
def sharded(ranks: Any) -> list[dict[str, Any]]:
    """What each rank found with FSDP."""
    return [torch.load(ranks / f"sharded-{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone() -> nn.Module:
    """The same blocks, trained by one process."""
    model = _blocks()
    _train(model, None)
    return model


@pytest.mark.parametrize("statistic", STATISTICS)
def test_two_ranks_equal_one_process_on_the_pooled_data(saved, statistic: str) -> None:
    first, second = saved[statistic, 0], saved[statistic, 1]
    alone = _model(statistic)
    _train(alone, None)
    expected = alone.state_dict()
    assert first.keys() == second.keys() == expected.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], expected[key], rtol=2e-5, atol=2e-6, msg=key)
    assert expected["0.act_quant.scaling.steps"] == 3
    assert expected["3.weight_quant.scaling.magnitude_offset"].shape == (9,)


def _found(ranks: Any, name: str) -> list[dict[tuple[str, str], list[torch.Tensor]]]:
    return [torch.load(ranks / f"{name}-{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("granularity", POOLED, ids=str)
@pytest.mark.parametrize("statistic", MEASURED, ids=_name)
def test_statistics_are_those_of_all_ranks(ranks, statistic: Any, granularity: Granularity) -> None:
    """Of as many values as each of them has."""
    first, second = (each[_name(statistic), str(granularity)] for each in _found(ranks, "pooled"))
    shares = _shares()
    if hasattr(statistic, "pooled"):
        expected = measure(statistic, torch.cat(shares), granularity)
    else:
        expected = [(measured(statistic, shares[0], granularity) + measured(statistic, shares[1], granularity)) / 2]
    assert len(first) == len(second) == len(expected) == 1 + hasattr(statistic, "low")
    for one, other, each in zip(first, second, expected, strict=True):
        assert one.shape == (granularity.count((10, 6)),)
        assert torch.equal(one, other)
        torch.testing.assert_close(one, each)


@pytest.mark.parametrize("granularity", POOLED[:3], ids=str)
@pytest.mark.parametrize("statistic", MEASURED[:-1], ids=_name)
def test_a_rank_may_have_nothing(ranks, statistic: Any, granularity: Granularity) -> None:
    """Then statistics are those of the others."""
    first, second = (each[_name(statistic), str(granularity)] for each in _found(ranks, "alone"))
    for one, other, each in zip(first, second, measure(statistic, _shares()[0], granularity), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, each)


def test_a_checkpoint_of_two_ranks_loads_into_one_process_and_back(saved) -> None:
    state = saved["abs_max", 0]
    model = _model("abs_max")
    model.load_state_dict(state)
    assert all(torch.equal(state[key], each) for key, each in model.state_dict().items())
    assert not model[0].act_quant.scaling.calibrating


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_sharded_parameters_train_as_one_process_on_the_pooled_data(sharded, alone, sharding: str) -> None:
    state, expected = sharded[0][sharding], alone.state_dict()
    assert state.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(state[key], expected[key], rtol=2e-5, atol=2e-6, msg=key)
    assert all(bool((state[key] != 0).any()) for key in state if key.endswith("_offset"))  # they did learn


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_sharded_models_have_the_same_ranges_on_all_ranks(sharded, sharding: str) -> None:
    first, second = (each[f"{sharding}, buffers"] for each in sharded)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first["0.entry.act_quant.scaling.steps"] == 3


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_evaluation_of_a_sharded_model_sees_changed_parameters(sharded, alone, sharding: str) -> None:
    """Gathered weights lie in memory that is used again: nothing may be kept from one forward to the next."""
    changed = _blocks()
    changed.load_state_dict(alone.state_dict())
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
        expected = [model.eval()(_data(9)) for model in (alone, changed)]
    for found, wanted in zip(sharded[1][f"{sharding}, evaluated"], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_whole_checkpoint_loads_into_a_model_that_was_sharded_on_the_meta_device(sharded, alone) -> None:
    with torch.no_grad():
        expected = alone.eval()(_data(9))
    for found in sharded:
        torch.testing.assert_close(found["loaded"], expected, rtol=1e-4, atol=1e-5)


def test_ranges_keep_their_precision_where_sharded_parameters_are_cast_to_half(sharded, alone) -> None:
    state = sharded[0]["half"]
    measured = state["0.entry.act_quant.scaling.magnitude_base"]
    assert measured.dtype == torch.float32
    assert measured != measured.bfloat16()
    for key in (key for key in state if key.endswith("_base")):
        torch.testing.assert_close(state[key], alone.state_dict()[key], rtol=0.05, atol=1e-3, msg=key)


@pytest.mark.parametrize("call", ["forward", "load"])
def test_processes_that_train_together_must_know_the_number_of_channels(sharded, call: str) -> None:
    for found in sharded:
        assert found[call] == (
            "0.act_quant.scaling: there are 3 entries along axis 1, and several processes train together on a model "
            "that was made without that number. Give the quantizer channels=3."
        )
        assert found["told"].shape == (2, 3)
