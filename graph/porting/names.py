"""Layers whose parts have other names in Brevitas than here."""

from collections.abc import Mapping

from torch import Tensor, nn

from ...nn import QuantAdd, QuantMultiheadAttention, QuantScaledDotProductAttention

__all__ = ["renamed"]

_ATTENTION = {
    "q_scaled_quant.act_quant": "query_quant",
    "k_transposed_quant.act_quant": "key_quant",
    "v_quant.act_quant": "value_quant",
    "softmax_input_quant.act_quant": "scores_quant",
    "attn_output_weights_quant.act_quant": "attention_quant",
}
_NAMES: dict[type[nn.Module], dict[str, str]] = {
    QuantAdd: {"output_quant": "act_quant"},
    QuantScaledDotProductAttention: {**_ATTENTION, "sdpa_output_quant.act_quant": "output_quant"},
    QuantMultiheadAttention: {
        **_ATTENTION,
        "in_proj.input_quant": "input_quant",
        "in_proj.weight_quant": "in_proj_weight_quant",
        "in_proj.bias_quant": "in_proj_bias_quant",
        "in_proj.weight": "in_proj_weight",
        "in_proj.bias": "in_proj_bias",
    },
}


def renamed(file: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file, with the names that the parts of the model's layers have here.

    Example:
        >>> import torch
        >>> model = nn.Sequential(QuantMultiheadAttention(4, 2))
        >>> list(renamed({"0.in_proj.weight": torch.ones(12, 4), "0.out_proj.weight": torch.ones(4, 4)}, model))
        ['0.in_proj_weight', '0.out_proj.weight']
    """
    changes: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for kind, names in _NAMES.items():
            if isinstance(module, kind):
                changes |= {f"{prefix}{theirs}": f"{prefix}{own}" for theirs, own in names.items()}
    return {_changed(key, changes): tensor for key, tensor in file.items()}


def _changed(key: str, changes: Mapping[str, str]) -> str:
    """A name, whose longest beginning that has another name is exchanged."""
    start = key
    while start:
        if start in changes:
            return changes[start] + key[len(start) :]
        start = start.rpartition(".")[0]
    return key
