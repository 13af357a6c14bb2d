"""What a forward does with its quantizers: intercepting, recording, and what to warn of."""

__all__: list[str] = []
