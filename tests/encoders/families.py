"""Tiny random encoders of every family, and their extractors: what the contract suite runs over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AudioFlamingo3Encoder,
    AudioFlamingo3EncoderConfig,
    ClapAudioConfig,
    ClapAudioModel,
    ClapFeatureExtractor,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    MoonshineConfig,
    MoonshineModel,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    SeamlessM4TConfig,
    SeamlessM4TFeatureExtractor,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextModel,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    VoxtralEncoder,
    VoxtralEncoderConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe.encoders.fireredasr import FireRedConfig, FireRedEncoder, FireRedFeatureExtractor

D = 32
COMMON: dict[str, Any] = {"hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
WAVE: dict[str, Any] = COMMON | {
    "conv_dim": (24, 24, 24),
    "conv_kernel": (10, 4, 4),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
}
STABLE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPERLIKE: dict[str, Any] = {
    "d_model": D, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 80,
    "max_source_positions": 1500,
}  # fmt: skip
SHORT: dict[str, Any] = WHISPERLIKE | {"max_source_positions": 200}  # a window of 4 s


def waves(masked: bool) -> Any:
    return Wav2Vec2FeatureExtractor(return_attention_mask=masked, do_normalize=True)


def mels(seconds: int = 4) -> Any:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)


def moonshine() -> nn.Module:
    return MoonshineModel(
        MoonshineConfig(
            hidden_size=D, intermediate_size=48, encoder_num_hidden_layers=3, decoder_num_hidden_layers=1,
            encoder_num_attention_heads=4, decoder_num_attention_heads=4, vocab_size=40,
        )
    ).get_encoder()  # fmt: skip


def seamless() -> nn.Module:
    return SeamlessM4TSpeechEncoder(
        SeamlessM4TConfig(
            hidden_size=D, speech_encoder_layers=3, speech_encoder_attention_heads=4, feature_projection_input_dim=160,
            speech_encoder_intermediate_size=48, num_adapter_layers=1, vocab_size=40, t2u_vocab_size=40,
            max_source_positions=500, conv_depthwise_kernel_size=7,
        )
    )  # fmt: skip


def speech_to_text() -> nn.Module:
    return Speech2TextModel(
        Speech2TextConfig(
            d_model=D, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, conv_channels=32, vocab_size=40, input_feat_per_channel=80,
        )
    ).get_encoder()  # fmt: skip


def firered(reach: int = 200) -> nn.Module:
    return FireRedEncoder(FireRedConfig(idim=80, n_layers_enc=3, n_head=4, d_model=D, kernel_size=7, pe_maxlen=reach))


def firered_fbanks() -> Any:
    return FireRedFeatureExtractor(mean=[10.0] * 80, inverse_std=[0.25] * 80)


def fbanks() -> Any:
    return SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=2)


Family = tuple[Callable[[], nn.Module], Callable[[], Any]]

FIRST: dict[str, Family] = {
    "whisper": (lambda: WhisperEncoder(WhisperConfig(**SHORT)), mels),
    "wav2vec2": (lambda: Wav2Vec2Model(Wav2Vec2Config(**WAVE, **STABLE)), lambda: waves(True)),
    "wav2vec2, group norm": (lambda: Wav2Vec2Model(Wav2Vec2Config(**WAVE)), lambda: waves(False)),
    "hubert": (lambda: HubertModel(HubertConfig(**WAVE, **STABLE)), lambda: waves(True)),
    "hubert, group norm": (lambda: HubertModel(HubertConfig(**WAVE)), lambda: waves(False)),
    "wavlm": (lambda: WavLMModel(WavLMConfig(**WAVE, **STABLE)), lambda: waves(True)),
    "wavlm, group norm": (lambda: WavLMModel(WavLMConfig(**WAVE)), lambda: waves(False)),
    "wav2vec2-conformer": (
        lambda: Wav2Vec2ConformerModel(
            Wav2Vec2ConformerConfig(**WAVE, feat_extract_norm="layer", conv_depthwise_kernel_size=7)
        ),
        lambda: waves(True),
    ),
    "wav2vec2-bert": (
        lambda: Wav2Vec2BertModel(
            Wav2Vec2BertConfig(**COMMON, feature_projection_input_dim=160, conv_depthwise_kernel_size=7)
        ),
        SeamlessM4TFeatureExtractor,
    ),
    "parakeet": (
        lambda: ParakeetEncoder(
            ParakeetEncoderConfig(**COMMON, subsampling_conv_channels=16, conv_kernel_size=7, num_mel_bins=80)
        ),
        lambda: ParakeetFeatureExtractor(feature_size=80),
    ),
    "seamless_m4t": (seamless, SeamlessM4TFeatureExtractor),
    "moonshine": (moonshine, lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False)),
    "audio-spectrogram-transformer": (
        lambda: ASTModel(ASTConfig(**COMMON, max_length=128, num_mel_bins=64)),
        lambda: ASTFeatureExtractor(num_mel_bins=64, max_length=128),
    ),
    "fireredasr": (firered, firered_fbanks),
}

SECOND: dict[str, Family] = {
    "data2vec-audio": (
        lambda: Data2VecAudioModel(
            Data2VecAudioConfig(**(WAVE | {"conv_pos_kernel_size": 7, "num_conv_pos_embeddings": 2}))
        ),
        lambda: waves(True),
    ),
    "unispeech-sat": (lambda: UniSpeechSatModel(UniSpeechSatConfig(**WAVE, **STABLE)), lambda: waves(True)),
    "qwen2_audio": (lambda: Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**SHORT)), mels),
    "audioflamingo3": (lambda: AudioFlamingo3Encoder(AudioFlamingo3EncoderConfig(**SHORT)), mels),
    "voxtral": (
        lambda: VoxtralEncoder(VoxtralEncoderConfig(**COMMON, num_mel_bins=80, max_source_positions=200)),
        mels,
    ),
    "qwen3_asr": (
        lambda: Qwen3ASREncoder(
            Qwen3ASREncoderConfig(
                d_model=D,
                encoder_layers=3,
                encoder_attention_heads=4,
                encoder_ffn_dim=48,
                num_mel_bins=80,
                downsample_hidden_size=16,
            )
        ),
        mels,
    ),
    "speech_to_text": (
        speech_to_text,
        lambda: Speech2TextFeatureExtractor(feature_size=80, num_mel_bins=80),
    ),
}


def clap() -> nn.Module:
    return ClapAudioModel(
        ClapAudioConfig(
            depths=[1] * 4, num_attention_heads=[1] * 4, patch_embeds_hidden_size=16, hidden_size=128, patch_size=4
        )
    )


# What is not steered: the encoder, the line that says so (None: its extractor cannot be built here), and why.
REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, Any]] | None, str | None, str]] = {
    "clap": (
        lambda: (clap(), ClapFeatureExtractor()),
        "its input .* is no sequence of samples or spectra",
        "A Swin transformer over spectrogram images: its width doubles from stage to stage, and steering needs one width.",
    ),
    "granite_speech, granite_speech5": (
        None,
        None,
        "Their feature extractors need torchaudio, whose wheels do not load beside a CPU torch: nothing to test with.",
    ),
}


def build(family: Family, seed: int = 0) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    encoder = family[0]().eval().requires_grad_(False)
    with torch.no_grad():  # a fresh transformer is nearly linear: make what it computes depend on what it hears
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return encoder, family[1]()
