"""An adapter on disk: ``adapter_config.json`` and ``adapter_model.safetensors``, a few megabytes.

The config names the pair, the digests of its weights, the shapes, and how it was trained. Loading is strict:
another pair, a missing, extra or misshapen tensor is an error that says which. Never pickle.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import SteerMoEConfig, build
from .errors import AdapterError

if TYPE_CHECKING:
    from .model import SteerMoEForConditionalGeneration

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def fingerprint(name: str) -> dict[str, Any]:
    """What identifies one end of a pair: its name, its weights' digest."""
    from .pretrained import resolve, weights_digest

    return {"name": name, "weights": [weights_digest(resolve(name))]}


def library_version() -> str:
    try:
        return version("steermoe")
    except PackageNotFoundError:
        return "unknown"


def describe(model: SteerMoEForConditionalGeneration, trained: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of adapter_config.json."""
    config = model.config
    known = getattr(model, "pair_fingerprint", None)
    pair = known or {"encoder": fingerprint(config.encoder), "llm": fingerprint(config.llm)}
    return {
        "format": 1,
        "steermoe": library_version(),
        "config": dataclasses.asdict(config)
        | {end: pair[end]["name"] for end in ("encoder", "llm")},  # no local copies
        "pair": pair,
        "shapes": {
            "encoder_layers": len(model.frames.layers),
            "encoder_width": model.frames.width,
            "llm_width": model.llm.get_input_embeddings().weight.shape[1],
            "vocabulary": model.audio_token_id,
        },
        "trained": trained if trained is not None else getattr(model, "trained", {}),
    }


def save(model: SteerMoEForConditionalGeneration, folder: str | Path, trained: dict[str, Any] | None = None) -> None:
    """Write the adapter; what stood there before survives until the new one is whole.

    Both files are written in a folder beside and moved in; a full disk or a kill leaves the old adapter.
    Raises AdapterError when it cannot be written.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.adapter_state().items()}
    _write(Path(folder), tensors, describe(model, trained))


def _write(folder: Path, tensors: dict[str, Any], content: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".saving.*"):  # of a run that was killed
            shutil.rmtree(stale, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=".saving.", dir=folder))
        try:
            save_file(tensors, scratch / TENSORS, metadata={"format": "pt"})
            (scratch / CONFIG).write_text(text, encoding="utf-8")
            (scratch / TENSORS).chmod((scratch / CONFIG).stat().st_mode)  # safetensors writes for the owner only
            for name in (TENSORS, CONFIG):
                with open(scratch / name, "rb") as file:
                    os.fsync(file.fileno())  # a full disk is met here, before anything old is replaced
            for name in (TENSORS, CONFIG):
                os.replace(scratch / name, folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except Exception as error:  # safetensors raises its own class for a full disk
        raise AdapterError(
            f"cannot save the adapter in {folder}: {error}; what was there before is untouched"
        ) from None


def push(model: SteerMoEForConditionalGeneration, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload the adapter to the hub as one commit of ``repo`` (made if absent); returns ``repo@commit``, which loads it.

    Raises AdapterError if the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        try:
            hub = HfApi(token=token)
            hub.create_repo(repo, private=private, exist_ok=True)
            done = hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="A steermoe adapter")
        except Exception as error:  # of many kinds: no network, no login, no right to write there
            raise AdapterError(f"{repo}: cannot be pushed ({' '.join(str(error).split())[:200]})") from None
    return f"{repo}@{done.oid}"


def average(shares: dict[str, float], out: str | Path, **settings: Any) -> None:
    """The weighted mean of adapters of one shape, in ``out`` (Wortsman et al., 2022: model soups).

    ``shares`` maps folders to weights, which are scaled to sum to one; the first folder's settings are kept but for
    ``settings``. Raises AdapterError when the adapters differ in their tensors or their pair, or cannot be written.
    """
    first, *others = contents = [read_config(folder) for folder in shares]
    mixed: dict[str, Any] = {}
    for folder, share in shares.items():
        for name, tensor in (tensors := _tensors(Path(folder) / TENSORS)).items():
            learned = tensor.is_floating_point()
            part = tensor * (share / sum(shares.values())) if learned else tensor
            if (
                mixed
                and folder != next(iter(shares))
                and (name not in mixed or mixed[name].shape != part.shape or not (learned or mixed[name].equal(part)))
            ):
                raise AdapterError(f"{folder}: its {name} {tuple(part.shape)} is not that of {next(iter(shares))}")
            mixed[name] = mixed[name] + part if learned and name in mixed else part
        if tensors.keys() != mixed.keys():
            raise AdapterError(f"{folder}: lacks {', '.join(sorted(mixed.keys() - tensors.keys()))}")
    if any(content["pair"] != first["pair"] for content in others):
        raise AdapterError(f"{', '.join(shares)}: adapters of different pairs cannot be averaged")
    trained = {"average": [{"share": s, **c["trained"]} for s, c in zip(shares.values(), contents, strict=True)]}
    config = dataclasses.asdict(load_config({"config": {**first["config"], **settings}}, "average"))
    _write(Path(out), mixed, {**first, "config": config, "trained": trained})


def halve(folder: str | Path, out: str | Path) -> None:
    """The adapter in ``folder`` rounded to float16, in ``out``: half the file. It is loaded as any other, in float32.

    Raises AdapterError when it cannot be read or written, or holds a number that float16 cannot.
    """
    content, tensors = read_config(folder), _tensors(Path(folder) / TENSORS)
    rounded = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    if large := [name for name, tensor in rounded.items() if not tensor.isfinite().all()]:
        raise AdapterError(f"{folder}: {large[0]} holds numbers beyond float16's 65,504; keep it as it is")
    _write(Path(out), rounded, content)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The parsed adapter_config.json, checked for its format. Raises AdapterError."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder}: no adapter there (it would hold {CONFIG} and {TENSORS})")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        format_version = content["format"]
        if format_version == 1:
            _ = content["config"], [content["pair"][end]["weights"][0] for end in ("encoder", "llm")]
    except (ValueError, LookupError, TypeError):
        raise AdapterError(f"{path}: not an adapter config; fetch or train the adapter again") from None
    if format_version != 1:
        raise AdapterError(f"{path}: format {format_version}, this steermoe reads 1; update steermoe")
    return content


def check_pair(content: dict[str, Any], folder: str | Path, encoder: str, llm: str) -> None:
    """Refuse a pair whose weights are not among those the adapter was trained for."""
    for end, name in (("encoder", encoder), ("llm", llm)):
        wanted = content["pair"][end]
        have = fingerprint(name)["weights"][0]
        if have not in wanted["weights"]:
            raise AdapterError(
                f"{folder}: trained for the {end} {wanted['name']} (weights {wanted['weights'][0][:12]}), "
                f"but {name} has weights {have[:12]}; give it its own pair, or train with --init-from"
            )


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: cannot be read ({error}); fetch or train the adapter again") from None


# Of a config: how audio is heard, and which parts an adapter has. (A kernel is of its shape.)
HEARD = ("silence", "pad_to_window", "pool_before_norm")
PARTS = (
    "projector",
    "projector_experts",
    "context",
    "spelling",
    "pronunciation",
    "phones",
    "prompt_vectors",
    "steer",
    "lora_rank",
)


def start_from(model: SteerMoEForConditionalGeneration, folder: str | Path) -> list[str]:
    """Copy what the adapter in ``folder`` has for ``model``; returns lines that say what starts anew.

    With another LLM the steering stays, since the encoder still hears what it heard, and the projector and prompt
    vectors, which speak the LLM's language, start anew. With another encoder everything does. Of the same pair, parts
    of another shape start anew. Raises AdapterError when the adapter cannot be read, or none of its parts has the shape.
    """
    import torch

    content, path = read_config(folder), Path(folder) / TENSORS
    tensors, own = _tensors(path), model.adapter_state()

    def other(end: str, name: str) -> str | None:
        trained = content["pair"][end]
        return None if fingerprint(name)["weights"][0] in trained["weights"] else trained["name"]

    def part(name: str) -> str:  # a weight without its bias is of no use
        return name.rpartition(".")[0] or name

    if was := other("encoder", model.config.encoder):
        return [f"{folder} was trained on the encoder {was}, not {model.config.encoder}: everything starts anew"]
    was = other("llm", model.config.llm)
    if was:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(("steering.", "lora."))}
    steered = load_config(content, folder).layers_of(len(model.frames.layers))
    had = model.steering is not None and any(name.startswith("steering.") for name in tensors)
    moved = had and steered != model.steered_layers
    if moved:  # vectors of one layer mean nothing to another
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("steering.")}
    unfit = {part(k) for k in own if k not in tensors or tensors[k].shape != own[k].shape}
    fit = [k for k in own if part(k) not in unfit]
    with torch.no_grad():
        for name in fit:
            own[name].copy_(tensors[name])
    if fit:
        model.trained = {"before": content["trained"]}
    lines = []
    if was:
        kept = "its steering is kept, the rest starts anew" if fit else "nothing of it fits, everything starts anew"
        lines.append(f"{folder} was trained for the LLM {was}, not {model.config.llm}: {kept}")
    if moved:
        lines.append(f"{folder} steers the layers {steered}, not {model.steered_layers}: the steering starts anew")
    if not fit and not lines:
        raise AdapterError(
            f"{path}: none of its tensors fits this model; start without it, or from one with this projector"
        )
    if not lines and (new := sorted(own.keys() - set(fit))):
        lines.append(f"{folder} has no {', '.join(new)} of this shape: they start anew")
    if not was and not moved:
        trained, now = vars(load_config(content, folder)), vars(model.config)
        kinds = (*HEARD, *PARTS) if tensors.keys() - own.keys() else HEARD
        if other_ways := [f"{k}: {json.dumps(trained[k])}" for k in kinds if trained[k] != now[k]]:
            lines.append(
                f"{folder} was trained with {', '.join(other_ways)}, and this recipe is not: to keep all that it learned, "
                "give these under model:"
            )
    return lines


def load_tensors(model: SteerMoEForConditionalGeneration, folder: str | Path) -> None:
    """Copy the adapter's tensors into ``model``. Raises AdapterError for any that is missing, extra or misshapen."""
    import torch

    path = Path(folder) / TENSORS
    tensors = _tensors(path)
    own = model.adapter_state()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise AdapterError(f"{path}: missing tensors {missing or 'none'}, unknown tensors {extra or 'none'}")
    wrong = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if own[k].shape != tensors[k].shape
    ]
    if wrong:
        raise AdapterError(f"{path}: wrong shapes: {', '.join(wrong)}; was it trained for another pair?")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def load_config(content: dict[str, Any], folder: str | Path) -> SteerMoEConfig:
    return build(SteerMoEConfig, content["config"], f"{folder}/{CONFIG}")
