"""A GGUF file (llama.cpp's quantised format) -> a plain transformers folder in bfloat16."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

from ..errors import FetchError


def convert_gguf(file: Path, target: Path) -> None:
    """Dequantise ``file`` into the existing folder ``target``: config, weights in bfloat16, tokenizer, chat template.

    Takes about half a minute for 135M parameters, most of it the tokenizer. Raises FetchError
    where the packages that read GGUF are not installed or the file is broken.
    """
    for module in ("gguf", "accelerate"):
        if find_spec(module) is None:
            raise FetchError(f"{file.name}: reading GGUF needs the package {module}: pip install {module}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from .load import no_progress_bars

    try:
        # The bar of the dequantisation has no switch: it goes where stderr points when it starts.
        with no_progress_bars(), redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                # Without it the model keeps its quantised form and cannot be saved.
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
            )
            model.save_pretrained(target)
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise FetchError(f"{file.name}: cannot be converted: {' '.join(str(error).split())[:300]}") from error
