"""From a name to a frozen module in eval mode: encoders, LLMs, tokenizers, feature extractors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FetchError, UsageError
from .fireredasr import read_config, read_extractor
from .resolve import resolve
from .weights import weight_files

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import FeatureExtractionMixin, PreTrainedModel, PreTrainedTokenizerBase

    from ..encoders.fireredasr import FireRedFeatureExtractor

# Where a model that is more than its audio encoder keeps it: Whisper, SeamlessM4T, and audio LLMs old and new.
TOWERS = ("model.encoder.", "speech_encoder.", "audio_tower.", "model.audio_tower.")
INSIDE = {  # encoders that AutoModel does not know on their own
    "whisper": "WhisperEncoder",
    "seamless_m4t": "SeamlessM4TSpeechEncoder",
    "seamless_m4t_v2": "SeamlessM4Tv2SpeechEncoder",
}
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")

# A CPU's matrix products are compiled for each shape and kept, the last thousand twice over and up to a megabyte each:
# texts and clips of ever new lengths would fill gigabytes. Read by oneDNN and by torch at the first product.
for _variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_variable, "128")


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
    """The frozen audio encoder ``name`` in eval mode; of Whisper, SeamlessM4T or an audio LLM only the encoder.

    ``dtype``: a torch dtype or its name; left out, ``auto_dtype()``.
    Raises UsageError for an unknown name, FetchError for weights that are broken or do not fit the config.
    """
    from transformers import AutoConfig, AutoModel

    folder = resolve(name)
    if _is_firered(folder):
        return _frozen(_filled(_firered(folder), folder, _dtype(dtype), [""]))
    with _one_line(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if (build := _tower(config)) is not None:
        return _frozen(_filled(build, folder, _dtype(dtype), TOWERS))
    model = _load(AutoModel, folder, _dtype(dtype))
    return _frozen(model.get_encoder() if config.is_encoder_decoder else model)


def load_llm(name: str, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The frozen causal LLM ``name`` in eval mode. Arguments and errors as for ``load_encoder``.

    Raises UsageError for a model that does not write text from left to right.
    """
    from transformers import AutoModelForCausalLM

    folder, _ = _llm(name)
    model = _load(AutoModelForCausalLM, folder, _dtype(dtype))
    causal = [m.is_causal for m in model.modules() if hasattr(m, "is_causal")]
    if causal and not any(causal):  # BERT has a causal head, too, but sees what comes after
        raise UsageError(_no_llm(name, model.config))
    return _frozen(model)


def load_embeddings(name: str, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The causal LLM ``name`` without its layers: config, embedding table, and a head that is that table and means nothing.

    For an LLM that runs elsewhere. Arguments and errors as for ``load_encoder``.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder, config = _llm(name)
    text = config.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    shown = logging.get_verbosity()
    logging.set_verbosity_error()  # that the files hold layers, too, is no news
    try:
        llm = _load(AutoModelForCausalLM, folder, _dtype(dtype), config=config)
    finally:
        logging.set_verbosity(shown)
    llm.get_output_embeddings().weight = llm.get_input_embeddings().weight  # a second table would only cost memory
    return _frozen(llm)


def outline_llm(name: str) -> PreTrainedModel:
    """The causal LLM ``name`` on the meta device: its modules and shapes; its weights are neither read nor allocated.

    Raises UsageError as ``load_llm`` does.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder, config = _llm(name)
    with _one_line(folder), torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        # Gemma keeps a scale beside its table as a tensor, which has no value here: a plain table in its place.
        llm.set_input_embeddings(torch.nn.Embedding(*llm.get_input_embeddings().weight.shape))
        llm.tie_weights()  # to the head, where the config says so
    return _frozen(llm)


def _llm(name: str) -> tuple[Path, Any]:
    """The folder and the config of the causal LLM ``name``. Raises UsageError for what is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    folder = resolve(name)
    with _one_line(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # Of Whisper and BART, transformers lists the decoder.
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise UsageError(_no_llm(name, config))
    return folder, config


def _no_llm(name: str, config: Any) -> str:
    return f"{name}: a {config.model_type!r} model is no causal LLM; give a decoder, such as Llama, Qwen or Gemma"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of ``name``, chat template included where it has one."""
    from transformers import AutoTokenizer

    folder = resolve(name)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):  # transformers would make an empty one
        raise FetchError(f"{folder}: has no tokenizer files")
    with _one_line(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_feature_extractor(name: str) -> FeatureExtractionMixin | FireRedFeatureExtractor:
    """The feature extractor (waveform to model input) of the audio encoder ``name``.

    Raises FetchError for a model that has none, and so is no audio encoder.
    """
    from transformers import AutoFeatureExtractor

    folder = resolve(name)
    if not any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        raise FetchError(
            f"{name}: has no preprocessor_config.json, so it is no audio encoder, or lacks its feature extractor: "
            "save that beside the weights, or give another, such as a Whisper"
        )
    if _is_firered(folder):
        with _one_line(folder):
            return read_extractor(folder)
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


def _load(auto: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """``auto.from_pretrained`` from safetensors, where a parameter that the files lack is an error."""
    weight_files(folder)  # its errors say more than those of transformers
    with _one_line(folder), no_progress_bars():
        model, info = auto.from_pretrained(
            folder,
            dtype=dtype,  # and the best attention it knows: sdpa, but for WavLM and a few
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    if info["missing_keys"]:  # they would be random numbers
        first, *more = sorted(info["missing_keys"])
        raise FetchError(f"{folder}: its weights lack {first} and {len(more)} more of {type(model).__name__}")
    return model


def _tower(config: Any) -> Callable[[], nn.Module] | None:
    """What builds the audio encoder inside a larger model; None where the model is nothing else."""
    from transformers import AutoModel

    config._attn_implementation = "sdpa"
    if (name := INSIDE.get(config.model_type)) is not None:
        family = import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
        return lambda: getattr(family, name)(config)
    if (inner := getattr(config, "audio_config", None)) is not None:
        return lambda: AutoModel.from_config(inner)
    return None


def _is_firered(folder: Path) -> bool:
    """Whether the folder's model is the one that transformers has no class for."""
    from ..encoders.fireredasr import MODEL_TYPE

    with _one_line(folder):
        told = json.loads((folder / "config.json").read_text())
    return isinstance(told, dict) and told.get("model_type") == MODEL_TYPE


def _firered(folder: Path) -> Callable[[], nn.Module]:
    from ..encoders.fireredasr import FireRedEncoder

    with _one_line(folder):
        config = read_config(folder)
    return lambda: FireRedEncoder(config)


def _filled(build: Callable[[], nn.Module], folder: Path, dtype: torch.dtype, prefixes: Sequence[str]) -> nn.Module:
    """``build()`` with the folder's tensors of those names: read out of the memory-mapped files, as no others are."""
    import torch
    from safetensors import safe_open

    tensors = {}
    for file in weight_files(folder):
        with _one_line(file), safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                if (prefix := next((p for p in prefixes if key.startswith(p)), None)) is not None:
                    tensors[key.removeprefix(prefix)] = opened.get_tensor(key).to(dtype)
    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        module = build()
    if {name for name, _ in module.named_buffers()} - module.state_dict().keys():  # computed, in no file
        module = build().to(dtype)
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise FetchError(f"{folder}: not the weights of its config.json: {' '.join(str(error).split())}") from None
    return module


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
