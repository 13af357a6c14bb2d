"""Models for tests of the example of language models, which a command line can name."""

import importlib
from typing import Any

import torch
from torch import nn

__all__ = ["llama", "qwen2", "qwen3", "tied", "tiny"]


def tiny(**sizes: int) -> Any:
    """The example's own model, of one byte to a token, with a few hundred weights in a layer."""
    torch.manual_seed(0)
    own = importlib.import_module("llm_model")
    return own.LanguageModel(own.Config(**{"width": 32, "blocks": 2, "hidden": 64, **sizes}))


def tied() -> nn.Module:
    """The same with one weight for embedding and head."""
    return tiny(tied=True)


def llama() -> nn.Module:
    """Llama of transformers, its head apart from its embedding."""
    return _of_transformers("Llama")


def qwen2() -> nn.Module:
    """Qwen2: biases of query, key and value, one weight for embedding and head."""
    return _of_transformers("Qwen2", tie_word_embeddings=True)


def qwen3() -> nn.Module:
    """Qwen3: norms of query and key, heads that are wider than the stream's share."""
    return _of_transformers("Qwen3", head_dim=16)


def _of_transformers(name: str, **settings: object) -> nn.Module:
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = getattr(transformers, f"{name}Config")(**sizes, **heads, **settings, use_cache=True)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    model.config.architectures = [type(model).__name__]
    return model
