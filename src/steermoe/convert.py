"""The paper authors' checkpoints (arXiv 2510.13558) -> an adapter.

Theirs hold the whole pair in float32, 33 GB of it; what was trained are a few megabytes, which are kept as they are,
nothing transposed:

    {whisper,conformer}_encoder.steering_vectors  (L, N, D)    -> steering.vectors
    ... .router.weight (L N, D), .router.bias (L N,)           -> steering.router: layer l has rows l N .. (l + 1) N
    ... .layer_scales  (L,)                                    -> steering.scales
    prompt_proj.weight (D_llm, D), .bias (D_llm,)              -> projector.proj

Files are memory-mapped and the frozen rest is not read, but for its LayerNorms: they tell whether the pair that is
named is the one that was trained for. With them go the settings of the authors' code: max pooling (the paper has the
mean), for Whisper 30 s of input and the pooling before the final LayerNorm, a bare English instruction for speech
recognition (``instruction`` in adapter_config.json can be changed to another task's).

Where theirs lets padding through, the adapter does not follow: they append zeros up to a full last group, so that a zero can
win the maximum, and their Conformer hands the LLM 30 s however short the clip is. Here a group pools the
frames it has and the LLM gets those of the clip. A window of Whisper is 1,500 frames, 375 groups: there both agree.
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
NORM = "norm.weight"  # how the names of LayerNorms end, in Whisper, FireRedASR and Qwen alike

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
    """What a checkpoint holds: L ``layers``, N ``experts`` (both 0 without steering), D ``width``, D_llm ``llm_width``,
    the trained ``tensors`` under their names in an adapter, and the LayerNorms ``norms`` of both frozen models."""

    kind: str
    layers: int
    experts: int
    width: int
    llm_width: int
    tensors: dict[str, Tensor]
    norms: dict[str, dict[str, Tensor]]

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())


def convert(
    checkpoint: str | Path, out: str | Path, encoder: str | None = None, llm: str | None = None, pooling: str = "max"
) -> dict[str, Any]:
    """Write the adapter ``out`` from the authors' ``checkpoint``: a file, an index of shards, or a folder with either.

    ``encoder`` and ``llm`` name the pair that it was trained for (as in ``pretrained.resolve``); it is needed for the
    digests of its weights, and to check that it fits. Left out, it is what the shapes tell. ``pooling``: max, as
    the authors' code has it, or mean, as the paper. Returns what was found.

    Raises AdapterError for a checkpoint that cannot be used, UsageError for a pair that it does not fit.
    """
    found = identify(read(checkpoint), checkpoint)
    encoder = encoder or ENCODERS.get((found.kind, found.layers, found.width))
    llm = llm or LLMS.get(found.llm_width)
    if encoder is None:
        what = f"{found.layers} layers of width {found.width}" if found.layers else f"a width of {found.width}"
        raise UsageError(f"--encoder: {what} ({found.kind}) tell no known one; name a folder or org/name@commit")
    if llm is None:
        raise UsageError(f"--llm: a width of {found.llm_width} tells no known one; name a folder or org/name@commit")
    model = _outline(found, checkpoint, encoder, llm, pooling)
    compared = _compare(found, model, checkpoint)
    own = model.adapter_state()
    for name, tensor in found.tensors.items():
        own[name].copy_(tensor)
    model.save_adapter(out, trained={"converted": found.kind, "file": Path(checkpoint).name})
    return {
        "adapter": str(out),
        "kind": found.kind,
        "layers": found.layers,
        "experts": found.experts,
        "width": found.width,
        "llm_width": found.llm_width,
        "parameters": found.parameters,
        "encoder": encoder,
        "llm": llm,
        "compared": compared,
    }


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
        raise AdapterError(
            f"{file}: refused: it holds pickled code or is broken; only plain tensors are read"
        ) from None
    except Exception as error:  # many kinds: not a zip, cut short, saved by a torch that could not be mapped
        reason = " ".join(str(error).split())[:120]
        raise AdapterError(f"{file}: not a file that torch.save wrote, or cut short ({reason})") from None
    if not isinstance(content, dict):
        raise AdapterError(f"{file}: holds a {type(content).__name__}, not a state dict")
    return {k: v for k, v in content.items() if isinstance(v, torch.Tensor) and isinstance(k, str) and _wanted(k)}


def identify(tensors: dict[str, Tensor], source: str | Path) -> Found:
    """The kind and the dimensions of a checkpoint. Raises AdapterError for what it lacks and what does not fit."""
    end = "conformer" if any(name.startswith("conformer_encoder.") for name in tensors) else "whisper"
    names = {f"{end}_encoder.{part}": own for part, own in STEERING.items()}
    steered = end == "whisper" or any(name in tensors for name in names)
    names = {**(names if steered else {}), **PROJECTION}
    if missing := [name for name in names if name not in tensors]:
        raise AdapterError(f"{source}: not a checkpoint of the paper's code, it lacks {', '.join(missing)}")
    theirs = {own: tensors[name] for name, own in names.items()}
    weight = theirs["projector.proj.weight"]
    llm_width, width = weight.shape if weight.ndim == 2 else (0, 0)
    layers = experts = 0
    shapes: dict[str, tuple[int, ...]] = {
        "projector.proj.weight": (llm_width, width),
        "projector.proj.bias": (llm_width,),
    }
    if steered:
        vectors = theirs["steering.vectors"]
        layers, experts = vectors.shape[:2] if vectors.ndim == 3 else (0, 0)
        shapes |= {
            "steering.vectors": (layers, experts, width),
            "steering.router.weight": (layers * experts, width),
            "steering.router.bias": (layers * experts,),
            "steering.scales": (layers,),
        }
    wrong = [f"{name} {tuple(theirs[own].shape)}" for name, own in names.items() if theirs[own].shape != shapes[own]]
    if wrong:
        raise AdapterError(
            f"{source}: its shapes do not agree, {', '.join(wrong)} beside {width} of prompt_proj.weight"
        )
    norms = {
        "encoder": {
            n.partition("speech_encoder.")[2]: t for n, t in tensors.items() if n.startswith(f"{end}_encoder.")
        },
        "llm": {n.removeprefix("llm_decoder."): t for n, t in tensors.items() if n.startswith("llm_decoder.")},
    }
    kind = end if steered else f"linear-{end}"
    return Found(kind, layers, experts, width, llm_width, theirs, norms)


def _outline(
    found: Found, source: str | Path, encoder: str, llm: str, pooling: str
) -> SteerMoEForConditionalGeneration:
    """The adapter's model, untrained, with the encoder (the digests read its weights anyway) and an LLM of shapes only."""
    from .config import SteerMoEConfig, build
    from .encoders import wrap
    from .model import SteerMoEForConditionalGeneration
    from .pretrained import load_encoder, load_feature_extractor
    from .pretrained.load import outline_llm

    settings = {"encoder": encoder, "llm": llm, "num_experts": found.experts or 1, "pooling": pooling}
    config = build(SteerMoEConfig, {**COMMON, **KINDS[found.kind], **settings})
    outline, loaded = outline_llm(llm), load_encoder(encoder)
    if (loaded.config.model_type == "whisper") != (found.kind == "whisper"):  # type: ignore[union-attr]
        raise UsageError(f"--encoder {encoder}: {source} was trained with a {found.kind.split('-')[-1]} encoder")
    frames = wrap(loaded, load_feature_extractor(encoder), config.encoder_layers, config.pad_to_window)
    has, needs = (len(frames.layers), frames.out_width), (found.layers or len(frames.layers), found.width)
    if has != needs:
        wanted = "{} layers of width {}".format(*needs)
        raise UsageError("--encoder {}: {} layers of width {}, but {} has {}".format(encoder, *has, source, wanted))
    if (width := outline.get_input_embeddings().weight.shape[1]) != found.llm_width:
        raise UsageError(f"--llm {llm}: embeddings of width {width}, but {source} projects to {found.llm_width}")
    return SteerMoEForConditionalGeneration(config, frames, outline)


def _compare(found: Found, model: SteerMoEForConditionalGeneration, source: str | Path) -> dict[str, int]:
    """How many LayerNorms of each end the checkpoint shares with the pair. Raises UsageError where they differ.

    An encoder or LLM of the right shapes but other weights (Whisper-large-v2) would load, and hear nonsense.
    """
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
                raise UsageError(
                    f"--{end} {getattr(model.config, end)}: its {name} is not that of {source}, which was trained with "
                    f"another {end}"
                )
        compared[end] = len(shared)
    return compared
