"""The lexical projector: speech lands where the frozen LLM keeps its words.

Stacked frames are projected next to the LLM's own token embeddings; a frame's score for token v is a scaled
cosine to E_v, and one learned vector is the CTC blank. CTC (Graves et al., 2006) trains exactly these
scores. Reading out follows CTC too: runs of frames with the same arg-max are segments, blank segments are
dropped, and every other segment becomes the expectation of token embeddings under its averaged
probabilities. No text is decoded: the LLM receives vectors from the region it already understands.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .projector import Projected, pool


class Context(nn.Module):
    """What the frames around a frame add: a hidden layer and a convolution over 2 * reach + 1 of them.

    Frame by frame, a word between two frames is written twice, by each in its own spelling.
    """

    def __init__(self, width: int, hidden: int, reach: int, out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.across = nn.Conv1d(hidden, hidden, 2 * reach + 1, padding=reach)
        self.outer = nn.Linear(hidden, out)
        nn.init.zeros_(self.outer.weight)  # begins by adding nothing: it may join a projector that has learned
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """(B, T', D), and (B, T') true within each clip -> (B, T', out)."""
        h = F.gelu(self.inner(x)).masked_fill(~inside[..., None], 0.0)
        return self.outer(h + F.gelu(self.across(h.mT).mT))


class LexicalProjector(nn.Module):
    """(B, T, D) -> one embedding a spoken token.

    ``table`` is the LLM's frozen embedding matrix (V, D_llm); it is not a parameter of this module.
    ``temperature`` sharpens a segment's distribution: 0 reads its most likely token's own embedding.
    ``blank_penalty`` is taken from the blank's score when reading out (never in the loss): on speech unlike the
    training set a model says blank too often, and a dropped word is one the LLM cannot restore.
    ``context``: pooled frames on each side that a convolution of ``hidden`` channels also sees; 0 for none.
    """

    def __init__(
        self,
        width: int,
        table: Tensor,
        kernel: int = 4,
        temperature: float = 0.0,
        blank_penalty: float = 0.0,
        context: int = 0,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.kernel, self.temperature, self.blank_penalty = kernel, temperature, blank_penalty
        llm_width = table.shape[1]
        self.norm = nn.LayerNorm(width * kernel)
        self.proj = nn.Linear(width * kernel, llm_width)
        self.context = Context(width * kernel, hidden, context, llm_width) if context else None
        self.blank = nn.Parameter(torch.randn(llm_width) * 0.02)
        self.nothing = nn.Parameter(torch.zeros(llm_width))  # heard instead of an audio without any word
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.blank_bias = nn.Parameter(torch.zeros(()))
        self._table = [table]  # in a list: seen, but neither a parameter nor a buffer
        self._unit: Tensor | None = None

    @property
    def table(self) -> Tensor:
        return self._table[0]

    def _unit_rows(self, like: Tensor) -> Tensor:
        """(V, D_llm): all embeddings at length one, computed once and kept."""
        if self._unit is None or self._unit.device != like.device or self._unit.dtype != like.dtype:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training, too
                self._unit = F.normalize(self.table.to(like.device, torch.float32), dim=-1).to(like.dtype)
        return self._unit

    def scores(
        self, h: Tensor, lengths: Tensor, ids: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Frame logits (B, T', V + 1), blank last, float32; frames beyond a clip's end are blank for certain.

        Only for the tokens ``ids`` (C,), in their order, where these are given.
        """
        pooled, lengths = pool(h, lengths, self.kernel, "stack")
        frames = F.dropout(self.norm(pooled.to(self.norm.weight.dtype)), dropout, training=dropout > 0)
        beyond = torch.arange(frames.shape[1], device=h.device) >= lengths[:, None]  # (B, T')
        x = self.proj(frames)
        if self.context is not None:
            x = x + self.context(frames, ~beyond)
        x = F.normalize(x, dim=-1)  # (B, T', D_llm)
        scale = self.log_scale.exp()
        rows = self._unit_rows(x)
        words = (scale * x) @ (rows if ids is None else rows[ids]).T
        blank = scale * (x @ F.normalize(self.blank, dim=0)) + self.blank_bias
        logits = torch.cat([words, blank[..., None]], dim=-1).float()
        if beyond.any():
            certain = torch.full_like(logits[0, 0], -1e4)
            certain[-1] = 0.0
            logits = torch.where(beyond[..., None], certain, logits)
        return logits, lengths

    def forward(self, h: Tensor, lengths: Tensor) -> Projected:
        logits, lengths = self.scores(h, lengths)
        found = [self.segments(row) for row in logits]
        read = [self._embed(row, segments) for row, segments in zip(logits, found, strict=True)]
        counts = torch.tensor([len(r) for r in read], device=h.device)
        tokens = [[token for _, _, token in segments] for segments in found]
        return Projected(pad_sequence(read, batch_first=True), counts, logits, lengths, tokens)

    def eased(self, logits: Tensor) -> Tensor:
        """Logits (T', V + 1) as they are read out: less ``blank_penalty``."""
        if not self.blank_penalty:
            return logits
        return torch.cat([logits[:, :-1], logits[:, -1:] - self.blank_penalty], dim=-1)

    def segments(self, logits: Tensor) -> list[tuple[int, int, int]]:
        """CTC segments of one clip's logits (T', V + 1): (first frame, last frame + 1, token id), no blanks."""
        blank = logits.shape[-1] - 1
        logits = self.eased(logits)
        scores, words = logits[:, :blank].max(dim=-1)
        best = torch.where(logits[:, blank] >= scores, blank, words)
        values, runs = torch.unique_consecutive(best, return_counts=True)
        ends = runs.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        return [(s, e, v) for s, e, v in zip(starts, ends, values.tolist(), strict=True) if v != blank]

    def token_ids(self, logits: Tensor) -> list[int]:
        """The CTC arg-max transcript of one clip as LLM token ids."""
        return [token for _, _, token in self.segments(logits)]

    def read_out(self, logits: Tensor) -> Tensor:
        """One clip's logits (T', V + 1) -> embeddings (S, D_llm); an audio without words is one learned vector."""
        return self._embed(logits, self.segments(logits))

    def _embed(self, logits: Tensor, segments: list[tuple[int, int, int]]) -> Tensor:
        if not segments:
            return self.nothing[None]
        if self.temperature == 0:
            ids = torch.tensor([token for _, _, token in segments], device=self.table.device)
            return self.table[ids].to(self.nothing)
        probabilities = logits.softmax(dim=-1)[:, :-1]  # without the blank
        means = torch.stack([probabilities[s:e].mean(dim=0) for s, e, _ in segments])  # (S, V)
        sharpened = (means.clamp_min(1e-12).log() / self.temperature).softmax(dim=-1)
        table = self.table.to(sharpened.device)
        return sharpened.to(table.dtype).matmul(table).to(self.nothing)

    def ctc_loss(
        self,
        h: Tensor,
        lengths: Tensor,
        targets: list[list[int]],
        negatives: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Mean over clips of CTC's negative log-likelihood divided by the target length.

        ``targets`` are LLM token ids. ``negatives`` (N,), drawn evenly from the vocabulary, are the only others
        scored, each for as many as it stands for (sampled softmax; Jean et al., 2015); None scores them all.
        ``dropout`` is the share of the projector's inputs left out. Clips with fewer frames than tokens cannot be
        aligned and count as zero.
        """
        flat = torch.tensor([t for row in targets for t in row], dtype=torch.long, device=h.device)
        if negatives is None:
            logits, lengths = self.scores(h, lengths, None, dropout)
        else:
            spoken = flat.unique()
            others = negatives[~torch.isin(negatives, spoken)]
            logits, lengths = self.scores(h, lengths, torch.cat([spoken, others]), dropout)
            stands_for = (len(self.table) - len(spoken)) / max(1, len(others))
            raised = torch.zeros_like(logits[0, 0])
            raised[len(spoken) : -1] = math.log(max(1.0, stands_for))
            logits, flat = logits + raised, torch.searchsorted(spoken, flat)
        return F.ctc_loss(
            logits.log_softmax(dim=-1).transpose(0, 1),
            flat,
            lengths,
            torch.tensor([len(t) for t in targets], device=logits.device),
            blank=logits.shape[-1] - 1,
            zero_infinity=True,
        )
