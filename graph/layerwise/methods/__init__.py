"""What repairs a quantized model layer by layer: algorithms that choose codes, scales of channels, branches."""

__all__: list[str] = []
