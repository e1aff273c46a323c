"""The paper authors' checkpoints become adapters: the same numbers, without reading what was frozen."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steermoe.adapter import CONFIG, TENSORS
from steermoe.cli import main
from steermoe.convert import ENCODERS, LLMS, convert, identify
from steermoe.encoders.attach import hidden
from steermoe.encoders.fireredasr import FireRedConfig, FireRedEncoder
from steermoe.errors import AdapterError
from steermoe.inference.ears import load
from steermoe.pretrained import load_encoder, load_llm

Tensors = dict[str, Tensor]
Speech = Callable[..., np.ndarray]
N = 3  # experts


def checkpoint(encoder: str, llm: str, kind: str = "whisper", layers: int = 2) -> Tensors:
    """As the authors' code names it: the frozen pair in float32 and random trained tensors."""
    plain, end = load_encoder(encoder, torch.float32), kind.split("-")[-1]
    inside = "speech_encoder." if kind.startswith("linear") else "original_encoder.speech_encoder."
    frozen = {f"{end}_encoder.{inside}{k}": v for k, v in plain.state_dict().items()}
    frozen |= {f"llm_decoder.{k}": v for k, v in load_llm(llm, torch.float32).state_dict().items()}
    width, generator = 32, torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"prompt_proj.weight": (48, width), "prompt_proj.bias": (48,)}
    if not kind.startswith("linear"):
        shapes |= {
            f"{end}_encoder.steering_vectors": (layers, N, width),
            f"{end}_encoder.router.weight": (layers * N, width),
            f"{end}_encoder.router.bias": (layers * N,),
            f"{end}_encoder.layer_scales": (layers,),
        }
    trained = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {k: v.contiguous().clone() for k, v in (frozen | trained).items()}


@pytest.fixture(scope="module")
def tensors(pair: Any) -> Tensors:
    """Of the tiny Whisper and the tiny Llama; shared: copy before a change."""
    return checkpoint(pair.encoder, pair.llm)


@pytest.fixture(scope="module")
def file(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "pytorch_model.bin"
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def conformer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random FireRedASR-AED encoder, as pretrained/ converts the published files."""
    folder = tmp_path_factory.mktemp("conformer")
    torch.manual_seed(0)
    dims = {"idim": 80, "n_layers_enc": 2, "n_head": 4, "d_model": 32, "kernel_size": 7, "pe_maxlen": 800}
    save_file(FireRedEncoder(FireRedConfig(**dims)).state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "fireredasr", **dims}))
    cmvn = {"mean": [-4.0] * 80, "inverse_std": [0.25] * 80}
    (folder / "preprocessor_config.json").write_text(json.dumps(cmvn))
    return str(folder)


def written(out: Path) -> Tensors:
    return load_file(out / TENSORS)


# The authors' method in NumPy; torch runs only the encoder's own layers.


def heard(tensors: Tensors, end: str, encoder: Any, inputs: dict[str, Any], kernel: int, pooling: str) -> np.ndarray:
    """One clip's features -> audio tokens (S, D_llm): layer, steer; zeros to the right; pool; Whisper's norm; project."""
    own = {k.removeprefix(f"{end}_encoder."): v.double().numpy() for k, v in tensors.items()}
    last: list[np.ndarray] = []

    def steer(layer: int, output: Any) -> Any:
        h = hidden(output)[0].double().numpy()  # (T, D)
        logits = h @ own["router.weight"].T + own["router.bias"]  # (T, L N): all layers', then sliced
        logits = logits[:, layer * N : (layer + 1) * N]
        gates = np.exp(logits - logits.max(1, keepdims=True))
        gates /= gates.sum(1, keepdims=True)
        h = h + own["layer_scales"][layer] * (gates @ own["steering_vectors"][layer])
        last[:] = [h]
        steered = torch.from_numpy(h).float()[None]
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    layers = encoder.layers if end == "whisper" else encoder.layer_stack
    handles = [
        layer.register_forward_hook(lambda _, __, output, i=i: steer(i, output)) for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        encoder(**inputs)
    [handle.remove() for handle in handles]
    h = np.pad(last[0], ((0, -len(last[0]) % kernel), (0, 0)))
    groups = h.reshape(-1, kernel, h.shape[1])
    h = groups.max(1) if pooling == "max" else groups.mean(1)
    if end == "whisper":
        norm = "original_encoder.speech_encoder.layer_norm"
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        h = h * own[f"{norm}.weight"] + own[f"{norm}.bias"]
    return h @ own["prompt_proj.weight"].T + own["prompt_proj.bias"]


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("seconds", [30.0, 3.0])
def test_whisper_hears_what_the_reference_hears(
    tensors: Tensors, file: Path, pair: Any, speech: Speech, tmp_path: Path, pooling: str, seconds: float
) -> None:
    convert(file, tmp_path, pair.encoder, pair.llm, pooling)
    ears, clip = load(tmp_path, dtype=torch.float32), speech(seconds)
    with torch.no_grad():
        (audio,) = ears.model.hear(**ears.processor.features([clip]))
    mel = ears.model.frames.extractor(clip, sampling_rate=16_000, return_tensors="pt")  # padded to 30 s
    plain = load_encoder(pair.encoder, torch.float32)
    wanted = heard(tensors, "whisper", plain, {"input_features": mel["input_features"]}, 4, pooling)
    assert audio.shape == (375, 48) and wanted.std() > 0.5
    np.testing.assert_allclose(audio.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_conformer_hears_what_the_reference_hears(
    conformer: str, pair: Any, speech: Speech, tmp_path: Path, pooling: str
) -> None:
    tensors = checkpoint(conformer, pair.llm, "conformer")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    convert(tmp_path, tmp_path / "out", conformer, pair.llm, pooling)
    ears, plain = load(tmp_path / "out", dtype=torch.float32), load_encoder(conformer, torch.float32)
    seen = set()
    for seconds in (0.62, 0.64):
        clip = speech(seconds)
        with torch.no_grad():
            (audio,) = ears.model.hear(**ears.processor.features([clip]))
        inputs = dict(ears.model.frames.extractor(clip, sampling_rate=16_000, return_tensors="pt"))
        frames = -(-inputs["input_features"].shape[1] // 4)
        wanted = heard(tensors, "conformer", plain, {"input_features": inputs["input_features"]}, 2, pooling)
        assert len(audio) == len(wanted) == -(-frames // 2)
        full = frames // 2  # in the last group of an odd clip the reference pools a zero too
        np.testing.assert_allclose(audio[:full].numpy(), wanted[:full], rtol=1e-4, atol=1e-4)
        assert full == len(wanted) or not np.allclose(audio[full].numpy(), wanted[full], atol=1e-2)
        seen.add(frames % 2)
    assert seen == {0, 1}


def test_the_linear_baseline_projects_every_frame(conformer: str, pair: Any, speech: Speech, tmp_path: Path) -> None:
    torch.save(tensors := checkpoint(conformer, pair.llm, "linear-conformer"), tmp_path / "model.bin")
    found = convert(tmp_path / "model.bin", tmp_path / "out", conformer, pair.llm)
    assert (found["kind"], found["layers"], found["experts"]) == ("linear-conformer", 0, 0)
    assert found["parameters"] == 48 * 33 and found["compared"]["encoder"] > 0
    ears, plain = load(tmp_path / "out", dtype=torch.float32), load_encoder(conformer, torch.float32)
    inputs = ears.processor.features([speech(0.7)])
    with torch.no_grad():
        (audio,) = ears.model.hear(**inputs)
        h = plain(input_features=inputs["input_features"]).last_hidden_state[0]
    wanted = h.numpy() @ tensors["prompt_proj.weight"].numpy().T + tensors["prompt_proj.bias"].numpy()
    np.testing.assert_allclose(audio.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_every_router_row_serves_its_layer(tensors: Tensors, pair: Any, speech: Speech, tmp_path: Path) -> None:
    changed = {**tensors, "whisper_encoder.router.bias": torch.zeros(2 * N)}
    changed["whisper_encoder.router.bias"][[1, N + 2]] = 1000.0  # layer 0's expert 1, layer 1's expert 2
    torch.save(changed, tmp_path / "pytorch_model.bin")
    convert(tmp_path, tmp_path / "out", pair.encoder, pair.llm)
    ears = load(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad(), ears.model.steering.recording() as gates:
        ears.model.hear(**ears.processor.features([speech(0.5)]))
    assert {layer: set(g.argmax(-1).flatten().tolist()) for layer, g in gates.items()} == {0: {1}, 1: {2}}


def test_what_is_written(tensors: Tensors, file: Path, pair: Any, tmp_path: Path) -> None:
    found = convert(file, tmp_path, pair.encoder, pair.llm)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, TENSORS]
    own, end = written(tmp_path), "whisper_encoder."
    names = {
        "steering.vectors": f"{end}steering_vectors", "steering.router.weight": f"{end}router.weight",
        "steering.router.bias": f"{end}router.bias", "steering.scales": f"{end}layer_scales",
        "projector.proj.weight": "prompt_proj.weight", "projector.proj.bias": "prompt_proj.bias",
    }  # fmt: skip
    assert own.keys() == names.keys() and all(torch.equal(own[k], tensors[v]) for k, v in names.items())
    assert found["parameters"] == sum(t.numel() for t in own.values())
    assert found["compared"] == {"encoder": 5, "llm": 5}  # two a layer and the last
    content = json.loads((tmp_path / CONFIG).read_text())
    told = {
        "projector": "linear", "pooling": "max", "kernel": 4, "pool_before_norm": True, "pad_to_window": True,
        "prompt_mode": "raw", "instruction": "please transcribe the audio content into text: ", "num_experts": N,
    }  # fmt: skip
    assert told.items() <= content["config"].items()
    assert content["trained"] == {"converted": "whisper", "file": "pytorch_model.bin"}
    assert content["shapes"] == {"encoder_layers": 2, "encoder_width": 32, "llm_width": 48, "vocabulary": 300}


def test_another_adapter_there_is_replaced(file: Path, pair: Any, ears: Any, tmp_path: Path) -> None:
    ears.model.save_adapter(tmp_path)
    convert(file, tmp_path, pair.encoder, pair.llm)
    assert load(tmp_path, dtype=torch.float32).config.projector == "linear"


def test_half_precision_is_widened(tensors: Tensors, pair: Any, tmp_path: Path) -> None:
    torch.save({k: v.bfloat16() for k, v in tensors.items()}, tmp_path / "pytorch_model.bin")
    convert(tmp_path, tmp_path / "out", pair.encoder, pair.llm)
    scales = written(tmp_path / "out")["steering.scales"]
    assert scales.dtype == torch.float32
    assert torch.equal(scales, tensors["whisper_encoder.layer_scales"].bfloat16().float())


@pytest.mark.parametrize("how", ["folder", "safetensors", "bin shards", "safetensors shards"])
def test_every_form_of_checkpoint(tensors: Tensors, file: Path, pair: Any, tmp_path: Path, how: str) -> None:
    source, names = tmp_path / "source", sorted(tensors)
    source.mkdir()
    given = source
    if how == "folder":
        torch.save(tensors, source / "pytorch_model.bin")
    elif how == "safetensors":
        save_file(tensors, given := source / "theirs.safetensors")
    else:
        whole = "pytorch_model.bin" if how == "bin shards" else "model.safetensors"
        stem, kind = whole.split(".")
        where = {name: f"{stem}-0000{1 + i % 3}-of-00003.{kind}" for i, name in enumerate(names)}
        for shard in set(where.values()):
            part = {k: v for k, v in tensors.items() if where[k] == shard}
            torch.save(part, source / shard) if kind == "bin" else save_file(part, source / shard)
        (source / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    convert(given, tmp_path / "out", pair.encoder, pair.llm)
    convert(file, tmp_path / "same", pair.encoder, pair.llm)
    own, same = written(tmp_path / "out"), written(tmp_path / "same")
    assert own.keys() == same.keys() and all(torch.equal(own[k], same[k]) for k in own)


@pytest.mark.parametrize(
    ("kind", "layers", "llm_width", "count"),
    [
        ("whisper", 32, 3584, 5_246_752),
        ("conformer", 16, 3584, 4_918_928),
        ("conformer", 16, 2048, 2_951_312),
        ("linear-conformer", 0, 3584, 4_591_104),
    ],
)
def test_the_paper_s_sizes(kind: str, layers: int, llm_width: int, count: int) -> None:
    end = f"{kind.split('-')[-1]}_encoder."
    with torch.device("meta"):
        tensors = {"prompt_proj.weight": torch.empty(llm_width, 1280), "prompt_proj.bias": torch.empty(llm_width)}
        if layers:
            tensors |= {
                f"{end}steering_vectors": torch.empty(layers, 8, 1280), f"{end}layer_scales": torch.empty(layers),
                f"{end}router.weight": torch.empty(layers * 8, 1280), f"{end}router.bias": torch.empty(layers * 8),
            }  # fmt: skip
        else:
            tensors[f"{end}speech_encoder.layer_stack.0.layer_norm.weight"] = torch.empty(1280)
    found = identify(tensors, "theirs")
    assert found.kind == kind and sum(tensor.numel() for tensor in found.tensors.values()) == count
    assert list(found.dimensions.values()) == [layers, 8 if layers else 0, 1280, llm_width]
    assert ("large-v3@" in ENCODERS.get((kind, layers, 1280), "")) == (kind == "whisper")
    assert LLMS[llm_width].startswith({3584: "Qwen/Qwen2.5-7B-Instruct@", 2048: "Qwen/Qwen2.5-3B-Instruct@"}[llm_width])


GIGABYTES = 3  # of frozen weights: a hole in the file, so that it takes no room on the disk
PEAK = """
import sys
from steermoe.convert import convert
convert(*sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def hollow_bin(tensors: Tensors, path: Path) -> None:
    frozen = torch.empty(GIGABYTES << 28)
    with torch.serialization.skip_data():
        torch.save({**tensors, "llm_decoder.frozen.weight": frozen}, path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        for name, place in torch.load(path, mmap=True, weights_only=True).items():
            if name in tensors:
                place.copy_(tensors[name])


def hollow_safetensors(tensors: Tensors, path: Path) -> None:
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    end = offset + (GIGABYTES << 30)
    header["llm_decoder.frozen.weight"] = {"dtype": "F32", "shape": [GIGABYTES << 28], "data_offsets": [offset, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stream.write(tensor.numpy().tobytes())
        stream.truncate(8 + len(text) + end)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_what_was_frozen_is_never_read(tensors: Tensors, pair: Any, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"hollow.{kind}"
    {"bin": hollow_bin, "safetensors": hollow_safetensors}[kind](tensors, path)
    assert path.stat().st_size > GIGABYTES << 30
    argv = [sys.executable, "-c", PEAK, path, tmp_path / "out", pair.encoder, pair.llm]
    peak = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[-1]) / 2**20
    assert torch.equal(written(tmp_path / "out")["steering.scales"], tensors["whisper_encoder.layer_scales"])
    assert peak < GIGABYTES / 2  # Python, torch and transformers take about 0.6 GB


# Errors: one line, and nothing is written.


class Trap:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("sprung",)


WRONG = ("code", "list", "other", "lacks", "shapes", "flat", "layers", "llm_width", "conformer",
         "encoder_weights", "llm_weights")  # fmt: skip


def change(tensors: Tensors, how: str) -> Any:
    """A checkpoint that is wrong in one way."""
    end, changed = "whisper_encoder.", dict(tensors)
    match how:
        case "code":
            changed["whisper_encoder.trap"] = Trap()  # type: ignore[assignment]
        case "list":
            return list(tensors.values())
        case "other":
            return {"model.embed_tokens.weight": torch.zeros(4, 4)}
        case "lacks":
            del changed[f"{end}layer_scales"], changed["prompt_proj.bias"]
        case "shapes":
            changed[f"{end}router.weight"] = torch.zeros(5, 32)
        case "flat":
            changed["prompt_proj.weight"] = torch.zeros(48)
        case "layers":
            for name, shape in (("steering_vectors", (4, N, 32)), ("router.weight", (4 * N, 32))):
                changed[end + name] = torch.zeros(shape)
            changed[f"{end}router.bias"], changed[f"{end}layer_scales"] = torch.zeros(4 * N), torch.zeros(4)
        case "llm_width":
            changed["prompt_proj.weight"], changed["prompt_proj.bias"] = torch.zeros(50, 32), torch.zeros(50)
        case "conformer":
            return {k.replace("whisper", "conformer"): v for k, v in tensors.items()}
        case "encoder_weights":
            changed[f"{end}original_encoder.speech_encoder.layers.1.final_layer_norm.weight"] = torch.full((32,), 1.02)
        case "llm_weights":
            changed["llm_decoder.model.norm.weight"] = torch.full((48,), 0.98)
    return changed


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("convert", 2, "REFERENCE_CKPT, OUT"),
        ("convert {good} {out} --pooling sum", 2, "invalid choice: 'sum'"),
        ("convert {tmp}/absent.bin {out} {pair}", 1, "absent.bin: no such file"),
        (
            "convert {tmp}/empty {out} {pair}",
            1,
            "empty: no checkpoint in this folder; it would be one of pytorch_model",
        ),
        ("convert {tmp}/text.bin {out} {pair}", 1, "text.bin: not what torch.save writes since 1.6, or cut short"),
        ("convert {tmp}/text.safetensors {out} {pair}", 1, "text.safetensors: cannot be read"),
        ("convert {tmp}/cut.bin {out} {pair}", 1, "cut.bin: not what torch.save writes since 1.6, or cut short"),
        ("convert {tmp}/old.bin {out} {pair}", 1, "old.bin: not what torch.save writes since 1.6, or cut short; give"),
        ("convert {tmp}/a.index.json {out} {pair}", 1, "a.index.json: not an index of shards"),
        ("convert {tmp}/b.index.json {out} {pair}", 1, "gone.bin: named by b.index.json, but absent"),
        ("convert {code} {out} {pair}", 1, "refused, holds pickled code or is broken; only tensors are read"),
        ("convert {list} {out} {pair}", 1, "holds a list, not a state dict"),
        (
            "convert {other} {out} {pair}",
            1,
            "it lacks whisper_encoder.steering_vectors, whisper_encoder.router.weight,",
        ),
        ("convert {lacks} {out} {pair}", 1, "it lacks whisper_encoder.layer_scales, prompt_proj.bias"),
        ("convert {shapes} {out} {pair}", 1, "do not agree: whisper_encoder.router.weight (5, 32), width 32"),
        ("convert {flat} {out} {pair}", 1, "do not agree: whisper_encoder.steering_vectors (2, 3, 32)"),
        (
            "convert {good} {out}",
            2,
            "--encoder: 2 layers of width 32 (whisper) tell no known one; name a folder or org/",
        ),
        (
            "convert {good} {out} --encoder {encoder}",
            2,
            "--llm: a width of 48 tells no known one; name a folder or org/",
        ),
        (
            "convert {good} {out} --encoder openai/whisper-large-v3 --llm {llm}",
            2,
            "give openai/whisper-large-v3@<the 40",
        ),
        (
            "convert {good} {out} --encoder {encoder} --llm Qwen/Qwen2.5-7B",
            2,
            "give Qwen/Qwen2.5-7B@<the 40 hex digits",
        ),
        (
            "convert {layers} {out} {pair}",
            2,
            "encoder: 2 layers of width 32, but {layers} was trained on 4 layers of width 32",
        ),
        ("convert {llm_width} {out} {pair}", 2, "llm: embeddings of width 48, but {llm_width} projects to 50"),
        ("convert {conformer} {out} {pair}", 2, "{conformer} was trained with a conformer encoder"),
        (
            "convert {encoder_weights} {out} {pair}",
            2,
            "its layers.1.final_layer_norm.weight is not that of {encoder_weights}",
        ),
        (
            "convert {llm_weights} {out} {pair}",
            2,
            "its model.norm.weight is not that of {llm_weights}, which has",
        ),
        ("convert {good} {good} {pair}", 1, "cannot save the adapter in"),
    ],
)
def test_errors(
    tensors: Tensors, file: Path, pair: Any, tmp_path: Path, capsys: Any, monkeypatch: Any,
    argv: str, code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("text.bin", "text.safetensors"):
        (tmp_path / name).write_text("not tensors at all")
    (tmp_path / "a.index.json").write_text("[]")
    (tmp_path / "b.index.json").write_text('{"weight_map": {"prompt_proj.bias": "gone.bin"}}')
    content = file.read_bytes()
    (tmp_path / "cut.bin").write_bytes(content[: len(content) // 2])
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    places = {"tmp": tmp_path, "good": file, "out": tmp_path / "out", "encoder": pair.encoder, "llm": pair.llm}
    for how in WRONG:
        places[how] = tmp_path / f"{how}.bin"
        if f"convert {{{how}}} " in argv:
            torch.save(change(tensors, how), places[how])
    words = argv.replace("{pair}", "--encoder {encoder} --llm {llm}").split()
    got = main([word.format(**places) for word in words])
    said = capsys.readouterr()
    assert got == code and said.out == "" and "Traceback" not in said.err
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and message.format(**places) in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "sprung").exists()


def test_the_trap_would_spring(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), tmp_path / "code.bin")
    torch.load(tmp_path / "code.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_command(file: Path, pair: Any, tmp_path: Path, capsys: Any, as_json: bool) -> None:
    out = tmp_path / "out"
    argv = ["convert", file, out, "--encoder", pair.encoder, "--llm", pair.llm, *(["--json"] if as_json else [])]
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 0 and (out / TENSORS).is_file()
    lines = capsys.readouterr().out.splitlines()
    if as_json:
        value = json.loads(lines[-1])
        assert len(lines) == 1 and value["adapter"] == str(out) and value["parameters"] == 1_976
    else:
        assert lines == [
            "whisper: 2 layers, 3 experts, width 32, LLM width 48, 1,976 parameters",
            f"encoder: {pair.encoder} (5 LayerNorms compared, equal)",
            f"llm: {pair.llm} (5 LayerNorms compared, equal)",
            f"adapter: {out}",
        ]


def test_without_frozen_weights_nothing_is_compared(tensors: Tensors, pair: Any, tmp_path: Path) -> None:
    kept = {k: v for k, v in tensors.items() if not k.startswith("llm_decoder.") and "original_encoder" not in k}
    torch.save(kept, tmp_path / "kept.bin")
    assert convert(tmp_path / "kept.bin", tmp_path, pair.encoder, pair.llm)["compared"] == {"encoder": 0, "llm": 0}


def test_a_conformer_s_names_are_told() -> None:
    some = ["prompt_proj.weight", *(f"conformer_encoder.{k}" for k in ("steering_vectors", "router.weight"))]
    missing = r"lacks conformer_encoder.router.bias, conformer_encoder.layer_scales, prompt_proj.bias"
    with pytest.raises(AdapterError, match=missing):
        identify({name: torch.zeros(1) for name in some}, "theirs")
