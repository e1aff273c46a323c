"""A published FireRedASR-AED (``model.pth.tar`` and ``cmvn.ark``) -> a plain folder that holds its encoder alone.

``model.pth.tar`` is a pickle, and a pickle can run anything. It is read by torch's restricted unpickler, which knows
tensors and plain values; beside these argparse.Namespace is let in, in which the dimensions are kept, and nothing
else. Its pages are mapped, so the decoder's, 40 % of the file, are never read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FetchError
from ..packages import build_once, cache_root, sha256_of
from .weights import note_of, remembered

if TYPE_CHECKING:
    from ..encoders.fireredasr import FireRedConfig, FireRedFeatureExtractor

CHECKPOINT, CMVN = "model.pth.tar", "cmvn.ark"
DIMS = ("idim", "n_layers_enc", "n_head", "d_model", "kernel_size")  # of the checkpoint's args
POSITIONS = "positional_encoding.pe"
PREFIX = "encoder."
LAYOUT = 1  # raise it when the conversion writes something else: the cached folders are then made anew
AED = "give that of a FireRedASR-AED (a FireRedASR-LLM has one as asr_encoder.pth.tar: copy it under this name)"
FLOOR = 1e-20  # of a variance, as the published extractor has it


def is_published(folder: Path) -> bool:
    """Whether ``folder`` holds the published files and nothing better."""
    return (folder / CHECKPOINT).is_file() and not any(folder.glob("model*.safetensors"))


def converted(folder: Path) -> Path:
    """The plain folder of the published ``folder``, made on first use and kept in the cache.

    It is named by what the two files hold, so that it is found again wherever they lie. Raises FetchError for a
    file that is absent, broken, not a FireRedASR-AED's, or holds more than tensors and dimensions.
    """
    checkpoint, cmvn = folder / CHECKPOINT, folder / CMVN
    if not cmvn.is_file():
        raise FetchError(
            f"{cmvn}: absent; FireRedASR needs it to normalise spectra: copy it from where {CHECKPOINT} is"
        )
    digest = remembered([checkpoint, cmvn], [note_of(folder)], _digest)
    return build_once(cache_root() / "models" / f"fireredasr-{digest[:12]}", partial(convert, checkpoint, cmvn))


def convert(checkpoint: Path, cmvn: Path, target: Path) -> None:
    """Fill the existing folder ``target``: config.json, model.safetensors, preprocessor_config.json."""
    import torch
    from safetensors.torch import save_file

    from ..encoders.fireredasr import MODEL_TYPE, FireRedConfig, FireRedEncoder

    package = _unpickled(checkpoint)
    args, state = _part(package, "args", checkpoint), _part(package, "model_state_dict", checkpoint)
    if lacking := [name for name in DIMS if not isinstance(getattr(args, name, None), int)]:
        raise FetchError(f"{checkpoint}: its args lack {', '.join(lacking)}; {AED}")
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise FetchError(f"{checkpoint}: its model_state_dict holds no tensors by name; {AED}")
    tensors = {k.removeprefix(PREFIX): v.contiguous() for k, v in state.items() if k.startswith(PREFIX)}
    if POSITIONS not in tensors or tensors[POSITIONS].ndim != 3:
        raise FetchError(f"{checkpoint}: lacks the tensor {PREFIX}{POSITIONS}; {AED}")
    dims = {name: getattr(args, name) for name in DIMS}
    dims["pe_maxlen"] = (tensors[POSITIONS].shape[1] + 1) // 2  # the published code ignores what args say of it
    try:
        with torch.device("meta"):  # names and shapes only
            FireRedEncoder(FireRedConfig(**dims)).load_state_dict(tensors, strict=True, assign=True)
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        says = " ".join(str(error).split())[:300]
        raise FetchError(f"{checkpoint}: its tensors are not those of its args {dims}: {says}; {AED}") from None
    mean, inverse_std = read_cmvn(cmvn)
    if len(mean) != dims["idim"]:
        raise FetchError(
            f"{cmvn}: {len(mean)} bands, but {CHECKPOINT} has idim={dims['idim']}: take both from one place"
        )
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # written for the owner only, but a cache may be shared
    _write(target / "config.json", {"model_type": MODEL_TYPE, **dims})
    _write(target / "preprocessor_config.json", {"mean": mean, "inverse_std": inverse_std})


def read_cmvn(file: Path) -> tuple[list[float], list[float]]:
    """Mean and inverse standard deviation of each band, from Kaldi's statistics, binary or text.

    They are a matrix (2, bands + 1): sums and, last, how many frames; below them the sums of squares.
    """
    raw = file.read_bytes()
    try:
        _, binary, body = raw.partition(b"\0B")  # before it, in an archive, a key
        if binary:
            kind = {b"DM ": "<f8", b"FM ": "<f4"}[body[:3]]
            _, rows, _, columns = struct.unpack_from("<bibi", body, 3)  # each number behind its size, 4
            stats = np.frombuffer(body, kind, rows * columns, offset=13).reshape(rows, columns)
        else:
            lines = raw.decode().partition("[")[2].partition("]")[0].strip().splitlines()
            stats = np.array([line.split() for line in lines], dtype=np.float64)
        sums, squares = stats.astype(np.float64)  # (bands + 1,) each
        if not (np.isfinite(stats).all() and len(sums) > 1 and sums[-1] >= 1):
            raise ValueError("it counts no frames")
    except (KeyError, ValueError, struct.error) as error:
        raise FetchError(f"{file}: no Kaldi matrix of CMVN statistics ({error}); fetch it again") from None
    mean = sums[:-1] / sums[-1]
    variance = np.maximum(squares[:-1] / sums[-1] - mean**2, FLOOR)
    return mean.tolist(), (1 / np.sqrt(variance)).tolist()


def read_config(folder: Path) -> FireRedConfig:
    """The dimensions in a converted folder. Raises KeyError or ValueError for a file that has them not."""
    from ..encoders.fireredasr import FireRedConfig

    told = json.loads((folder / "config.json").read_text())
    return FireRedConfig(**{name: told[name] for name in (*DIMS, "pe_maxlen")})


def read_extractor(folder: Path) -> FireRedFeatureExtractor:
    """The feature extractor of a converted folder. Errors as for ``read_config``."""
    from ..encoders.fireredasr import FireRedFeatureExtractor

    told = json.loads((folder / "preprocessor_config.json").read_text())
    return FireRedFeatureExtractor(told["mean"], told["inverse_std"])


def _unpickled(file: Path) -> Any:
    """What ``file`` holds, where that is tensors, plain values and argparse.Namespace; all else is refused."""
    import torch

    mapped = zipfile.is_zipfile(file)  # what torch wrote before 1.6 cannot be mapped
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|class (\S+)", str(error))
        what = next(filter(None, found.groups())) if found else "more than tensors and plain values"
        raise FetchError(f"{file}: its pickle asks for {what}; refusing it, nothing of it was run: {AED}") from None
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, AttributeError, TypeError) as error:
        says = " ".join(str(error).split())[:200]
        raise FetchError(f"{file}: broken or not written by torch.save ({says}); fetch it again") from None


def _part(package: Any, key: str, file: Path) -> Any:
    if not isinstance(package, dict) or key not in package:
        raise FetchError(f"{file}: lacks {key!r}; {AED}")
    return package[key]


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(f"{LAYOUT}:{':'.join(map(sha256_of, files))}".encode()).hexdigest()


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
