"""hls4ml on QONNX files, in a process of its own: hls4ml imports a package named quantizers.

    python -I read_hls4ml.py FOLDER

For each NAME.npz with inputs and the file NAME.onnx beside it: hls4ml's C++ code is compiled, and NAME.found.npz holds
what it computes. What is printed is JSON: the layers, the widths of their weights, or the error.
"""
# pyright: reportMissingImports=false

import contextlib
import io
import json
import sys
from pathlib import Path

import hls4ml
import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.util.cleanup import cleanup_model

FINE = "ap_fixed<48,16>"  # of what has no quantizer: with 16 bits behind the point, batch norms lead to other codes


def read(file, inputs):
    model = cleanup_model(ModelWrapper(str(file)))
    if inputs.ndim > 2:  # convolutions have to be of channels last
        model = cleanup_model(model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True)))
    kind = {"backend": "Vitis", "output_dir": str(file.with_suffix(""))}
    config = hls4ml.utils.config.config_from_onnx_model(
        model.model, granularity="name", backend="Vitis", default_precision=FINE
    )
    return hls4ml.converters.convert_from_onnx_model(model.model, io_type="io_stream", hls_config=config, **kind)


def main(folder):
    said = {}
    for file in sorted(folder.glob("*.onnx")):
        inputs = np.load(file.with_suffix(".npz"))["inputs"]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                model = read(file, inputs)
                model.compile()
        except Exception as error:
            said[file.stem] = f"{type(error).__name__}: {error}"
            continue
        last = np.ascontiguousarray(np.moveaxis(inputs, 1, -1))
        np.savez(file.with_suffix(".found.npz"), outputs=model.predict(last))
        kinds = [each.class_name for each in model.get_layers()]
        widths = [
            each.weights["weight"].type.precision.width for each in model.get_layers() if "weight" in each.weights
        ]
        said[file.stem] = [kinds, widths]
    print(json.dumps(said))


main(Path(sys.argv[1]))
