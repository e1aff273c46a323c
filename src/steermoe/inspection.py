"""What an adapter is made of, and where its router sends one clip."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .analysis import plot_gates, plot_usage, routing_statistics
from .audio import RATE, decode
from .config import SteerMoEConfig
from .errors import UsageError
from .inference.ears import Ears, load
from .inference.timing import Word, by_words
from .lexical import LexicalProjector


def parameters(ears: Ears) -> dict[str, int]:
    """Trainable parameters by part, and the frozen ones."""
    counts: dict[str, int] = {}
    for name, tensor in ears.model.adapter_state().items():
        part = ".".join(name.split(".")[:2]) if name.startswith("steering") else name.split(".")[0]
        counts[part] = counts.get(part, 0) + tensor.numel()
    frozen = {"frozen encoder": ears.model.frames, "frozen LLM": ears.model.llm}
    return counts | {name: sum(p.numel() for p in module.parameters()) for name, module in frozen.items()}


@torch.inference_mode()
def gates_of(ears: Ears, samples: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
    """Of the first window of ``samples``: gates (T, N) a steered layer, log-mel (mels, T'), layer scales."""
    model = ears.model
    if model.steering is None:
        return [], np.zeros((0, 0)), []
    from transformers import WhisperFeatureExtractor  # its log-mel, whatever the encoder itself is given

    window = samples[: int(model.frames.window * RATE)]
    inputs = ears.processor.features([window])
    with model.steering.recording() as record:
        h, lengths = model.encode(inputs["input_features"].to(model.device), inputs["feature_lengths"].to(model.device))
    gates = [record[layer].flatten(0, -2).float().cpu().numpy() for layer in sorted(record)]
    gates = [gate[: len(gate) - model.frames.silence] for gate in gates]
    gates = [
        gate[: round(len(gate) * int(lengths[0]) / h.shape[1])] for gate in gates
    ]  # the rest is a fixed window's padding
    heard = WhisperFeatureExtractor()(window, sampling_rate=RATE, padding="do_not_pad", truncation=False)
    return gates, np.asarray(heard["input_features"][0]), model.steering.scales.detach().tolist()


@torch.inference_mode()
def words_of(ears: Ears, samples: np.ndarray) -> list[Word]:
    """The words that the lexical projector reads in the first window of ``samples``, from the first frame of each to the last, its
    marks among them; [] for another projector, which reads none."""
    model, projector = ears.model, ears.model.projector
    if not isinstance(projector, LexicalProjector):
        return []
    inputs = ears.processor.features([samples[: int(model.frames.window * RATE)]])
    features, lengths = (inputs[key].to(model.device) for key in ("input_features", "feature_lengths"))
    (read,) = projector(*model.encode(features, lengths)).likeliest or []
    second, decode = model.frames.rate / projector.kernel, ears.processor.tokenizer.decode
    words = by_words(read, ears.processor.tokenizer)
    return [Word(w[0][0] / second, w[-1][1] / second, decode([token for *_, token in w]).strip()) for w in words]


def seen(ears: Ears, samples: np.ndarray, frames: int = 240) -> dict[str, Any]:
    """For a page to draw, of the first window of ``samples``: ``seconds``, ``words`` [start, end, text], ``mel`` (frames, bands)
    and ``gates`` (frames, experts) of each of ``layers``, 1 the first, with its scale. Both are thinned to ``frames`` at
    most and told in whole numbers to 255, gates on a square-root scale that ends at ``largest``.
    """
    gates, mel, scales = gates_of(ears, samples)
    largest = max((float(gate.max()) for gate in gates), default=1.0)
    low = max(float(mel.max()) - 2.0, float(mel.min())) if mel.size else 0.0  # as in ``plot_gates``
    grey = (mel.T - low) / max(float(mel.max()) - low, 1e-6) if mel.size else mel
    return {
        "seconds": round(min(len(samples) / RATE, ears.model.frames.window), 3),
        "words": [[round(start, 2), round(end, 2), word] for start, end, word in words_of(ears, samples)],
        "mel": _thinned(grey, frames),
        "largest": round(largest, 4),
        "layers": [
            {"layer": layer + 1, "scale": round(scale, 4), "gates": _thinned(np.sqrt(gate / largest), frames)}
            for layer, scale, gate in zip(ears.model.steered_layers, scales, gates, strict=False)
        ],
    }


def _thinned(rows: np.ndarray, most: int) -> list[list[int]]:
    """Rows (T, N) of 0 to 1 -> the means of ``most`` stretches of them, 0 to 255."""
    if not rows.size:
        return []
    means = [part.mean(axis=0) for part in np.array_split(rows, min(most, len(rows)))]
    return np.round(np.stack(means).clip(0, 1) * 255).astype(int).tolist()  # type: ignore[no-any-return]


def picture(ears: Ears, samples: np.ndarray, title: str = "", dark: bool = False) -> bytes:
    """PNG: the spectrogram, the words that are read in it and, below them, every steered layer's gates."""
    gates, mel, scales = gates_of(ears, samples)
    layers, words = ears.model.steered_layers, words_of(ears, samples)
    seconds = min(len(samples) / RATE, ears.model.frames.window)
    rate = (
        len(gates[0]) / seconds if gates else ears.model.frames.rate
    )  # layers may be faster than what leaves the encoder
    return plot_gates(gates, mel, scales, title, words=words, layers=layers, frame_rate=rate, dark=dark)


def inspect(adapter: str, audio: str | None = None, out: Path | None = None) -> dict[str, Any]:
    """For the command line: counts, and with ``audio`` routing statistics; ``out`` takes the picture."""
    samples = decode(Path(audio)) if audio is not None else None  # complain before the models are loaded
    if out is not None and audio is None:
        raise UsageError(f"--out {out}: a picture needs an audio file to hear")
    ears = load(adapter)
    if audio is not None and ears.model.steering is None:
        raise UsageError(f"{audio}: {adapter} has no steering, so nothing routes what it hears; leave out the audio")
    counts = parameters(ears)
    trained = sum(n for name, n in counts.items() if not name.startswith("frozen"))
    lines = [f"{name:24}{count:>14,}" for name, count in counts.items()]
    lines.append(f"{'trained in all':24}{trained:>14,}  ({4 * trained / 1e6:.1f} MB)")
    value: dict[str, Any] = {"adapter": adapter, "parameters": counts, "trained": trained}
    if ears.model.steering is not None:
        value["scales"] = [round(s, 4) for s in ears.model.steering.scales.detach().tolist()]
        lines.append("layer scales            " + " ".join(f"{s:.3f}" for s in value["scales"]))
    if samples is not None and ears.model.steering is not None:
        gates, _, _ = gates_of(ears, samples)
        value["routing"] = routing_statistics(gates)
        value["seconds"], value["of"] = (round(min(s, len(samples) / RATE), 3) for s in (ears.model.frames.window, 1e9))
        if value["seconds"] < value["of"]:
            lines.append(f"routing of the first {value['seconds']:g} s of {value['of']:.1f} s, the encoder's window")
        routing, layers = value["routing"], ears.model.steered_layers
        value["words"] = [[round(start, 2), round(end, 2), word] for start, end, word in words_of(ears, samples)]
        lines.append("read, without the LLM: " + " ".join(word for _, _, word in value["words"]))
        for layer, shares_of, entropy in zip(layers, routing["usage"], routing["entropy_fraction"], strict=True):
            shares = " ".join(f"{share:.2f}" for share in shares_of)
            lines.append(f"layer {layer + 1}: mean gates {shares}; entropy {entropy:.2f} (0: one expert, 1: all alike)")
        if out is not None:
            usage = out.with_name(f"{out.stem}-usage{out.suffix}")
            drawn = {
                out: picture(ears, samples, title=Path(str(audio)).name),
                usage: plot_usage(routing, layers=layers),
            }
            for path, content in drawn.items():
                scratch = path.with_name(f".{path.name}.part")
                scratch.write_bytes(content)
                os.replace(scratch, path)
            lines.append(f"pictures: {out} (gates over time), {usage} (experts' use)")
            value["picture"], value["usage_picture"] = str(out), str(usage)
    value["text"] = "\n".join(lines)
    return value


def inspect_pair(encoder: str, llm: str) -> dict[str, Any]:
    """What would be steered between two models, before anything is trained; of the LLM its shapes alone are looked at.

    Audio tokens are those of the default pooling (a lexical projector gives one a spoken token, so fewer). Memory is that of
    weights as they would be loaded here, and of the adapter with gradients and AdamW's moments.
    """
    from .hearing import load_frames
    from .model import SteerMoEForConditionalGeneration
    from .pretrained import auto_dtype
    from .pretrained.load import outline_llm

    outline = outline_llm(llm)
    frames = load_frames(SteerMoEConfig(encoder=encoder, llm=llm))
    names = {module: name for name, module in frames.encoder.named_modules()}
    where, kind = names[frames.layers[0]].rpartition(".")[0], type(frames.layers[0]).__name__
    trained: dict[str, int] = {}
    for projector in ("lexical", "linear", "mlp"):
        config = SteerMoEConfig(encoder=encoder, llm=llm, projector=projector)  # type: ignore[arg-type]
        model = SteerMoEForConditionalGeneration(config, frames, outline)
        if model.attached is not None:
            model.attached.remove()
        counts = {name: tensor.numel() for name, tensor in model.adapter_state().items()}
        trained["steering"] = sum(n for name, n in counts.items() if name.startswith("steering."))
        trained[projector] = sum(counts.values()) - trained["steering"]
    table = outline.get_input_embeddings().weight
    bytes_each = torch.finfo(auto_dtype("cuda" if torch.cuda.is_available() else "cpu")).bits // 8
    frozen = {"encoder": frames.encoder, "llm": outline}
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in frozen.items()}
    adapter = trained["steering"] + trained["lexical"]
    memory = {name: bytes_each * count for name, count in sizes.items()} | {"adapter in training": 16 * adapter}
    value: dict[str, Any] = {
        "encoder": encoder,
        "llm": llm,
        "layers": len(frames.layers),
        "layers_at": where,
        "width": frames.width,
        "frames_a_second": frames.rate,
        "audio_tokens_a_second": frames.rate / model.projector.kernel,
        "window": frames.window,
        "batches_padded": frames.pads,
        "llm_width": table.shape[1],
        "vocabulary": table.shape[0],
        "frozen": sizes,
        "trained": trained,
        "bytes": memory,
    }
    padding = "padded to the longest clip" if value["batches_padded"] else "of equal lengths (padding would be heard)"
    experts = config.num_experts
    value["text"] = "\n".join(
        [
            f"encoder   {encoder}: {sizes['encoder']:,} parameters, frozen",
            f"steered   {len(frames.layers)} x {kind} at {where or 'its top'}, width {frames.width} (steer_layers chooses some)",
            f"frames    {frames.rate:g} a second, windows of up to {frames.window:g} s, batches {padding}",
            f"tokens    {value['audio_tokens_a_second']:g} a second into the LLM; lexical: one a spoken token",
            f"LLM       {llm}: {sizes['llm']:,} parameters, frozen; width {table.shape[1]}, {table.shape[0]:,} tokens",
            f"trained   {trained['steering']:,} of steering ({experts} experts a layer) and {trained['lexical']:,} (lexical), "
            f"{trained['linear']:,} (linear) or {trained['mlp']:,} (mlp) of projector",
            "memory    " + ", ".join(f"{name} {count / 1e6:,.0f} MB" for name, count in memory.items()),
        ]
    )
    return value
