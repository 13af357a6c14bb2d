"""Programs of torch.export whose quantizers are the operators that torch's own quantization passes read."""

__all__: list[str] = []
