"""Write golden/*.npz: checkpoints of Brevitas' example models, and the codes of every quantizer in evaluation.

It runs where Brevitas is installed (benchmarks/brevitas.txt), from the root of the repository:

    python -m tests.graph.porting.make_golden                      # narrow models, for the tests
    python -m tests.graph.porting.make_golden --full FOLDER        # in their published sizes, for the figures in docs/
"""

import argparse
import hashlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .packed import save
from .references import REFERENCES, Reference
from .seeded import is_seeded, seeded

HERE = Path(__file__).parent / "golden"


def trained(model: nn.Module, batch: Callable[[], Tensor]) -> None:
    """Collect ranges, end the collection, and take training steps with all but the weights."""
    from brevitas.graph.calibrate import finalize_collect_stats  # pyright: ignore[reportMissingImports]

    model.train()
    for _ in range(3):
        model(batch())
    model.apply(finalize_collect_stats)
    small = [each for name, each in model.named_parameters() if not is_seeded(name, tuple(each.shape))]
    optimizer = torch.optim.SGD(small, lr=0.02)
    for _ in range(2):
        out = model(batch())
        (out.value if hasattr(out, "value") else out).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(small, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def codes_of(model: nn.Module, x: Tensor) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray], Tensor]:
    """The integers of every quantizer, for each time that it was called; the scales; and the output."""
    found: dict[str, list[np.ndarray]] = {}
    scales: dict[str, np.ndarray] = {}

    def recorded(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            scale = getattr(out, "scale", None)
            if scale is None or not module.is_quant_enabled:
                return
            whole = torch.round(out.value.double() / scale.double() + out.zero_point.double())
            wide = np.int8 if whole.abs().max() < 128 else np.int16 if whole.abs().max() < 2**15 else np.int32
            found.setdefault(name, []).append(whole.numpy().astype(wide))
            scales[name] = scale.detach().numpy()

        return hook

    for name, module in model.named_modules():
        if name.endswith("_quant") and type(module).__name__.endswith("QuantProxyFromInjector"):
            module.register_forward_hook(recorded(name))
    model.eval()
    with torch.no_grad():
        out = model(x)
    return found, scales, out.value if hasattr(out, "value") else out


def written(reference: Reference, path: Path, full: bool) -> None:
    """Make a reference model, train it a little, and write its state, an input and its codes."""
    torch.manual_seed(0)
    model = reference.build(full)
    for name, parameter in model.named_parameters():
        if is_seeded(name, tuple(parameter.shape)):
            parameter.data = torch.from_numpy(seeded(name, tuple(parameter.shape), reference.spread))
    trained(model, lambda: reference.batch(full))
    state = {name: each.detach().clone() for name, each in model.state_dict().items()}
    again = reference.build(full)
    again.load_state_dict(state)
    x = reference.batch(full)[: reference.examples]
    found, scales, out = codes_of(again, x)
    kept = {f"state/{name}": each.numpy() for name, each in state.items() if not is_seeded(name, tuple(each.shape))}
    arrays = {"input": x.numpy(), "output": out.numpy(), **kept}
    digests = {}
    for name, calls in found.items():
        for call, codes in enumerate(calls):
            if name.endswith("weight_quant") and not full and codes.size >= 512:
                digests[name] = hashlib.sha256(codes.astype(np.int32).tobytes()).hexdigest()
            else:
                arrays[f"codes/{name}/{call}"] = codes
        arrays[f"scale/{name}"] = scales[name]
    seeds = {name: list(each.shape) for name, each in state.items() if is_seeded(name, tuple(each.shape))}
    save(path, arrays, {"seeded": seeds, "spread": reference.spread, "digests": digests})
    size = path.stat().st_size
    print(f"{path.name}: {sum(codes.size for calls in found.values() for codes in calls):,} codes, {size:,} bytes")
    for name, calls in found.items():
        if any(len(np.unique(codes)) < 2 for codes in calls):
            print(f"  {name} has one code only")


def main() -> None:
    """Write the files that are asked for."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the models; all of them by default")
    parser.add_argument("--full", type=Path, help="write models in their published sizes into this folder")
    options = parser.parse_args()
    folder = options.full or HERE
    folder.mkdir(exist_ok=True, parents=True)
    for name in options.names or REFERENCES:
        written(REFERENCES[name], folder / f"{name}.npz", options.full is not None)


if __name__ == "__main__":
    main()
