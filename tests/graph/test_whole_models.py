"""Every model of the zoo, quantized by rules: what held for the float model holds for the quantized one."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import bitwright.nn as qnn
from bitwright.graph import W8A8, calibrate, integer, quantize
from bitwright.quantizers import Int8Act
from tests.graph.models.zoo import ZOO, Entry, applied, tensors_of

ROOT = Path(__file__).parents[2]
RANKS = 2
SUMS = ("resnet18", "mobilenet_v2", "minilm", "branching", "padded", "called_twice", "tied")
SHARED = tuple(name for name in SUMS if name != "called_twice")  # its concatenation has operands without quantizers

# What each is quantized by: rules, further arguments, and which models they are for, all by default.
SCHEMES = {
    "layers": (W8A8, {}, tuple(ZOO)),
    "sums": ({**W8A8, torch.add: {"input_quant": Int8Act}}, {}, SUMS),
    "shared": ({**W8A8, torch.add: {"input_quant": Int8Act}}, {"joins": "shared"}, SHARED),
    "integer": (integer(8, 8), {"placement": "outputs"}, tuple(ZOO)),
}
CASES = [(name, scheme) for scheme, (_, _, names) in SCHEMES.items() for name in names]

cases = pytest.mark.parametrize(("name", "scheme"), CASES, ids=map("-".join, CASES))


def converted(name, scheme):
    """A float model and the quantized one, not yet calibrated."""
    model = ZOO[name].build()
    rules, more, _ = SCHEMES[scheme]
    return model, quantize(model, rules, examples=None if scheme == "layers" else ZOO[name].examples(), **more)


def ready(name, scheme):
    """A calibrated one."""
    quantized = converted(name, scheme)[1]
    with calibrate(quantized):
        for call in [*ZOO[name].batches(2), *ZOO[name].examples()]:
            applied(quantized, call)
    return quantized


@pytest.fixture(scope="module", params=CASES, ids=map("-".join, CASES))
def prepared(request):
    """The name of a model, and its calibrated one: to be left as it is."""
    name, scheme = request.param
    return name, ready(name, scheme)


def equal(one, two):
    assert len(one) == len(two)
    return all(torch.equal(*pair) for pair in zip(one, two, strict=True))


@pytest.fixture(autouse=True, scope="module")
def slow_path():
    """torch's fused encoder layers compute in another order; a layer that is quantized can't go through them."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@cases
def test_the_float_model_is_untouched(name, scheme):
    model = ZOO[name].build()
    state = copy.deepcopy(model.state_dict())
    modules = [(path, type(module), module.training) for path, module in model.named_modules()]
    before = [applied(model, call) for call in ZOO[name].examples()]
    quantize(model, SCHEMES[scheme][0], examples=ZOO[name].examples(), **SCHEMES[scheme][1])
    assert [(path, type(module), module.training) for path, module in model.named_modules()] == modules
    assert equal(list(state.values()), list(model.state_dict().values()))
    assert all(equal(x, applied(model, call)) for x, call in zip(before, ZOO[name].examples(), strict=True))


ROUND_OTHERWISE = {"speaker", "torch_minilm"}  # recurrent layers and attention, which torch adds up by other kernels


def alike(name, found, wanted):
    """Whether results are the same to the bit, or up to rounding where kernels differ."""
    if name not in ROUND_OTHERWISE:
        return equal(found, wanted)
    return all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(found, wanted, strict=True))


@cases
def test_without_its_quantizers_it_is_the_float_model(name, scheme):
    model, quantized = converted(name, scheme)
    assert any(isinstance(module, qnn.QuantLayer) for module in quantized.modules())
    with qnn.unquantized(quantized):
        for call in ZOO[name].examples():
            assert alike(name, applied(quantized, call), applied(model, call))


@cases
def test_a_float_checkpoint_loads_strictly(name, scheme):
    quantized = converted(name, scheme)[1]
    other = ZOO[name].build(seed=1)
    keys = quantized.load_state_dict(other.state_dict())
    assert keys.missing_keys == keys.unexpected_keys == []
    with qnn.unquantized(quantized):
        assert alike(name, applied(quantized, ZOO[name].example()), applied(other, ZOO[name].example()))


def test_quantized_it_computes_something_near(prepared):
    """Near, and not the same: the quantizers are at work."""
    name, quantized = prepared
    model = ZOO[name].build()
    for found, wanted in zip(applied(quantized, ZOO[name].example()), applied(model, ZOO[name].example()), strict=True):
        assert not torch.equal(found, wanted)
        assert (found - wanted).abs().max() < 0.2 * wanted.abs().max()


def test_it_copies(prepared):
    name, quantized = prepared
    call = ZOO[name].example()
    twin = copy.deepcopy(quantized)
    before = applied(quantized, call)
    assert equal(applied(twin, call), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    assert equal(applied(quantized, call), before)


@pytest.mark.slow
def test_they_pickle_into_a_new_process(tmp_path):
    """All of them but weight_norm: torch pickles no module with parametrizations."""
    found = []
    for name, scheme in CASES:
        if name != "weight_norm":
            quantized = ready(name, scheme)
            call = ZOO[name].example()
            found.append((f"{name}-{scheme}", quantized, call, applied(quantized, call)))
    (tmp_path / "models.pickle").write_bytes(pickle.dumps(found))
    code = """
        import pickle, sys, torch
        from tests.graph.models.zoo import applied
        torch.set_num_threads(1)
        torch.backends.mha.set_fastpath_enabled(False)
        for name, model, call, wanted in pickle.load(open(sys.argv[1], "rb")):
            if not all(torch.equal(*pair) for pair in zip(applied(model, call), wanted, strict=True)):
                print(name)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "models.pickle")]
    told = subprocess.run(run, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout == ""


def test_it_trains(prepared):
    """All parameters of the float model get gradients, those of the scales, too."""
    name, model, quantized = prepared[0], ZOO[prepared[0]].build(), copy.deepcopy(prepared[1])
    for each in (model, quantized):
        each.train()
        sum(output.square().mean() for output in tensors_of(each(*ZOO[name].example()))).backward()
    reached = {path for path, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached <= {path for path, parameter in quantized.named_parameters() if parameter.grad is not None}


@pytest.mark.slow
@cases
def test_it_compiles_where_the_float_model_does(name, scheme):
    if not ZOO[name].compiles:
        pytest.skip(ZOO[name].why)
    quantized, call = ready(name, scheme), ZOO[name].example()
    torch.compiler.reset()
    compiled = torch.compile(quantized, fullgraph=True, backend="eager")
    assert equal(applied(compiled, call), applied(quantized, call))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tensor attributes .* were assigned during export:UserWarning")  # nn.LSTM's
@cases
def test_it_exports_verified(name, scheme, tmp_path):
    export = pytest.importorskip("bitwright.export")
    pytest.importorskip("onnxruntime")
    if not ZOO[name].exports:
        pytest.skip(ZOO[name].why)
    quantized, call = ready(name, scheme), ZOO[name].example()
    args, kwargs = ((), {"batch": call[0]}) if isinstance(call[0], dict) else (call, None)
    export.export_onnx_qcdq(quantized, args, tmp_path / "model.onnx", kwargs=kwargs)
    assert (tmp_path / "model.onnx").exists()


def _step(entry: Entry, model, seed: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for call in entry.batches(2, seed=seed):
        optimizer.zero_grad()
        sum(output.square().mean() for output in tensors_of(model(*call))).backward()
        optimizer.step()


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    states = {}
    for name, scheme in CASES:
        quantized = ready(name, scheme).train()
        _step(ZOO[name], DistributedDataParallel(quantized, find_unused_parameters=name == "branching"), 10 + rank)
        states[f"{name}-{scheme}"] = quantized.state_dict()
    torch.save(states, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_alike(tmp_path):
    """Of other data each, the ranks end with the same parameters, which are not the first ones."""
    start_processes(_rank, (str(tmp_path),), nprocs=RANKS, start_method="forkserver")
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS))
    assert len(one) == len(CASES)
    for case, (name, scheme) in zip(one, CASES, strict=True):
        parameters = dict(ready(name, scheme).named_parameters())
        assert all(torch.equal(one[case][key], two[case][key]) for key in parameters), case
        assert not all(torch.equal(one[case][key], each) for key, each in parameters.items()), case
