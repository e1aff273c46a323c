"""A CTranslate2 Whisper (``model.bin``, version 6) -> a plain transformers folder, with numpy alone.

The file is a list of named arrays, all little-endian: u32 version; string spec; u32 revision; u32 number of
variables, each string name, u8 rank, u32 dims, u8 dtype, u32 bytes, data; u32 number of aliases, two strings
each. A string is u16 length (with its final NUL) and bytes. The weights are those of the original, in its order;
only q, k and v are stacked. They are copied bit for bit, in the dtype they have.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FetchError

VERSION, SPEC = 6, "WhisperSpec"
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
# How the decoder is built, in CTranslate2 numbers (activation 3 is GELU); another value is another architecture.
SWITCHES = {"pre_norm": 1, "alibi": 0, "activation": 3, "scale_embeddings": 0, "start_from_zero_embedding": 0}
SAMPLING_RATE, HOP, N_FFT, WINDOW_SECONDS = 16_000, 160, 400, 30
TIMESTAMPS = 1501  # <|0.00|> to <|30.00|>, the last ids of the vocabulary


class _Reader:
    """Takes fields off a byte buffer; running over its end is an error that names the file."""

    def __init__(self, file: Path):
        self.file, self.at = file, 0
        if file.stat().st_size == 0:  # cannot be mapped
            raise FetchError(f"{file}: empty, not a CTranslate2 model")
        self.data = np.memmap(file, dtype=np.uint8, mode="r")

    def bytes(self, count: int) -> np.ndarray:
        if self.at + count > len(self.data):
            raise FetchError(f"{self.file}: truncated: byte {self.at + count} is needed, it has {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")).tobytes())[0])

    def string(self) -> str:
        raw = self.bytes(self.number("H")).tobytes()
        if not raw.endswith(b"\0") or not raw.isascii():
            raise FetchError(f"{self.file}: no text at byte {self.at - len(raw)}: a foreign or broken file")
        return raw[:-1].decode()


def read_ct2(file: Path) -> dict[str, np.ndarray]:
    """``{name: array}`` of a Whisper in CTranslate2's format; the arrays are views of the mapped file.

    Raises FetchError for a foreign, truncated or broken file.
    """
    reader = _Reader(file)
    if (version := reader.number("I")) != VERSION:
        raise FetchError(f"{file}: not a CTranslate2 model of version {VERSION} (its first number is {version})")
    if (spec := reader.string()) != SPEC:
        raise FetchError(f"{file}: a CTranslate2 {spec}, not a {SPEC}")
    reader.number("I")  # the spec's revision: what differs between them is checked by name below
    arrays: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = tuple(reader.number("I") for _ in range(reader.number("B")))
        code, size = reader.number("B"), reader.number("I")
        if code not in DTYPES or name in arrays:
            raise FetchError(f"{file}: variable {name}: unknown type {code} or repeated name")
        dtype = np.dtype(DTYPES[code])
        if size != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise FetchError(f"{file}: variable {name}: {size} bytes cannot be {dtype} {shape}")
        arrays[name] = reader.bytes(size).view(dtype).reshape(shape)
    for _ in range(reader.number("I")):
        alias, name = reader.string(), reader.string()
        if name not in arrays:
            raise FetchError(f"{file}: alias {alias} of {name}, which is not there")
        arrays.setdefault(alias, arrays[name])
    if reader.at != len(reader.data):
        raise FetchError(f"{file}: {len(reader.data) - reader.at} bytes too many at its end")
    return arrays


def convert_whisper(model: Path, config: Path, tokenizer: Path, target: Path) -> None:
    """Write the existing folder ``target`` that transformers loads as WhisperForConditionalGeneration.

    ``model`` is CTranslate2's ``model.bin``, ``config`` and ``tokenizer`` the JSON files beside it. Raises
    FetchError if a weight is absent, quantised or left over.
    """
    from safetensors.numpy import save_file

    arrays = read_ct2(model)
    try:
        heads = {side: int(arrays.pop(f"{side}/num_heads")) for side in ("encoder", "decoder")}
        switches = {key: int(arrays.pop(f"decoder/{key}")) for key in SWITCHES}
        if switches != SWITCHES:
            raise FetchError(f"{model}: {switches}: not the Whisper that transformers has")
        tensors = dict(_weights(arrays))
    except KeyError as error:
        raise FetchError(f"{model}: lacks the variable {error.args[0]}") from None
    except ValueError as error:
        raise FetchError(f"{model}: its shapes are not Whisper's: {error}") from None
    for name, array in tensors.items():
        if array.dtype not in (np.float16, np.float32):
            raise FetchError(f"{model}: {name} is {array.dtype}: only unquantised weights can be converted")
    if left := sorted(name for name, array in arrays.items() if array.ndim):
        raise FetchError(f"{model}: {left[0]} has no place in Whisper ({len(left)} variables left over)")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    vocab = len(tensors["model.decoder.embed_tokens.weight"])
    ids = _write_tokenizer(json.loads(tokenizer.read_text(encoding="utf-8")), target, vocab)
    _write(target / "config.json", _config(tensors, heads, ids))
    _write(target / "generation_config.json", _generation_config(json.loads(config.read_text()), ids))
    _write(target / "preprocessor_config.json", _preprocessor_config(tensors))


def _weights(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """CTranslate2's weights under transformers' names; each is taken out of ``arrays``."""

    def linear(old: str, *new: str) -> Iterator[tuple[str, np.ndarray]]:
        """One linear layer, or several stacked on their output side."""
        for kind in ("weight", "bias"):
            parts = np.split(arrays.pop(f"{old}/{kind}"), len(new))
            for name, part in zip(new, parts, strict=True):
                if kind == "bias" and name.endswith("k_proj"):  # always zero: Whisper's keys have no bias
                    if part.any():
                        raise FetchError(f"{old}/bias: the keys have a bias, which Whisper has no place for")
                else:
                    yield f"{name}.{kind}", part

    def norm(old: str, new: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{new}.weight", arrays.pop(f"{old}/gamma")
        yield f"{new}.bias", arrays.pop(f"{old}/beta")

    def attention(old: str, new: str, crossed: bool) -> Iterator[tuple[str, np.ndarray]]:
        q, k, v = (f"{new}.{letter}_proj" for letter in "qkv")
        stacks = [(q,), (k, v)] if crossed else [(q, k, v)]
        for i, names in enumerate([*stacks, (f"{new}.out_proj",)]):
            yield from linear(f"{old}/linear_{i}", *names)
        yield from norm(f"{old}/layer_norm", f"{new}_layer_norm")

    for side in ("encoder", "decoder"):
        count = 0
        while f"{side}/layer_{count}/ffn/linear_0/weight" in arrays:
            old, new = f"{side}/layer_{count}", f"model.{side}.layers.{count}"
            yield from attention(f"{old}/self_attention", f"{new}.self_attn", crossed=False)
            if side == "decoder":
                yield from attention(f"{old}/attention", f"{new}.encoder_attn", crossed=True)
            yield from norm(f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
            yield from linear(f"{old}/ffn/linear_0", f"{new}.fc1")
            yield from linear(f"{old}/ffn/linear_1", f"{new}.fc2")
            count += 1
        yield from norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        yield f"model.{side}.embed_positions.weight", arrays.pop(f"{side}/position_encodings/encodings")
    for conv in ("conv1", "conv2"):
        yield from linear(f"encoder/{conv}", f"model.encoder.{conv}")
    embedding = arrays.pop("decoder/embeddings/weight")
    if arrays.pop("decoder/projection/weight") is not embedding:
        raise FetchError("decoder/projection/weight: not tied to the embeddings, as Whisper's is")
    yield "model.decoder.embed_tokens.weight", embedding


def _write_tokenizer(tokenizer: dict[str, Any], target: Path, vocab: int) -> dict[str, int]:
    """The tokenizer files; returns the ids of the special tokens by their text.

    CTranslate2's copy leaves out the timestamps, which fill the vocabulary up to its end.
    """
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    first = ids["<|notimestamps|>"] + 1
    if first + TIMESTAMPS != vocab:
        raise FetchError(f"tokenizer.json: {first} tokens and {TIMESTAMPS} timestamps, but the model has {vocab}")
    for i in range(0 if "<|0.00|>" in ids else TIMESTAMPS):
        token = {"id": first + i, "content": f"<|{i * 0.02:.2f}|>", "normalized": False, "special": False}
        tokenizer["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
    _write(target / "tokenizer.json", tokenizer, indent=None)
    end = "<|endoftext|>"
    _write(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "WhisperTokenizer",
            "add_prefix_space": False,
            "errors": "replace",
            "model_max_length": 1024,
            **{f"{kind}_token": end for kind in ("bos", "eos", "pad", "unk")},
        },
    )
    return ids


def _special_ids(ids: dict[str, int]) -> dict[str, int]:
    end = ids["<|endoftext|>"]
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
            "decoder_start_token_id": ids["<|startoftranscript|>"]}  # fmt: skip


def _config(tensors: dict[str, np.ndarray], heads: dict[str, int], ids: dict[str, int]) -> dict[str, Any]:
    def side(name: str) -> dict[str, int]:
        layers = {key.split(".")[3] for key in tensors if key.startswith(f"model.{name}.layers.")}
        width = len(tensors[f"model.{name}.layers.0.fc1.bias"])
        return {f"{name}_layers": len(layers), f"{name}_attention_heads": heads[name], f"{name}_ffn_dim": width}

    embedding = tensors["model.decoder.embed_tokens.weight"]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": str(embedding.dtype),
        "vocab_size": embedding.shape[0],
        "d_model": embedding.shape[1],
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        "num_hidden_layers": side("encoder")["encoder_layers"],
        **side("encoder"),
        **side("decoder"),
        "activation_function": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "is_encoder_decoder": True,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        **_special_ids(ids),
    }


def _generation_config(config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """What Whisper's ``generate`` needs. In the English-only models every special token has an id one lower."""
    result: dict[str, Any] = {
        **_special_ids(ids),
        "is_multilingual": ids["<|endoftext|>"] == 50257,
        "max_length": 448,
        "max_initial_timestamp_index": 50,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": config["suppress_ids"],
        "begin_suppress_tokens": config["suppress_ids_begin"],
        "alignment_heads": config["alignment_heads"],
    }
    if result["is_multilingual"]:
        texts = {number: text for text, number in ids.items()}
        result["lang_to_id"] = {texts[number]: number for number in config["lang_ids"]}
        result["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
        result["task"] = "transcribe"  # else no task token is given and the text goes astray; the language is detected
    return result


def _preprocessor_config(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": tensors["model.encoder.conv1.weight"].shape[1],
        "sampling_rate": SAMPLING_RATE,
        "hop_length": HOP,
        "n_fft": N_FFT,
        "chunk_length": WINDOW_SECONDS,
        "n_samples": WINDOW_SECONDS * SAMPLING_RATE,
        "nb_max_frames": WINDOW_SECONDS * SAMPLING_RATE // HOP,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _write(file: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
