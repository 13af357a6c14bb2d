"""Run by FINN's own Python: FINN's front end on QONNX files, up to where layers of hardware take over.

    python -I read_finn.py FOLDER

For each file NAME.onnx, with inputs in NAME.npz, NAME.found.npz holds the outputs after the conversion and after
streamlining, one sample at a time. What is printed is JSON: the operators and the types of their results.
"""
# pyright: reportMissingImports=false

import json
import sys
from pathlib import Path

import numpy as np
from finn.transformation.qonnx.convert_qonnx_to_finn import ConvertQONNXtoFINN
from finn.transformation.streamline import Streamline, absorb
from finn.transformation.streamline.reorder import MakeMaxPoolNHWC
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.bipolar_to_xnor import ConvertBipolarMatMulToXnorPopcount
from qonnx.transformation.fold_constants import FoldConstants
from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames, RemoveStaticGraphInputs
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul
from qonnx.util.cleanup import cleanup_model

# The steps of FINN's builder from a QONNX file to what it turns into hardware.
CONVERT = (ConvertQONNXtoFINN(), InferShapes(), FoldConstants(), GiveUniqueNodeNames(), GiveReadableTensorNames())
CONVERT += (InferDataTypes(), RemoveStaticGraphInputs())
STREAMLINE = (absorb.AbsorbScalarBiasIntoMultiThreshold(), Streamline(), LowerConvsToMatMul(), MakeMaxPoolNHWC())
STREAMLINE += (absorb.AbsorbTransposeIntoMultiThreshold(), MakeMaxPoolNHWC(), absorb.AbsorbConsecutiveTransposes())
STREAMLINE += (ConvertBipolarMatMulToXnorPopcount(), Streamline(), InferDataTypes())


def outputs(model, inputs):
    name = model.graph.input[0].name
    return np.concatenate([next(iter(execute_onnx(model, {name: x[None]}).values())) for x in inputs])


def main(folder):
    said = {}
    for file in sorted(folder.glob("*.onnx")):
        inputs = np.load(file.with_suffix(".npz"))["inputs"]
        model = cleanup_model(ModelWrapper(str(file)))
        found = {}
        for step, transformations in {"converted": CONVERT, "streamlined": STREAMLINE}.items():
            for each in transformations:
                model = model.transform(each)
            found[step] = outputs(model, inputs)
        np.savez(file.with_suffix(".found.npz"), **found)
        nodes = [(node.op_type, model.get_tensor_datatype(node.output[0]).name) for node in model.graph.node]
        said[file.stem] = nodes
    print(json.dumps(said))


main(Path(sys.argv[1]))
