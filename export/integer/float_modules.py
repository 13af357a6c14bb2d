"""What a model computes in floats among its integers, and what to write instead."""

from dataclasses import dataclass

__all__ = ["OF_WEIGHTS", "ON_INTEGERS", "FloatModule", "remedy"]


@dataclass(frozen=True)
class FloatModule:
    """What one module computes in floats.

    Attributes:
        path: of the module; empty for the model's own forward.
        kind: class of the module.
        operations: names of torch's operators, each once; ``a float bias`` for a bias that is no integers.
        place: ``between`` two quantizers; ``before`` the first, where no integers have been seen; ``after`` the last.

    Example:
        >>> print(FloatModule("bn1", "BatchNorm2d", ("batch_norm",), "between"))
        bn1 (BatchNorm2d): batch_norm
    """

    path: str
    kind: str
    operations: tuple[str, ...]
    place: str

    def __str__(self) -> str:
        return f"{self.path or 'the model'} ({self.kind}): {', '.join(self.operations)}"


_LAYERS = {"Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"}
OF_WEIGHTS = {"mm", "addmm", "bmm", "convolution", "linear", "matmul", "mkldnn_rnn_layer"}

ON_INTEGERS = {"add", "avg_pool2d", "clamp", "hardtanh", "leaky_relu", "max_pool2d_with_indices", "mean", "relu", "sub"}


def remedy(module: FloatModule) -> str:
    """What to write instead."""
    if module.operations == ("a float bias",):
        return "Write bias_quant=Int32Bias."
    if module.kind == "LowRank":
        layer = module.path.removesuffix(".correction")
        return f"A low-rank correction is made of floats: del {layer}.correction, or use export_onnx_qcdq."
    if "BatchNorm" in module.kind:
        return "Fold it into the convolution before that is quantized: graph.fold_batch_norms(model, examples)."
    if module.kind in _LAYERS:
        return f"Write qnn.Quant{module.kind} with bias_quant=Int32Bias, and quantize its input."
    if OF_WEIGHTS & set(module.operations) and module.kind.startswith("Quant"):
        return (
            "Its products are integers only where the weight is quantized, and the input with one scale: write "
            "input_quant=Int8Act, or put a QuantIdentity in front of it."
        )
    if module.place == "after":
        return "There is no integer arithmetic for it: apply it to the outputs, outside of the model."
    if ON_INTEGERS.issuperset(operation.removesuffix("_") for operation in module.operations):
        return (
            "It computes with integers only where its inputs are quantized: put a QuantIdentity in front of it, or "
            "quantize the float model with placement='outputs'."
        )
    return "There is no integer arithmetic for it: replace it, or use export_onnx_qcdq, which keeps it float."
