"""From a name to a frozen module in eval mode: encoders, LLMs, tokenizers, feature extractors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FetchError, UsageError
from .resolve import resolve
from .weights import weight_files

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import FeatureExtractionMixin, PreTrainedModel, PreTrainedTokenizerBase

WHISPER_ENCODER = "model.encoder."  # where a Whisper checkpoint keeps its encoder
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def auto_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32.

    A CPU without AVX512-BF16 emulates it, two orders of magnitude slower than float32.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_encoder(name: str, dtype: torch.dtype | str | None = None) -> nn.Module:
    """The frozen audio encoder ``name`` in eval mode; of an encoder-decoder model only the encoder.

    ``dtype``: a torch dtype or its name; left out, ``auto_dtype()``.
    Raises UsageError for an unknown name, FetchError for weights that are broken or do not fit the config.
    """
    from transformers import AutoConfig, AutoModel

    folder = resolve(name)
    with _one_line(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type == "whisper":
        return _frozen(_whisper_encoder(folder, config, _dtype(dtype)))
    model = _load(AutoModel, folder, _dtype(dtype))
    return _frozen(model.get_encoder() if config.is_encoder_decoder else model)


def load_llm(name: str, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The frozen causal LLM ``name`` in eval mode. Arguments and errors as for ``load_encoder``."""
    from transformers import AutoModelForCausalLM

    return _frozen(_load(AutoModelForCausalLM, resolve(name), _dtype(dtype)))


def outline_llm(name: str) -> PreTrainedModel:
    """The causal LLM ``name`` on the meta device: its modules and shapes; its weights are neither read nor allocated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = resolve(name)
    with _one_line(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        # Gemma keeps a scale beside its table as a tensor, which has no value here: a plain table in its place.
        llm.set_input_embeddings(torch.nn.Embedding(*llm.get_input_embeddings().weight.shape))
    return _frozen(llm)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of ``name``, chat template included where it has one."""
    from transformers import AutoTokenizer

    folder = resolve(name)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):  # transformers would make an empty one
        raise FetchError(f"{folder}: has no tokenizer files")
    with _one_line(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_feature_extractor(name: str) -> FeatureExtractionMixin:
    """The feature extractor (waveform to model input) of the audio encoder ``name``."""
    from transformers import AutoFeatureExtractor

    folder = resolve(name)
    with _one_line(folder):
        return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    import torch

    if dtype is None or dtype == "auto":
        return auto_dtype()
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if value not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"dtype {dtype!r}: use float32, bfloat16, float16 or auto")
    return value


def _frozen(module: Any) -> Any:
    return module.eval().requires_grad_(False)


def _load(auto: Any, folder: Path, dtype: torch.dtype) -> Any:
    """``auto.from_pretrained`` from safetensors, where a parameter that the files lack is an error."""
    weight_files(folder)  # its errors say more than those of transformers
    with _one_line(folder), no_progress_bars():
        model, info = auto.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if info["missing_keys"]:  # they would be random numbers
        first, *more = sorted(info["missing_keys"])
        raise FetchError(f"{folder}: its weights lack {first} and {len(more)} more of {type(model).__name__}")
    return model


def _whisper_encoder(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """Just Whisper's encoder: its tensors are read out of the memory-mapped files, the decoder's never are."""
    import torch
    from safetensors import safe_open
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    tensors = {}
    for file in weight_files(folder):
        with _one_line(file), safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                if key.startswith(WHISPER_ENCODER):
                    tensors[key.removeprefix(WHISPER_ENCODER)] = opened.get_tensor(key).to(dtype)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        encoder = WhisperEncoder(config)
    try:
        encoder.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise FetchError(f"{folder}: not the weights of its config.json: {' '.join(str(error).split())}") from None
    return encoder


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turns what transformers and safetensors raise over a broken folder into one line that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FetchError(f"{path}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps the terminal quiet while transformers loads or saves."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
