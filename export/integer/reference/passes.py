"""Which of onnxruntime's optimization passes changes the numbers of a file."""

from collections.abc import Callable

__all__ = ["PASSES", "culprits"]

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
