"""The converter on made-up files; test_models.py has the real ones."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe.errors import FetchError
from steermoe.pretrained.ct2 import convert_whisper, read_ct2

WIDTH, MELS, FRAMES, LAYERS, SPECIALS = 8, 4, 10, 2, 107
FIRST_SPECIAL = 20
VOCAB = FIRST_SPECIAL + SPECIALS + 1501


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def ct2_bytes(arrays: dict[str, np.ndarray], spec: str = "WhisperSpec", version: int = 6) -> bytes:
    codes = {"f": 0, "b": 1, "h": 2, "i": 3, "e": 4}
    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", codes[array.dtype.char], array.nbytes) + array.tobytes()
    return out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


def whisper_arrays() -> dict[str, np.ndarray]:
    """A random Whisper of CTranslate2, 2 + 2 layers."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        arrays[name] = random.standard_normal(shape).astype(np.float16)

    def linear(name: str, out: int, into: int = WIDTH) -> None:
        add(f"{name}/weight", out, into)
        add(f"{name}/bias", out)

    def norm(name: str) -> None:
        add(f"{name}/gamma", WIDTH)
        add(f"{name}/beta", WIDTH)

    for side in ("encoder", "decoder"):
        arrays[f"{side}/num_heads"] = np.int16(2).reshape(())
        add(f"{side}/position_encodings/encodings", FRAMES, WIDTH)
        norm(f"{side}/layer_norm")
        for i in range(LAYERS):
            layer = f"{side}/layer_{i}"
            linear(f"{layer}/self_attention/linear_0", 3 * WIDTH)
            arrays[f"{layer}/self_attention/linear_0/bias"][WIDTH : 2 * WIDTH] = 0
            linear(f"{layer}/self_attention/linear_1", WIDTH)
            norm(f"{layer}/self_attention/layer_norm")
            if side == "decoder":
                linear(f"{layer}/attention/linear_0", WIDTH)
                linear(f"{layer}/attention/linear_1", 2 * WIDTH)
                arrays[f"{layer}/attention/linear_1/bias"][:WIDTH] = 0
                linear(f"{layer}/attention/linear_2", WIDTH)
                norm(f"{layer}/attention/layer_norm")
            linear(f"{layer}/ffn/linear_0", 4 * WIDTH)
            linear(f"{layer}/ffn/linear_1", WIDTH, 4 * WIDTH)
            norm(f"{layer}/ffn/layer_norm")
    for conv, into in (("conv1", MELS), ("conv2", WIDTH)):
        add(f"encoder/{conv}/weight", WIDTH, into, 3)
        add(f"encoder/{conv}/bias", WIDTH)
    add("decoder/embeddings/weight", VOCAB, WIDTH)
    for key, value in {"pre_norm": 1, "alibi": 0, "activation": 3, "scale_embeddings": 0}.items():
        arrays[f"decoder/{key}"] = np.int8(value).reshape(())
    arrays["decoder/start_from_zero_embedding"] = np.int8(0).reshape(())
    return arrays


def convert(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|l{i}|>" for i in range(SPECIALS - 8)), "<|translate|>",
                "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"]  # fmt: skip
    tokens = [{"id": FIRST_SPECIAL + i, "content": token, "special": True} for i, token in enumerate(specials)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens, "model": {"type": "BPE"}}))
    config = {"suppress_ids": [1], "suppress_ids_begin": [2], "alignment_heads": [[0, 0]], "lang_ids": [22]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.bin").write_bytes(ct2_bytes(arrays))
    (folder / "out").mkdir()
    convert_whisper(folder / "model.bin", folder / "config.json", folder / "tokenizer.json", folder / "out")
    return folder / "out"


def test_reads_what_was_written(tmp_path: Path) -> None:
    arrays = whisper_arrays()
    (tmp_path / "model.bin").write_bytes(ct2_bytes(arrays))
    read = read_ct2(tmp_path / "model.bin")
    assert read.pop("decoder/projection/weight") is read["decoder/embeddings/weight"]
    assert read.keys() == arrays.keys()
    assert all(read[name].dtype == array.dtype and np.array_equal(read[name], array) for name, array in arrays.items())


def test_converted_folder_loads_with_every_key_matched(tmp_path: Path) -> None:
    import torch
    from transformers import WhisperForConditionalGeneration

    arrays = whisper_arrays()
    out = convert(tmp_path, arrays)
    model, info = WhisperForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.float16 and len(model.model.encoder.layers) == LAYERS
    cross = model.model.decoder.layers[1].encoder_attn
    stacked = arrays["decoder/layer_1/attention/linear_1/weight"]
    assert torch.equal(torch.cat([cross.k_proj.weight, cross.v_proj.weight]), torch.from_numpy(stacked))
    conv = arrays["encoder/conv2/weight"]
    assert torch.equal(model.model.encoder.conv2.weight, torch.from_numpy(conv))


def test_timestamps_fill_the_vocabulary(tmp_path: Path) -> None:
    tokens = json.loads((convert(tmp_path, whisper_arrays()) / "tokenizer.json").read_text())["added_tokens"]
    assert (tokens[-1]["id"], tokens[-1]["content"]) == (VOCAB - 1, "<|30.00|>")
    assert tokens[-1500]["content"] == "<|0.02|>"


@pytest.mark.parametrize("keep", [0, 3, 4, 17, 40, 5000, -1])
def test_truncated(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(ct2_bytes(whisper_arrays())[:keep])
    with pytest.raises(FetchError, match=r"model\.bin: (truncated|empty)"):
        read_ct2(file)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"PK\3\4" + bytes(100), "not a CTranslate2 model of version 6"),
        (ct2_bytes({}, version=5), "version 6"),
        (ct2_bytes({}, spec="TransformerSpec"), "a CTranslate2 TransformerSpec, not a WhisperSpec"),
        (struct.pack("<IH", 6, 4) + b"\xff\xfe\xfd\0", "no text at byte 6"),
        (ct2_bytes({}), "alias decoder/projection/weight of decoder/embeddings/weight, which is not there"),
        (ct2_bytes({"decoder/embeddings/weight": np.ones(2, np.float32)}) + b"x", "1 bytes too many"),
    ],
    ids=["foreign", "version", "spec", "string", "alias", "too long"],
)
def test_foreign(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(FetchError, match=says):
        read_ct2(tmp_path / "model.bin")


def test_a_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    head = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1)
    (tmp_path / "m").write_bytes(head + text("w") + struct.pack("<BIBI", 1, 0xFFFFFFFF, 0, 4) + bytes(8))
    with pytest.raises(FetchError, match="variable w: 4 bytes cannot be float32"):
        read_ct2(tmp_path / "m")


def with_key_bias(arrays: dict[str, Any]) -> None:
    arrays["encoder/layer_0/self_attention/linear_0/bias"][WIDTH] = 1


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda arrays: arrays.pop("encoder/conv1/bias"), "lacks the variable encoder/conv1/bias"),
        (lambda arrays: arrays.pop("decoder/num_heads"), "lacks the variable decoder/num_heads"),
        (lambda arrays: arrays.update(extra=np.ones(2, np.float16)), "extra has no place in Whisper"),
        (lambda arrays: arrays.update({"decoder/activation": np.int8(0).reshape(())}), "'activation': 0"),
        (lambda arrays: arrays.update({"encoder/conv1/bias": np.ones(8, np.int8)}), "only unquantised weights"),
        (with_key_bias, "the keys have a bias"),
    ],
    ids=["absent", "no heads", "left over", "activation", "quantised", "key bias"],
)
def test_another_architecture_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    arrays = whisper_arrays()
    change(arrays)
    with pytest.raises(FetchError, match=says):
        convert(tmp_path, arrays)
