"""Frozen models: from a name to a folder of plain transformers files, and from there to a frozen module."""

from .load import auto_dtype, load_embeddings, load_encoder, load_feature_extractor, load_llm, load_tokenizer
from .resolve import KNOWN, fetch, resolve
from .weights import weights_digest

__all__ = [
    "KNOWN",
    "auto_dtype",
    "fetch",
    "load_embeddings",
    "load_encoder",
    "load_feature_extractor",
    "load_llm",
    "load_tokenizer",
    "resolve",
    "weights_digest",
]
