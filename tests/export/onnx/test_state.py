"""An export leaves the model as it was, and files whole or untouched, whatever happens."""

import copy
import subprocess
import sys
import textwrap

import onnx
import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.quantizers import Int8WeightPerTensorLearned


class Branching(nn.Module):
    """Runs, but can't be traced: its path depends on numbers."""

    def __init__(self):
        super().__init__()
        self.layer = qnn.QuantLinear(8, 8, weight_quant=Int8WeightPerTensorLearned)
        self.act = qnn.QuantReLU(calibration_steps=1)

    def forward(self, x):
        y = self.act(self.layer(x))
        return y if y.sum() > 0 else 2 * y


class Net(Branching):
    def forward(self, x):
        return self.act(self.layer(x))


def photograph(model):
    """Everything there is to a model: tensors, flags, modes."""
    tensors = {name: (id(t), t.clone()) for name, t in (*model.named_parameters(), *model.named_buffers())}
    flags = {
        name: {key: flag for key, flag in vars(module).items() if isinstance(flag, (bool, int, float, str, type(None)))}
        for name, module in model.named_modules()
    }
    return tensors, copy.deepcopy(flags), {name: type(module) for name, module in model.named_modules()}


def assert_unchanged(model, before):
    tensors, flags, types = photograph(model)
    assert types == before[2]
    assert flags == before[1]
    assert tensors.keys() == before[0].keys()
    for name, (identity, tensor) in tensors.items():
        assert identity == before[0][name][0], name
        assert torch.equal(tensor, before[0][name][1]), name


def fresh(model):
    """In training mode, one module of it in evaluation, with a learned scale that still follows its weight."""
    model.train()
    model.act(torch.rand(4, 8))
    model.layer.eval()
    return model


@pytest.mark.parametrize("export", [export_onnx_qcdq, export_onnx_qdq])
def test_success_leaves_the_model_as_it_was(export):
    model = fresh(Net())
    before = photograph(model)
    export(model, torch.randn(2, 8))
    assert_unchanged(model, before)
    assert model.training
    assert not model.layer.training
    loss = model(torch.randn(2, 8)).sum()
    loss.backward()
    assert model.layer.weight.grad is not None


class Trained:
    """A model and ways to change its parameters that raise no version counter."""

    def __init__(self):
        layers = (
            qnn.QuantLinear(8, 16, weight_bit_width=4),
            qnn.QuantReLU(bit_width=4, calibration_steps=2),
            qnn.QuantLinear(16, 4, weight_quant=Int8WeightPerTensorLearned(bit_width=4)),
        )
        self.model = nn.Sequential(*layers)
        self.x, self.y = torch.randn(64, 8), torch.randn(64, 4)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.05, fused=True)

    def fused(self):
        for _ in range(5):
            self.optimizer.zero_grad()
            (self.model(self.x) - self.y).square().mean().backward()
            self.optimizer.step()

    def data(self):
        self.fused()
        for parameter in self.model.parameters():
            parameter.data = 1.5 * parameter.data + 0.01

    def data_in_place(self):
        self.fused()
        for parameter in self.model.parameters():
            parameter.data.mul_(1.5).add_(0.01)

    def numpy(self):
        self.fused()
        for parameter in self.model.parameters():
            parameter.detach().numpy()[...] *= 1.5


@pytest.mark.parametrize("change", ["fused", "data", "data_in_place", "numpy"])
def test_a_file_holds_the_parameters_as_they_are_now(change):
    """Whatever changed them, and whatever was evaluated, or exported, before."""
    trained = Trained()
    model, x, program = trained.model, trained.x, None
    for _ in range(2):
        model.train()
        getattr(trained, change)()
        model.eval()
        with torch.no_grad():
            model(x)
        program = export_onnx_qcdq(model, x)
    held = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in program.model_proto.graph.initializer}
    with torch.no_grad():
        magnitudes = {index: model[index].get_submodule(f"{slot}_quant.scaling").magnitude for index, slot in SLOTS}
        largest = model[0].weight.abs().max()
    assert torch.equal(held["1.act_quant.scale"], magnitudes[1] / 15)
    assert torch.equal(held["2.weight_quant.scale"], magnitudes[2] / 7)
    assert torch.equal(held["0.weight_quant.scale"], largest / 7)
    codes = torch.round(model[0].weight.detach() / (largest / 7)).to(torch.int8)
    assert torch.equal(held["0.weight_quant.codes"], codes)
    clean = Trained().model  # which never evaluated anything
    clean.load_state_dict(model.state_dict())
    assert verify_onnx(clean, program, x).ok
    with torch.no_grad():
        assert torch.equal(clean.eval()(x), model(x))


SLOTS = ((1, "act"), (2, "weight"))


def test_verification_reads_the_parameters_as_they_are_now():
    trained = Trained()
    model, x = trained.model, trained.x
    trained.fused()
    program = export_onnx_qcdq(model.eval(), x)
    with torch.no_grad():
        model(x)
    assert verify_onnx(model, program, x).ok
    model[1].act_quant.scaling.magnitude_base.data.mul_(2)
    report = verify_onnx(model, program, x)
    assert {row.name: row.note for row in report.rows if row.note} == {"1.act_quant": "the file has another scale"}
    assert report.relative_output_error > 1e-3


def test_failure_in_torch_leaves_model_and_file_as_they_were(tmp_path):
    model, path = fresh(Branching()), tmp_path / "model.onnx"
    path.write_bytes(b"kept")
    before = photograph(model)
    with pytest.raises(Exception, match="data-dependent"):
        export_onnx_qcdq(model, torch.randn(2, 8), path)
    assert_unchanged(model, before)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"kept"


def test_failed_verification_writes_nothing(tmp_path, monkeypatch):
    model, path = fresh(Net()), tmp_path / "model.onnx"
    before = photograph(model)
    lower = sys.modules["bitwright.export.onnx.exporter"].lower

    def wrong(graph, recording, form):
        lower(graph, recording, form)
        weight = graph.graph.initializers["layer.weight_quant.scale"]
        weight.const_value = type(weight.const_value)(weight.const_value.numpy() * 2, name=weight.name)

    monkeypatch.setattr("bitwright.export.onnx.exporter.lower", wrong)
    with pytest.raises(ExportError) as caught:
        export_onnx_qcdq(model, torch.randn(2, 8), path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "export_onnx_qcdq: onnxruntime does not reproduce the model, so no file was written."
    assert "layer.weight_quant" in lines[5]
    assert lines[5].endswith("the file has another scale")
    assert lines[-1] == "Please report it. verify=False writes the file all the same."
    assert_unchanged(model, before)
    assert list(tmp_path.iterdir()) == []
    export_onnx_qcdq(model, torch.randn(2, 8), path, verify=False)
    assert path.stat().st_size > 0


def test_failure_while_writing_leaves_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"kept")

    def full(self, destination, **options):
        destination.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(OSError, match="no space left"):
        export_onnx_qcdq(fresh(Net()), torch.randn(2, 8), path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"kept"


def test_a_file_is_replaced_and_stands_alone(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    export_onnx_qcdq(fresh(Net()), torch.randn(2, 8), path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert b"old" != path.read_bytes()


def test_external_data_on_request(tmp_path):
    export_onnx_qcdq(fresh(Net()), torch.randn(2, 8), tmp_path / "model.onnx", external_data=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.slow
def test_nothing_is_printed():
    """In a process of its own: torch prints and logs when its exporter is first used."""
    code = """
        import warnings
        import torch
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch.jit.script")
        import bitwright.nn as qnn
        from bitwright.export import export_onnx_qdq
        model = torch.nn.Sequential(qnn.QuantConv2d(3, 4, 3), qnn.QuantReLU(scale=0.1), qnn.QuantLinear(6, 6))
        export_onnx_qdq(model, torch.randn(1, 3, 8, 8), dynamic_shapes=({0: "batch"},))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 0)
