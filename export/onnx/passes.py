"""Which of onnxruntime's optimization passes changes the numbers of a file."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..optional import required

if TYPE_CHECKING:
    import onnx

__all__ = ["PASSES", "culprits", "load"]

# By the names that onnxruntime 1.32 gives them, for ``disabled_optimizers=``; it ignores those it does not know.
PASSES = (
    *("WeightBiasQuantization", "QDQSelectorActionTransformer", "DoubleQDQPairsRemover", "QDQPropagationTransformer"),
    *("QDQS8ToU8Transformer", "QDQFinalCleanupTransformer", "EnsureUniqueDQForNodeUnit", "ClipQuantRewrite"),
    *("ReluQuantRewrite", "Avx2WeightS8ToU8Transformer", "ConstantFolding", "ConstantFoldingDQ", "ConstantSharing"),
    *("CommonSubexpressionElimination", "ConvAddActivationFusion", "ConvActivationFusion", "ConvAddFusion"),
    *("ConvBNFusion", "ConvMulFusion", "Pad_Fusion", "MatMulAddFusion", "MatMulScaleFusion", "MatMulActivationFusion"),
    *("MatMul_BatchNormalization_Fusion", "MatmulTransposeFusion", "MatMulIntegerToFloatFusion", "DQMatMulNBitsFusion"),
    *("MatMulNBitsFusion", "MatMulNBitsMlpFusion", "MatMulNBitsQkvFusion", "DynamicQuantizeMatMulFusion"),
    *("GemmActivationFusion", "GemmSumFusion", "GemmTransposeFusion", "TransposeOptimizer", "NchwcTransformer"),
    *("NhwcTransformer", "BiasDropoutFusion", "BiasGeluFusion", "BiasSoftmaxFusion", "BiasSkipLayerNormFusion"),
    *("GeluFusionL1", "GeluFusionL2", "FastGeluFusion", "QuickGeluFusion", "GeluApproximation", "LayerNormFusionL1"),
    *("LayerNormFusionL2", "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "EmbedLayerNormFusion"),
    *(
        "AttentionFusion",
        "GroupQueryAttentionFusion",
        "SwiGluFusion",
        "ReshapeFusion",
        "SliceConcatToSpaceToDepthFusion",
    ),
    *("GatherSliceToSplitFusion", "GatherToSliceFusion", "LabelEncoderFusion", "NotWhereFusion", "DivMulFusion"),
    *("CastElimination", "CastChainElimination", "EliminateDropout", "EliminateIdentity", "EliminateSlice"),
    *("ExpandElimination", "UnsqueezeElimination", "NoopElimination", "PreShapeNodeElimination"),
    *("FreeDimensionOverrideTransformer", "FuseInitializersTransformer", "RemoveDuplicateCastTransformer"),
)


def load(
    model: "onnx.ModelProto", optimize: bool, disabled: Sequence[str] = ()
) -> Callable[[list[Tensor]], dict[str, Tensor]]:
    """A function from inputs to outputs by name: a file in onnxruntime, on CPU.

    Args:
        model: an ``onnx.ModelProto``.
        optimize: all optimizations, or none.
        disabled: names of passes that are left out.
    """
    runtime = required("onnxruntime", "compare")
    options = runtime.SessionOptions()
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what fails is raised
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )
    names = [each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]

    def run(inputs: list[Tensor]) -> dict[str, Tensor]:
        feed = {name: each.detach().cpu().numpy() for name, each in zip(names[0], inputs, strict=True)}
        return {name: torch.as_tensor(each) for name, each in zip(names[1], session.run(None, feed), strict=True)}

    return run


def culprits(differs: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    """The passes that cause a difference.

    First those are looked for without any one of which it goes away; if there are none, those that cause it alone.

    Args:
        differs: whether there is a difference with these passes left out.

    Returns:
        Their names; empty where no pass is to blame, but the kernels that the runtime chose.

    Example:
        >>> culprits(lambda disabled: "ConvAddFusion" not in disabled)
        ('ConvAddFusion',)
        >>> culprits(lambda disabled: not {"ConvAddFusion", "Pad_Fusion"} <= set(disabled))
        ('ConvAddFusion', 'Pad_Fusion')
        >>> culprits(lambda disabled: True)
        ()
    """
    if differs(PASSES):
        return ()
    single = tuple(name for name in PASSES if not differs((name,)))
    return single or tuple(name for name in PASSES if differs(tuple(other for other in PASSES if other != name)))
