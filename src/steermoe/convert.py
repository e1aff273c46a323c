"""The paper authors' checkpoints (arXiv 2510.13558) -> an adapter.

Theirs hold the whole pair in float32, 33 GB of it; what was trained are a few megabytes, which are kept as they are,
nothing transposed:

    {whisper,conformer}_encoder.steering_vectors  (L, N, D)    -> steering.vectors
    ... .router.weight (L N, D), .router.bias (L N,)           -> steering.router: layer l has rows l N .. (l + 1) N
    ... .layer_scales  (L,)                                    -> steering.scales
    prompt_proj.weight (D_llm, D), .bias (D_llm,)              -> projector.proj

Files are memory-mapped and the frozen rest is not read, but for its LayerNorms: they tell whether the pair that is
named is the one that was trained for; another of the same shapes would load and hear nonsense. The settings are
those of the authors' code: max pooling (the paper has the mean), for Whisper 30 s of input and the pooling before the
final LayerNorm, a bare English instruction for speech recognition (``instruction`` in adapter_config.json can be
changed to another task's).

One thing is not followed, that padding is heard: theirs fills the last group with zeros, so that a zero can win the
maximum, and its Conformer hands the LLM 30 s however short the clip is. Here a group pools the frames it has, and the
LLM gets those of the clip. Whisper's window is 1,500 frames, 375 whole groups: there both agree.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AdapterError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from .model import SteerMoEForConditionalGeneration

FILES = ("pytorch_model.bin", "model.safetensors", "pytorch_model.bin.index.json", "model.safetensors.index.json")
STEERING = {
    "steering_vectors": "steering.vectors",
    "router.weight": "steering.router.weight",
    "router.bias": "steering.router.bias",
    "layer_scales": "steering.scales",
}
PROJECTION = {"prompt_proj.weight": "projector.proj.weight", "prompt_proj.bias": "projector.proj.bias"}
NORM = "norm.weight"  # how names of LayerNorms end, in Whisper and Qwen all, in FireRedASR most

COMMON: dict[str, Any] = {
    "projector": "linear",
    "prompt_mode": "raw",
    "instruction": "please transcribe the audio content into text: ",
}
KINDS: dict[str, dict[str, Any]] = {
    "whisper": {"kernel": 4, "pool_before_norm": True, "pad_to_window": True},
    "conformer": {"kernel": 2},
    "linear-conformer": {"kernel": 1, "steer": False},  # the authors' baseline projects every frame
}

# What the authors trained with, told by the shapes; the LayerNorms show whether the guess is right.
ENCODERS = {("whisper", 32, 1280): "openai/whisper-large-v3@06f233fe06e710322aca913c1bc4249a0d71fce1"}
LLMS = {
    3584: "Qwen/Qwen2.5-7B-Instruct@a09a35458c702b33eeacc393d103063234e8bc28",
    2048: "Qwen/Qwen2.5-3B-Instruct@aa8e72537993ba99e69dfaafa59ed015b17504d1",
    896: "Qwen/Qwen2.5-0.5B-Instruct@7ae557604adf67be50417f59c2c2f167def9a775",
}


@dataclass
class Found:
    """``dimensions``: L layers and N experts (0 without steering), D width, D_llm llm_width; the trained ``tensors`` by
    their names in an adapter, and the LayerNorms ``norms`` of the frozen encoder and llm by theirs in these models."""

    kind: str
    dimensions: dict[str, int]
    tensors: dict[str, Tensor]
    norms: dict[str, dict[str, Tensor]]


def convert(
    checkpoint: str | Path, out: str | Path, encoder: str | None = None, llm: str | None = None, pooling: str = "max"
) -> dict[str, Any]:
    """Write the adapter ``out`` from the authors' ``checkpoint``: a file, an index of shards, or a folder with either.

    ``encoder`` and ``llm`` name the pair that it was trained for (as in ``pretrained.resolve``); it is needed for the
    digests of its weights, and to check that it fits. Left out, it is ENCODERS' and LLMS' for the shapes. ``pooling``:
    max, as the authors' code has it, or mean, as the paper. Returns what was found.

    Raises AdapterError for a checkpoint that cannot be used, UsageError for a pair that it does not fit.
    """
    found = identify(read(checkpoint), checkpoint)
    layers, width, llm_width = (found.dimensions[name] for name in ("layers", "width", "llm_width"))
    encoder, llm = encoder or ENCODERS.get((found.kind, layers, width)), llm or LLMS.get(llm_width)
    if encoder is None:
        what = f"{layers} layers of width {width}" if layers else f"a width of {width}"
        raise UsageError(f"--encoder: {what} ({found.kind}) tell no known one; name a folder or org/name@commit")
    if llm is None:
        raise UsageError(f"--llm: a width of {llm_width} tells no known one; name a folder or org/name@commit")
    model = _model(found, checkpoint, encoder, llm, pooling)
    compared = _compare(found, model, checkpoint)
    own = model.adapter_state()
    for name, tensor in found.tensors.items():
        own[name].copy_(tensor)
    model.save_adapter(out, trained={"converted": found.kind, "file": Path(checkpoint).name})
    count = sum(tensor.numel() for tensor in found.tensors.values())
    pair = {"encoder": encoder, "llm": llm, "compared": compared}
    return {"adapter": str(out), "kind": found.kind, **found.dimensions, "parameters": count, **pair}


def read(checkpoint: str | Path) -> dict[str, Tensor]:
    """Of all its files: the trained tensors and the LayerNorms, memory-mapped. Raises AdapterError."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path)
        if path.is_dir():
            raise AdapterError(f"{path}: no checkpoint in this folder; it would be one of {', '.join(FILES)}")
    if not path.is_file():
        raise AdapterError(f"{path}: no such file")
    shards = [path]
    if path.name.endswith(".index.json"):
        try:
            shards = [path.parent / name for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise AdapterError(f"{path}: not an index of shards; copy the checkpoint anew") from None
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not shard.is_file():
            raise AdapterError(f"{shard}: named by {path.name}, but absent; copy the checkpoint anew")
        tensors |= _safetensors(shard) if shard.suffix == ".safetensors" else _pickled(shard)
    return tensors


def _wanted(name: str) -> bool:
    return name.endswith((*PROJECTION, *(f"_encoder.{part}" for part in STEERING), NORM))


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if _wanted(name)}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file}: cannot be read ({error}); copy the checkpoint anew") from None


def _pickled(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise AdapterError(f"{file}: refused, holds pickled code or is broken; only tensors are read") from None
    except Exception:  # of many kinds: not a zip, cut short, saved by a torch that could not be mapped
        raise AdapterError(
            f"{file}: not what torch.save writes since 1.6, or cut short; give the authors' pytorch_model.bin or its folder"
        ) from None
    if not isinstance(content, dict):
        raise AdapterError(
            f"{file}: holds a {type(content).__name__}, not a state dict; give the authors' pytorch_model.bin"
        )
    return {k: v for k, v in content.items() if isinstance(v, torch.Tensor) and isinstance(k, str) and _wanted(k)}


def identify(tensors: dict[str, Tensor], source: str | Path) -> Found:
    """The kind and the dimensions of a checkpoint. Raises AdapterError for what it lacks and what does not fit."""
    end = "conformer" if any(name.startswith("conformer_encoder.") for name in tensors) else "whisper"
    names = {f"{end}_encoder.{part}": own for part, own in STEERING.items()}
    steered = end == "whisper" or any(name in tensors for name in names)
    names = {**(names if steered else {}), **PROJECTION}
    if missing := [name for name in names if name not in tensors]:
        raise AdapterError(f"{source}: not a checkpoint of the paper's code, it lacks {', '.join(missing)}")
    theirs = [tensors[name] for name in names]
    llm_width, width = theirs[-2].shape if theirs[-2].ndim == 2 else (0, 0)
    shapes: list[tuple[int, ...]] = [(llm_width, width), (llm_width,)]
    layers = experts = 0
    if steered:
        layers, experts = theirs[0].shape[:2] if theirs[0].ndim == 3 else (0, 0)
        rows = layers * experts
        shapes = [(layers, experts, width), (rows, width), (rows,), (layers,), *shapes]
    wrong = [f"{n} {tuple(t.shape)}" for n, t, shape in zip(names, theirs, shapes, strict=True) if t.shape != shape]
    if wrong:
        raise AdapterError(f"{source}: shapes that do not agree: {', '.join(wrong)}, width {width}")
    norms: dict[str, dict[str, Tensor]] = {"encoder": {}, "llm": {}}
    for name, tensor in tensors.items():
        if name.startswith("llm_decoder."):
            norms["llm"][name.removeprefix("llm_decoder.")] = tensor
        elif name.startswith(f"{end}_encoder."):
            norms["encoder"][name.partition("speech_encoder.")[2]] = tensor
    dimensions = {"layers": layers, "experts": experts, "width": width, "llm_width": llm_width}
    kind = end if steered else f"linear-{end}"
    return Found(kind, dimensions, dict(zip(names.values(), theirs, strict=True)), norms)


def _model(found: Found, source: str | Path, encoder: str, llm: str, pooling: str) -> SteerMoEForConditionalGeneration:
    """The pair that an adapter is saved from; of the LLM its shapes alone."""
    from .config import SteerMoEConfig, build
    from .encoders import wrap
    from .model import SteerMoEForConditionalGeneration
    from .pretrained import load_encoder, load_feature_extractor
    from .pretrained.load import outline_llm

    layers, experts, width, llm_width = found.dimensions.values()
    settings = {"encoder": encoder, "llm": llm, "num_experts": experts or 1, "pooling": pooling}
    config = build(SteerMoEConfig, {**COMMON, **KINDS[found.kind], **settings})
    outline, loaded = outline_llm(llm), load_encoder(encoder)
    if (loaded.config.model_type == "whisper") != (found.kind == "whisper"):  # type: ignore[union-attr]
        raise UsageError(f"--encoder {encoder}: {source} was trained with a {found.kind.split('-')[-1]} encoder")
    frames = wrap(loaded, load_feature_extractor(encoder), config.encoder_layers, config.pad_to_window)
    has = len(frames.layers)
    if (has, frames.out_width) != (layers or has, width):
        wanted = f"{layers or has} layers of width {width}"
        raise UsageError(
            f"--encoder {encoder}: {has} layers of width {frames.out_width}, but {source} was trained on {wanted}"
        )
    if (own := outline.get_input_embeddings().weight.shape[1]) != llm_width:
        raise UsageError(f"--llm {llm}: embeddings of width {own}, but {source} projects to {llm_width}")
    return SteerMoEForConditionalGeneration(config, frames, outline)


def _compare(found: Found, model: SteerMoEForConditionalGeneration, source: str | Path) -> dict[str, int]:
    """How many LayerNorms of each end the checkpoint shares with the pair. Raises UsageError where they differ."""
    import torch

    from .pretrained import resolve
    from .pretrained.weights import weight_files

    llm: dict[str, Tensor] = {}
    for file in weight_files(resolve(model.config.llm)):
        llm |= _safetensors(file)
    compared = {}
    for end, own in (("encoder", model.frames.encoder.state_dict()), ("llm", llm)):
        shared = [name for name in found.norms[end] if name in own]
        for name in shared:
            theirs, ours = found.norms[end][name].float(), own[name].float()
            # Either may have passed through half precision, which is off by up to 2^-8.
            if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=2**-7, atol=1e-5):
                named = f"--{end} {getattr(model.config, end)}"
                raise UsageError(f"{named}: its {name} is not that of {source}, which has another {end}")
        compared[end] = len(shared)
    return compared
