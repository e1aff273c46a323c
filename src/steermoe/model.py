"""The pair as one module: frozen encoder, steering, projector, frozen LLM.

    audio -> encoder (steered by hooks on its own layers) -> projector -> vectors in the LLM's embedding space
          -> spliced where the prompt has its audio placeholders -> the LLM, as if they were text

Shapes: B clips or prompts, T encoder frames, S audio tokens, D and D_llm the widths of encoder and LLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import SteerMoEConfig
from .hearing import Hearing, load_frames
from .splice import IGNORED, beginning, full_attention, read, splice

ROWS = 512  # of logits whose loss is computed at a time


def by_rows(loss: Callable[[Tensor, Tensor], Tensor], rows: Tensor, others: Tensor) -> Tensor:
    """The sum of ``loss`` over ROWS rows at a time, of which nothing is kept but the rows: in float32 a softmax over a large
    vocabulary is most of the memory."""
    parts = zip(rows.split(ROWS), others.split(ROWS), strict=True)
    return torch.stack([checkpoint(loss, a, b, use_reentrant=False) for a, b in parts]).sum()


@dataclass
class Output:
    """``loss`` is the sum over labelled tokens divided by their number (or by ``num_items_in_batch``);
    ``logits`` (B, K, V) cover the last K positions, those that labels need; all when there are no labels."""

    loss: Tensor | None
    logits: Tensor


class SteerMoEForConditionalGeneration(Hearing):
    """An LLM that hears. Trainable: ``steering``, ``projector``, ``prompt_vectors`` (``phones`` and ``lora``, too); all else is frozen.

    ``frames`` wraps the encoder (encoders/), ``llm`` is any transformers causal LM, ``tokenizer`` its own.
    """

    ADAPTER = ("steering.", "projector.", "phones.", "prompt_vectors", "lora.")

    def __init__(self, config: SteerMoEConfig, frames: Any, llm: Any, tokenizer: Any = None) -> None:
        if config.spelling and tokenizer is None:
            from .pretrained import load_tokenizer

            tokenizer = load_tokenizer(config.llm)
        embedding = llm.get_input_embeddings()
        table = embedding.weight
        scale = float(getattr(embedding, "embed_scale", 1.0))  # Gemma scales after the look-up
        super().__init__(config, frames, table, scale, tokenizer)
        self.llm, self.tokenizer = llm, tokenizer
        # Drawn from the table's own rows: vectors of a length the LLM is used to.
        start = table[torch.randint(len(table), (config.prompt_vectors,))].detach().float() * scale
        self.prompt_vectors = nn.Parameter(start)
        self.llm.requires_grad_(False)
        # Whether what all prompts of a training batch begin with is read once. Not if processes share the LLM out: each has to call it
        # as often as the others, whatever its own prompts begin with.
        self.share_beginning = True
        self.trained: dict[str, Any] = {}  # how, for the adapter's config
        self.train(False)

    @classmethod
    def from_pair(
        cls,
        encoder: str,
        llm: str,
        *,
        device: str = "cpu",
        dtype: torch.dtype | str | None = None,
        llm_elsewhere: bool = False,
        filled: bool = False,
        **config: Any,
    ) -> SteerMoEForConditionalGeneration:
        """A new, untrained adapter between two pretrained models (names as in ``pretrained.resolve``).

        ``llm_elsewhere``: of an LLM that another process runs only the embeddings are loaded. ``filled``: an adapter's tensors come next.
        """
        from .pretrained import auto_dtype, load_embeddings, load_llm, load_tokenizer

        dtype = dtype or auto_dtype(device)
        settings = SteerMoEConfig(encoder=encoder, llm=llm, **config)
        load = load_embeddings if llm_elsewhere else load_llm
        frames = load_frames(settings, dtype)
        tokenizer = load_tokenizer(llm) if settings.projector == "lexical" else None
        model = cls(settings, frames, load(llm, dtype), tokenizer)
        if settings.pronunciation and not filled:
            from .pronunciation import pronounced

            spelling: Any = model.projector.spelling
            spelling.tell(pronounced(model.tokenizer, model.audio_token_id))
        return model.to(device)

    def train(self, mode: bool = True) -> SteerMoEForConditionalGeneration:
        """Only what is trained ever leaves eval: BatchNorm, dropout and layerdrop of frozen towers stay off."""
        super().train(mode)
        self.frames.eval()
        self.llm.eval()
        return self

    @property
    def audio_token_id(self) -> int:
        """The placeholder: the first id past the embedding table, so no word of the vocabulary is taken."""
        return self.llm.get_input_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.llm.get_input_embeddings().weight.device

    def adapter_state(self) -> dict[str, Tensor]:
        """The tensors that are trained and saved, chosen by name."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(self.ADAPTER) and v.numel()}

    def trainable(self) -> dict[str, nn.Parameter]:
        return {k: p for k, p in self.named_parameters() if p.requires_grad and p.numel()}

    def splice(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        audios: list[Tensor],
        labels: Tensor | None = None,
        with_prompt: bool = False,
        skip: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See splice.py; ``with_prompt``: the learned prompt vectors follow each audio."""
        if with_prompt:
            audios = [torch.cat([audio, self.prompt_vectors.to(audio)]) for audio in audios]
        return splice(self.llm, input_ids, attention_mask, audios, labels, skip, self.config.llm)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_lengths: Tensor | None = None,
        audio_windows: Tensor | None = None,
        audios: list[Tensor] | None = None,
        labels: Tensor | None = None,
        with_prompt: bool = False,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Next-token loss on labelled positions (paper, equation 5). Without audio: the LLM's own forward, whole.

        ``audios`` are embeddings already made by ``hear``, in place of features.
        """
        if input_features is None and audios is None:
            return self.llm(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if audios is None:
            audios = self.hear(input_features, feature_lengths, audio_windows)  # type: ignore[arg-type]
        logits, target = self._told(input_ids, attention_mask, audios, labels, with_prompt)
        if labels is None:
            return Output(None, logits)
        inside = target != IGNORED
        rows, tokens = logits[:, :-1][inside], target[inside]  # (M, V), (M,)
        loss = by_rows(lambda r, t: F.cross_entropy(r.float(), t, reduction="sum"), rows, tokens)
        count = num_items_in_batch if num_items_in_batch is not None else len(tokens)
        return Output(loss / count, logits)

    def answer_logits(
        self, input_ids: Tensor, attention_mask: Tensor, audios: list[Tensor], labels: Tensor, with_prompt: bool = False
    ) -> Tensor:
        """Logits (M, V) that foretell the M labelled tokens, row by row."""
        logits, target = self._told(input_ids, attention_mask, audios, labels, with_prompt)
        return logits[:, :-1][target != IGNORED]

    def _told(
        self, input_ids: Tensor, attention_mask: Tensor, audios: list[Tensor], labels: Tensor | None, with_prompt: bool
    ) -> tuple[Tensor, Tensor]:
        """The LLM's logits (B, K, V) over what labels need, all where there are none; and the labels (B, K - 1) they foretell."""
        first, cache, begin = 0, None, input_ids.new_zeros(0)
        if labels is not None and self.share_beginning and len(input_ids) > 1:
            inside = (input_ids == self.audio_token_id).sum(1).max() * (
                max(map(len, audios), default=0) + with_prompt * len(self.prompt_vectors)
            )
            if full_attention(self.llm, input_ids.shape[1] + int(inside)):
                begin = beginning(self.llm, input_ids, attention_mask, labels)
        embeds, mask, marks = self.splice(input_ids, attention_mask, audios, labels, with_prompt, len(begin))
        rows, length = marks.shape
        if labels is not None:  # rows end together, so what foretells labels lies in the last positions
            first = max(0, int((marks != IGNORED).int().argmax(dim=1).min()) - 1)
        if len(begin):
            cache = read(self.llm, begin, rows)
            mask = torch.cat([mask.new_ones(rows, len(begin)), mask], dim=1)
        out = self.llm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -length:],
            # As a tensor: what a number keeps of several rows is not in one piece, and CPUs then copy the head for each row.
            logits_to_keep=torch.arange(first, length, device=embeds.device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.logits, marks[:, first + 1 :]

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_lengths: Tensor | None = None,
        audio_windows: Tensor | None = None,
        audios: list[Tensor] | None = None,
        with_prompt: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """The LLM's own ``generate``. With audio it returns the new tokens only; without, whatever the LLM returns.

        ``audios`` are embeddings already made by ``hear``, in place of features.
        """
        if input_features is None and audios is None:
            return self.llm.generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if audios is None:
            audios = self.hear(input_features, feature_lengths, audio_windows)  # type: ignore[arg-type]
        embeds, mask, _ = self.splice(input_ids, attention_mask, audios, with_prompt=with_prompt)
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

    def save_adapter(self, folder: str | Path, trained: dict[str, Any] | None = None) -> None:
        """See adapter.save."""
        from .adapter import save

        save(self, folder, trained)

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """See adapter.push; returns the name that ``load`` takes, ``repo@commit``."""
        from .adapter import push

        return push(self, repo, private=private, token=token)
