"""Faster or smaller ways to compute what torch's layers compute."""

__all__: list[str] = []
