"""SteerMoEConfig: the one description of a pair and its steering. Also strict building of dataclasses from YAML."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

from .errors import UsageError

T = TypeVar("T")


@dataclass
class SteerMoEConfig:
    """A pair, where it is steered, and how its frames become the LLM's embeddings."""

    encoder: str = "openai/whisper-base"
    """Folder, known name or hub id of the frozen audio encoder."""
    llm: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Folder, known name or hub id of the frozen LLM."""
    num_experts: int = 8
    """Steering vectors a layer (N of the paper)."""
    steer: bool = True
    """False: no steering at all, the paper's static adapter."""
    steer_layers: list[int] | None = None
    """Which encoder layers are steered; all when absent."""
    encoder_layers: str | None = None
    """Dotted path of the encoder's list of layers, where transformers does not tell it."""
    scale: float = 0.1
    """First value of every layer scale (alpha of the paper)."""
    router: Literal["sliced", "per_layer", "tied"] = "sliced"
    """`sliced`: the paper's one matrix, of which a layer uses its part; `per_layer`: a router each; `tied`: one for all."""
    top_k: int | None = None
    """Gates that count in each frame; all when absent, as in the paper."""
    lora_rank: int = 0
    """Rank of a LoRA on the linear maps of the encoder's layers, beside or instead of steering; 0: none."""
    projector: Literal["lexical", "linear", "mlp"] = "lexical"
    """How frames become embeddings; `linear` is the paper's, `lexical` ours."""
    pooling: Literal["mean", "max", "stack"] = "mean"
    """How `linear` pools; `lexical` and `mlp` always stack."""
    projector_experts: int = 1
    """Linear maps in a `linear` or `lexical` projector, mixed by a router of their own."""
    kernel: int | None = None
    """Frames that become one audio token; left out, as many as make 12.5 tokens a second, the paper's rate."""
    temperature: float = 0.0
    """Sharpening of the lexical read-out; 0 is the arg-max token's own embedding."""
    blank_penalty: float = 0.0
    """Taken from the blank's score in the lexical read-out, so that fewer words are dropped."""
    frame_scale: float = 1.0
    """What the lexical scores are multiplied by before readings are followed: below 1, a frame is less sure of its word."""
    readings: int = 32
    """Readings of the lexical scores that the LLM weighs against each other; 1: the arg-max alone."""
    llm_weight: float = 0.4
    """What the LLM's log-probability of a reading counts beside the audio's."""
    token_bonus: float = 4.0
    """Added to the LLM's log-probability a token, or it would favour short readings."""
    llm_margin: float = 8.0
    """A word that was read stands unless the LLM finds another more than e^this times as likely; 0: plain greedy."""
    context: int = 0
    """Pooled frames on each side that a hidden convolution of the lexical projector also sees; 0: none."""
    hidden: int = 512
    """Channels of that convolution."""
    spelling: bool = False
    """Whether the lexical projector also goes by a token's letters, and so hears words that training never spoke."""
    pronunciation: bool = False
    """Whether it also goes by how an English dictionary says a token: with `spelling`."""
    phones: bool = False
    """Whether phones are heard, too, and each reading held against them: with `pronunciation`."""
    phone_weight: float = 0.3
    """What the log-probability of a whole reading's phones counts beside that of its tokens."""
    whole_weight: float = 0.8
    """What `llm_weight` is then: beside two ears, and of whole readings, the LLM may say more."""
    prompt_vectors: int = 0
    """Learned vectors after a transcription's audio, in embedding space."""
    instruction: str = "Repeat the text above word for word."
    """What a transcription asks for, after the audio."""
    prompt_mode: Literal["chat", "raw"] = "chat"
    """`chat`: the LLM's own template; `raw`: audio, then the bare instruction (the paper's)."""
    piece_seconds: float | None = None
    """Longer audio is transcribed in pieces of at most this, cut where it is quiet; the encoder's window when absent."""
    pool_before_norm: bool = False
    """Pool before the encoder's final LayerNorm: the order of converted reference checkpoints."""
    pad_to_window: bool = False
    """Pad every clip to the encoder's window (30 s for Whisper), as it was pretrained."""
    silence: float = 0.0
    """Seconds of silence that Whisper hears behind each clip, and of which nothing is read: clips of its own training ended so."""

    def layers_of(self, count: int) -> list[int]:
        """Which of an encoder's ``count`` layers are steered, in the order of the steering vectors; 0 is the first."""
        return list(range(count)) if self.steer_layers is None else [i % count for i in self.steer_layers]

    def __post_init__(self) -> None:
        for name in ("num_experts", "kernel", "hidden", "readings", "top_k", "projector_experts"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name}={value}: must be at least 1")
        if self.piece_seconds is not None and self.piece_seconds < 1:
            raise UsageError(f"piece_seconds={self.piece_seconds:g}: a second is the least")
        for name in (
            "temperature", "prompt_vectors", "context", "llm_weight", "phone_weight", "llm_margin", "lora_rank", "silence",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)}: cannot be negative")
        for name in ("whole_weight", "frame_scale"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}={getattr(self, name):g}: must be above 0")
        if self.silence > 10 or (self.silence and self.pad_to_window):
            raise UsageError(
                f"silence={self.silence:g}: ten seconds are the most, and none with pad_to_window, which adds it"
            )
        if self.top_k is not None and self.top_k > self.num_experts:
            raise UsageError(f"top_k={self.top_k}: there are only num_experts={self.num_experts}")
        if self.spelling and self.projector != "lexical":
            raise UsageError(f"spelling goes with projector: lexical, not {self.projector}")
        if self.pronunciation and not self.spelling:
            raise UsageError("pronunciation goes with spelling: true, for what no dictionary has")
        if self.phones and not self.pronunciation:
            raise UsageError("phones goes with pronunciation: true, which tells how tokens sound")
        if self.projector_experts > 1 and self.projector == "mlp":
            raise UsageError("projector_experts goes with projector: linear or lexical, not mlp")
        if self.pool_before_norm and self.projector != "linear":
            raise UsageError("pool_before_norm is the reference's order and goes with projector: linear only")


def build(kind: type[T], values: Any, where: str = "config") -> T:
    """A dataclass from plain YAML values; ``where`` is named in errors.

    Raises UsageError for an unknown key (and names the nearest), a wrong type or a wrong choice.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
            raise UsageError(f"{where}: unknown key {key!r}{hint}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: {field.name} is missing")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        return _value(
            next((a for a in choices if dataclasses.is_dataclass(a) == isinstance(value, dict)), choices[0]),
            value,
            where,
        )
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            value = [value]
        return [_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected keys and values, got {value!r}")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint in (int, float) and isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as a string
            return hint(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UsageError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
