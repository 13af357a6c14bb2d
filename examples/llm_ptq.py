"""Quantize a language model, repair it, say what every step is worth, and save it: a script to copy and change.

    python examples/llm_ptq.py --model Qwen/Qwen3-0.6B --weights int4 --group 128 --repair gptq
    python examples/llm_ptq.py --weights int4 --activations int8 --cache int8 --repair rotate gptq --export model.onnx

The model is one of Hugging Face, by its name or folder, where transformers is installed; one that a function of yours
makes, ``--model module:function``; or else a small one that is trained on the spot. It is measured on the last tenth of
a text, and calibrated on the rest: ``--text file``, or a part of Python's manual. It needs ``pip install
bitwright[onnx,demo,safetensors]``, and ``transformers`` for models of Hugging Face.

The float model becomes the quantized one in place, and repairs go through it block by block, so that there is one copy
of the weights. Under ``torchrun --nproc-per-node 4 examples/llm_ptq.py ...`` every process takes its share of the text.
"""

import argparse
import copy
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from llm_data import Bytes, continued, logits_of, perplexity, text_of, windows
from llm_model import LanguageModel, train
from llm_schemes import ACTIVATIONS, CACHES, WEIGHTS, Scheme
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, distributed, nn

from bitwright.export import (
    VerificationReport,
    export_compressed_tensors,
    export_onnx_qdq,
    load_packed,
    save_packed,
    verify_onnx,
)
from bitwright.graph import (
    adaround,
    autoround,
    awq,
    calibrate,
    explain,
    gpfq,
    gptq,
    lqer,
    magr,
    qronos,
    quantize,
    rotate,
    search_scales,
    smooth,
)
from bitwright.qcore import BitwrightError

__all__ = ["Logits", "main", "post_training"]

BEFORE: Mapping[str, Callable[..., nn.Module]] = {"rotate": rotate, "smooth": smooth}
"""Repairs of the float model: each takes it and batches, and returns another one that computes the same."""

AFTER: Mapping[str, Callable[..., Any]] = {
    each.__name__: each for each in (awq, magr, search_scales, gptq, gpfq, qronos, adaround, autoround, lqer)
}
"""Repairs of the quantized model, in place, block by block: each takes it and batches, and returns a report."""


def post_training(
    model: nn.Module,
    scheme: Scheme,
    batches: Sequence[Tensor],
    repairs: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[nn.Module, list[Any]]:
    """A quantized model, in place of the float one, without training: all that a program of yours needs.

    Args:
        model: the float model.
        scheme: what is quantized.
        batches: (N, tokens) each, to calibrate with.
        repairs: of `BEFORE` and `AFTER`; those of each in this order.
        settings: keywords for some of them: ``{"gptq": {"damping": 0.05}}``.

    Returns:
        The model, and what the repairs say of every layer.
    """
    keywords = {name: dict(each) for name, each in (settings or {}).items()}
    for name in [each for each in repairs if each in BEFORE]:
        model = BEFORE[name](model, batches, **keywords.get(name, {}))
    reports = [model.report] if hasattr(model, "report") else []
    later = [each for each in repairs if each in AFTER]
    if "lqer" in later[1:] and "awq" not in later:  # branches make up for what was changed before them
        keywords.setdefault("lqer", {})["reference"] = copy.deepcopy(model)
    quantized = quantize(model, scheme.rules(), examples=batches[0], inplace=True)
    if scheme.activations == "static8":
        calibrate(quantized, batches)
    reports += [AFTER[name](quantized, batches, **keywords.get(name, {})) for name in later]
    return quantized, reports


def loaded(model: nn.Module, scheme: Scheme, batches: Sequence[Tensor], before: Sequence[str], path: Path) -> nn.Module:
    """What `save_packed` wrote, in place of the float model that it was made of."""
    quantized, _ = post_training(model, scheme, batches[:1], [name for name in before if name in BEFORE])
    load_packed(quantized, path)
    return quantized


# Model and text


def model_and_tokenizer(options: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The float model, in evaluation mode, and what makes tokens of text."""
    if options.model is None:
        torch.manual_seed(options.seed)
        return LanguageModel().to(options.device), Bytes()
    if ":" in options.model:
        module, _, function = options.model.partition(":")
        sys.path.insert(0, "")  # a file of yours, beside you
        made = getattr(importlib.import_module(module), function)()
        model, tokenizer = made if isinstance(made, tuple) else (made, Bytes())
        return model.to(options.device).eval(), tokenizer
    if importlib.util.find_spec("transformers") is None:
        raise SystemExit(
            f"--model {options.model} needs transformers: pip install transformers. A model of yours needs none: "
            "--model module:function."
        )
    transformers = importlib.import_module("transformers")
    where: dict[str, Any] = {"device_map": options.device_map} if options.device_map else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype, **where)
    model = model if options.device_map else model.to(options.device)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(options.model)


def tokens_of(tokenizer: Any, text: str, device: str) -> tuple[Tensor, Tensor]:
    """The tokens of a text: the first nine tenths, to calibrate or train on, and the rest, to measure on."""
    tokens = torch.tensor(tokenizer.encode(text), device=device)
    return tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]


def share(batches: list[Tensor]) -> list[Tensor]:
    """What this process takes of the batches."""
    if not distributed.is_initialized():
        return batches
    return batches[distributed.get_rank() :: distributed.get_world_size()]


# Files


class Logits(nn.Module):
    """A language model as one that takes tokens, and returns logits: what a file of ONNX holds.

    The causal mask is its own: some models would make another one when they are traced, and keep a cache.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.own = not hasattr(model, "generation_config")

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.own:
            return logits_of(self.model(input_ids))
        count = input_ids.shape[1]
        later = torch.ones(count, count, device=input_ids.device).triu(1)
        dtype = next(self.model.parameters()).dtype
        mask = (later * torch.finfo(dtype).min)[None, None].to(dtype)
        return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


def export(model: nn.Module, tokens: Tensor, path: Path) -> VerificationReport:
    """An ONNX file for any number of tokens, and what comes of comparing it with the model."""
    wrapped = Logits(model.cpu()).eval()
    shapes = ({0: "batch", 1: "tokens"},)
    names, results = ["input_ids"], ["logits"]
    export_onnx_qdq(
        wrapped, tokens.cpu(), path, verify=False, dynamic_shapes=shapes, input_names=names, output_names=results
    )
    return verify_onnx(wrapped, path, tokens.cpu())


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if a file differs from the model.
    """
    options = _parser().parse_args(arguments)
    parallel = "WORLD_SIZE" in os.environ and not distributed.is_initialized()
    if parallel:
        distributed.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
    try:
        quiet = distributed.is_initialized() and distributed.get_rank() > 0
        return _run(options, Console(quiet=quiet))
    except BitwrightError as error:
        raise SystemExit(str(error)) from None
    finally:
        if parallel:
            distributed.destroy_process_group()


def _run(options: argparse.Namespace, console: Console) -> int:
    scheme = Scheme(options.weights, options.group, options.activations, options.cache, options.head)
    model, tokenizer = model_and_tokenizer(options)
    known, held = tokens_of(tokenizer, text_of(options.text), options.device)
    if options.model is None:
        train(model, known, options.train_steps, options.context, seed=options.seed)
    test = windows(held, options.context, options.test_windows)
    batches = share(windows(known, options.context, options.calibration_windows, options.seed))
    prompt = test[0][:, : options.context // 2]

    def row(name: str) -> tuple[str, str, str]:
        said = continued(model, prompt, options.sample_tokens)[0, prompt.shape[1] :].tolist()
        return name, f"{perplexity(model, test, name):.3f}", repr(tokenizer.decode(said))

    rows = [row("float")]
    if options.load is not None:
        model, reports = loaded(model, scheme, batches, options.repair, options.load), []
    else:
        model, reports = post_training(model, scheme, batches, options.repair, settings_of(options))
    rows.append(row(" + ".join([*options.repair, str(scheme)])))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("model", "perplexity", "goes on"):
        table.add_column(header)
    for each in rows:
        table.add_row(*each)
    console.print(f"{len(test)} windows of {options.context} tokens", table)
    if console.quiet:
        return 0
    if options.report is not None:
        options.report.write_text("\n\n".join(map(str, [*reports, explain(model)])) + "\n", encoding="utf-8")
    return _written(model, test[0], options, console)


def _written(model: nn.Module, tokens: Tensor, options: argparse.Namespace, console: Console) -> int:
    """Write the files that were asked for."""
    if options.save is not None:
        console.print(f"{options.save}: {save_packed(model, options.save)}".partition("\n")[0])
    if options.compressed is not None:
        report = export_compressed_tensors(model, options.compressed)
        console.print(f"{options.compressed}: {report}".partition("\n")[0])
    if options.export is None:
        return 0
    found = export(model, tokens, options.export)
    console.print(
        f"{found.compared} numbers of {options.export} compared with onnxruntime's: {found.differences} differences, "
        f"{found.tie_flips} tie flips."
    )
    return int(not found.ok)


def settings_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Keywords of the repairs, from the flags."""
    walk = {"wait_on": options.wait_on}
    found: dict[str, dict[str, Any]] = {name: dict(walk) for name in AFTER}
    if options.checkpoint is not None:
        for name in found.keys() - {"awq"}:
            found[name]["checkpoint"] = f"{options.checkpoint}.{name}"
    found["lqer"]["rank"] = options.rank
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Quantize a language model, repair it, and save it.")
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="NAME", help="of Hugging Face, a folder, or module:function of yours")
    model.add_argument("--dtype", default="auto", help="of a model of Hugging Face (default: as published)")
    model.add_argument("--device", default="cpu")
    model.add_argument("--device-map", help="how accelerate distributes a model of Hugging Face, such as auto")
    model.add_argument("--train-steps", type=int, default=300, help="of the small model (default: 300)")
    data = parser.add_argument_group("data")
    data.add_argument("--text", type=Path, help="a file of text (default: a part of Python's manual)")
    data.add_argument("--context", type=int, default=128, help="tokens at a time (default: 128)")
    data.add_argument("--calibration-windows", type=int, default=64)
    data.add_argument("--test-windows", type=int, default=64)
    data.add_argument("--sample-tokens", type=int, default=40, help="how far the sample goes on (default: 40)")
    data.add_argument("--seed", type=int, default=0)
    rules = parser.add_argument_group("what is quantized")
    rules.add_argument("--weights", choices=WEIGHTS, default="int4", help="of linear layers (default: int4)")
    rules.add_argument("--group", type=int, default=128, help="weights that share a scale; 0: those of an output")
    rules.add_argument("--activations", choices=ACTIVATIONS, help="what linear layers read (default: float)")
    rules.add_argument("--cache", choices=CACHES, help="keys and values (default: float)")
    rules.add_argument("--head", choices=WEIGHTS, help="weights of the last layer (default: float)")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--repair", nargs="*", choices=[*BEFORE, *AFTER], default=[], help="in this order")
    steps.add_argument("--rank", type=int, default=16, help="of the branches of lqer (default: 16)")
    steps.add_argument("--wait-on", default="device", help="where inputs of a block wait: device, cpu, or a folder")
    steps.add_argument("--checkpoint", metavar="FILE", help="to go on from after a stop; the repair's name is added")
    steps.add_argument("--load", type=Path, metavar="FILE", help="what --save wrote with the same flags: no repair")
    out = parser.add_argument_group("output")
    out.add_argument("--report", type=Path, metavar="FILE.txt", help="what was done to every layer")
    out.add_argument("--save", type=Path, metavar="FILE.safetensors", help="packed codes, for --load")
    out.add_argument("--compressed", type=Path, metavar="FOLDER", help="a checkpoint that vLLM reads")
    out.add_argument("--export", type=Path, metavar="FILE.onnx", help="an ONNX file, compared with the model")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
