"""The lexical projector: speech lands where the frozen LLM keeps its words.

Stacked frames are projected next to the LLM's own token embeddings; a frame's score for token v is a scaled
cosine to E_v, and one learned vector is the CTC blank. CTC (Graves et al., 2006) trains exactly these
scores. Reading out follows CTC too: runs of frames with the same arg-max are segments, blank segments are
dropped, and every other segment becomes the expectation of token embeddings under its averaged
probabilities. No text is decoded: the LLM receives vectors from the region it already understands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .projector import Projected, pool
from .spelling import Spelling

LIKELIEST = 12  # tokens of a frame that are told apart when reading out
PAUSE = 3  # frames behind the first word that may still be that word's
FRAMES = 128  # whose scores of all tokens are held at once when reading out: 25 MB with 49,152 tokens


@dataclass
class Likeliest:
    """What each frame of a clip may say: log-probabilities ``chances`` (T', K) of its likeliest tokens ``ids`` (T', K), best
    first, and of the ``blank`` (T',)."""

    chances: Tensor
    ids: Tensor
    blank: Tensor

    def segments(self) -> list[tuple[int, int, int]]:
        """CTC segments: (first frame, last frame + 1, token id), no blanks."""
        best = torch.where(self.blank >= self.chances[:, 0], -1, self.ids[:, 0])
        values, runs = torch.unique_consecutive(best, return_counts=True)
        ends = runs.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        return [(s, e, v) for s, e, v in zip(starts, ends, values.tolist(), strict=True) if v >= 0]


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
    training set a model says blank too often, and a dropped word is one the LLM cannot restore. ``frame_scale`` below 1 makes
    a frame less sure, and leaves what it finds likeliest: CTC's peaks are so high that no LLM moves them (readings.py).
    ``context``: pooled frames on each side that a convolution of ``hidden`` channels also sees; 0 for none.
    ``spelling``: tokens are compared by their letters, too (spelling.py). ``behind`` (V,): how a token is read behind others.
    ``control``: tokens that nobody says, and that are never read: what is heard ends no turn of a conversation.
    """

    behind: Tensor | None

    def __init__(
        self,
        width: int,
        table: Tensor,
        kernel: int = 4,
        temperature: float = 0.0,
        blank_penalty: float = 0.0,
        frame_scale: float = 1.0,
        context: int = 0,
        hidden: int = 512,
        spelling: Spelling | None = None,
        behind: Tensor | None = None,
        control: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.kernel, self.temperature, self.control = kernel, temperature, [*control]
        self.blank_penalty, self.frame_scale = blank_penalty, frame_scale
        llm_width = table.shape[1]
        self.norm = nn.LayerNorm(width * kernel)
        self.proj = nn.Linear(width * kernel, llm_width)
        self.context = Context(width * kernel, hidden, context, llm_width) if context else None
        self.blank = nn.Parameter(torch.randn(llm_width) * 0.02)
        self.nothing = nn.Parameter(torch.zeros(llm_width))  # heard instead of an audio without any word
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.blank_bias = nn.Parameter(torch.zeros(()))
        self.spelling = spelling
        self.register_buffer("behind", behind, persistent=False)
        self._table = [table]  # in a list: seen, but neither a parameter nor a buffer
        self._unit: dict[torch.dtype, Tensor] = {}
        self._learned: tuple[int, ...] = ()  # versions of what the unit rows were made with

    @property
    def table(self) -> Tensor:
        return self._table[0]

    def _unit_rows(self, dtype: torch.dtype, device: torch.device, ids: Tensor | None = None) -> Tensor:
        """(V, D_llm), or of the tokens ``ids``: what frames are compared with, at length one. All of them are kept."""
        learned: tuple[int, ...] = ()
        if self.spelling is not None:
            if ids is not None or (self.spelling.share.requires_grad and torch.is_grad_enabled()):
                return self._rows(torch.arange(len(self.table), device=device) if ids is None else ids).to(dtype)
            learned = tuple(t._version for t in (*self.spelling.parameters(), *self.spelling.buffers()))
        if learned != self._learned:
            self._unit, self._learned = {}, learned
        rows = self._unit.get(dtype)
        if rows is None or rows.device != device:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training, too
                if dtype == torch.float32:
                    parts = torch.arange(len(self.table), device=device).split(2048)
                    rows = torch.cat([self._rows(part) for part in parts])
                else:
                    rows = self._unit_rows(torch.float32, device).to(dtype)
            self._unit[dtype] = rows
        return rows if ids is None else rows[ids]

    def _rows(self, ids: Tensor) -> Tensor:
        """(C, D_llm), float32: the directions of embeddings, and what spellings add to them."""
        rows = F.normalize(self.table[ids.to(self.table.device)].to(ids.device).float(), dim=-1)
        return rows if self.spelling is None else self.spelling(ids, rows)

    def share_rows(self, other: LexicalProjector) -> None:
        """Uses the unit rows of ``other``, a projector beside the same table, unless spelling makes each its own."""
        if self.spelling is None and other.spelling is None:
            self._unit = other._unit

    def scores(
        self, h: Tensor, lengths: Tensor, ids: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Frame logits (B, T', V + 1), blank last, float32; frames beyond a clip's end are blank for certain.

        Only for the tokens ``ids`` (C,), in their order, where these are given.
        """
        x, inside, lengths = self._directions(h, lengths, dropout)
        logits = torch.cat(self._score(x, ids), dim=-1)
        if not inside.all():
            certain = torch.full_like(logits[0, 0], -1e4)
            certain[-1] = 0.0
            logits[~inside] = certain
        return logits, lengths

    def _directions(self, h: Tensor, lengths: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (B, T', D_llm) of the pooled frames, which of them are inside a clip (B, T'), and lengths."""
        pooled, lengths = pool(h, lengths, self.kernel, "stack")
        frames = F.dropout(self.norm(pooled.to(self.norm.weight.dtype)), dropout, training=dropout > 0)
        inside = torch.arange(frames.shape[1], device=h.device) < lengths[:, None]
        x = self.proj(frames)
        if self.context is not None:
            x = x + self.context(frames, inside)
        return F.normalize(x, dim=-1), inside, lengths

    def _score(self, x: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit vectors (..., D_llm) -> logits of the tokens (..., V) and of the blank (..., 1), float32."""
        words = (self.log_scale.exp() * x) @ self._unit_rows(x.dtype, x.device, ids).T
        return words.float(), self._score_blank(x)

    def _score_blank(self, x: Tensor) -> Tensor:
        blank = self.log_scale.exp() * (x @ F.normalize(self.blank, dim=0)) + self.blank_bias
        return blank[..., None].float()

    def forward(self, h: Tensor, lengths: Tensor) -> Projected:
        x, inside, lengths = self._directions(h, lengths)
        counts = lengths.tolist()
        # Clips lie end to end here: none is padded, and the scores of all tokens never exist for all frames at once.
        thinned = [self._thinned(part) for part in x[inside].split(FRAMES)]
        columns = ([getattr(part, name) for part in thinned] for name in ("chances", "ids", "blank"))
        read = [Likeliest(*clip) for clip in zip(*(torch.cat(c).split(counts) for c in columns), strict=True)]
        read = [self._going_on(clip) for clip in read]
        found = [clip.segments() for clip in read]
        embeddings = [self._embed(x[i, :n], found[i]) for i, n in enumerate(counts)]
        said = torch.tensor([len(e) for e in embeddings], device=h.device)
        tokens = [[token for _, _, token in segments] for segments in found]
        return Projected(pad_sequence(embeddings, batch_first=True), said, tokens, read)

    def _going_on(self, clip: Likeliest) -> Likeliest:
        """Behind the first word, sentences begin with a space: "now" and "If" are "now If"."""
        first = next(iter(clip.segments()), None)
        if self.behind is None or first is None:
            return clip
        start = first[1] + PAUSE
        ids = torch.cat([clip.ids[:start], self.behind[clip.ids[start:]]])
        return Likeliest(clip.chances, ids, clip.blank)

    def _thinned(self, x: Tensor) -> Likeliest:
        """Unit vectors (T', D_llm) -> what these frames may say. Where the LLM's embeddings are in bfloat16 they choose the
        likeliest tokens, whose scores are then computed anew as they were trained."""
        if self.table.dtype == x.dtype:
            return self.likeliest(*self._score(x))
        scaled = self.log_scale.exp() * x
        words = (scaled.to(self.table.dtype) @ self._unit_rows(self.table.dtype, x.device).T).float()
        ids = words.topk(min(2 * LIKELIEST, words.shape[-1]), dim=-1).indices
        rows = self._unit_rows(x.dtype, x.device)[ids]  # (T', 2 K, D_llm)
        return self.likeliest(words.scatter_(1, ids, (rows @ scaled[..., None])[..., 0].float()), self._score_blank(x))

    def likeliest(self, words: Tensor, blank: Tensor) -> Likeliest:
        """Logits of tokens (T', V) and of the blank (T', 1), less ``blank_penalty`` and times ``frame_scale``, thinned to what may be read."""
        blank, words = (blank[:, 0] - self.blank_penalty) * self.frame_scale, self._sayable(words) * self.frame_scale
        total = torch.logaddexp(words.logsumexp(dim=-1), blank)
        top, ids = words.topk(min(LIKELIEST, words.shape[-1]), dim=-1)
        return Likeliest(top - total[:, None], ids, blank - total)

    def _sayable(self, words: Tensor) -> Tensor:
        unsaid = torch.tensor(self.control, dtype=torch.long, device=words.device)
        return words.index_fill(-1, unsaid, float("-inf")) if self.control else words

    def _embed(self, x: Tensor, segments: list[tuple[int, int, int]]) -> Tensor:
        """A clip's unit vectors (T', D_llm) and its segments -> (S, D_llm); without any word one learned vector."""
        if not segments:
            return self.nothing[None]
        if self.temperature == 0:
            ids = torch.tensor([token for _, _, token in segments], device=self.table.device)
            return self.table[ids].to(self.nothing)
        words, blank = self._score(x)
        return self.mixtures(torch.cat([self._sayable(words), blank - self.blank_penalty], dim=-1), segments)

    def mixtures(self, logits: Tensor, segments: list[tuple[int, int, int]]) -> Tensor:
        """The sharpened expectation (S, D_llm) of the token embeddings in each segment of logits (T', V + 1)."""
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
