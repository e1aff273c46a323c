"""The lexical projector against CTC written out: segments, read-out, loss."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from steermoe.lexical import LexicalProjector

VOCAB, LLM_WIDTH, WIDTH = 5, 8, 6
BLANK = VOCAB


@pytest.fixture
def projector() -> LexicalProjector:
    torch.manual_seed(0)
    made = LexicalProjector(WIDTH, torch.randn(VOCAB, LLM_WIDTH), kernel=2)
    with torch.no_grad():
        made.nothing.copy_(torch.randn(LLM_WIDTH))
    return made


def read(projector: LexicalProjector, logits: torch.Tensor) -> list[tuple[int, int, int]]:
    return projector.likeliest(logits[:, :-1], logits[:, -1:]).segments()


def token_ids(projector: LexicalProjector, logits: torch.Tensor) -> list[int]:
    return [token for _, _, token in read(projector, logits)]


def logits_of(path: list[int], size: int = VOCAB, peak: float = 8.0) -> torch.Tensor:
    """(T, C + 1) logits whose arg-max is ``path``."""
    torch.manual_seed(1)
    logits = torch.randn(len(path), size + 1)
    return logits.scatter(1, torch.tensor(path)[:, None], peak)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ([3, 3, 1], [3, 1]),
        ([2, BLANK, 2], [2, 2]),  # "very very": a blank between keeps both
        ([2, 2, BLANK, BLANK, 2, 2, 4], [2, 2, 4]),
        ([BLANK, 0, BLANK], [0]),
        ([0, 1, 0, 1], [0, 1, 0, 1]),
        ([BLANK, BLANK], []),
    ],
)
def test_segments(projector: LexicalProjector, path: list[int], words: list[int]) -> None:
    logits = logits_of(path)
    segments = read(projector, logits)
    assert [token for _, _, token in segments] == words
    for start, end, row in segments:
        assert path[start:end] == [row] * (end - start)
        assert start == 0 or path[start - 1] != row
    embeddings = projector._embed(torch.zeros(0), segments)
    wanted = projector.table[words] if words else projector.nothing[None]
    assert torch.equal(embeddings, wanted)  # at temperature 0, the tokens' own


def test_expectation_by_hand() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    projector = LexicalProjector(WIDTH, table, temperature=1.0)
    # Two frames of token 0, with p = (.6, .2 | .2 blank) and (.5, .1 | .4): means .55 and .15 -> .7857 and .2143.
    logits = torch.tensor([[0.6, 0.2, 0.2], [0.5, 0.1, 0.4]]).log()
    torch.testing.assert_close(projector.mixtures(logits, [(0, 2, 0)]), torch.tensor([[0.55, 0.15]]) / 0.7)
    projector.temperature = 0.5  # squares
    squares = torch.tensor([[0.55**2, 0.15**2]])
    torch.testing.assert_close(projector.mixtures(logits, [(0, 2, 0)]), squares / squares.sum())
    projector.temperature = 0.01  # nearly the arg-max token's own
    torch.testing.assert_close(projector.mixtures(logits, [(0, 2, 0)]), table[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_what_nobody_says_is_never_read(dtype: torch.dtype, temperature: float) -> None:
    """Frames that lie at the embedding of a control token itself: the next best is read, and no share of it is in a mixture."""
    table = torch.eye(LLM_WIDTH)[:VOCAB].to(dtype)
    told = {}
    for control in ([], [2]):
        projector = LexicalProjector(WIDTH, table, kernel=1, temperature=temperature, control=control)
        with torch.no_grad():
            projector.proj.weight.zero_()
            projector.proj.bias.copy_(table[2].float() + 0.9 * table[4].float())
            projector.blank.copy_(table[0].float())
        told[len(control)] = projector(torch.randn(1, 3, WIDTH), torch.tensor([3]))
    assert told[0].tokens == [[2]] and told[1].tokens == [[4]]
    assert told[0].embeddings[0, 0, 2] > 0.9 and told[1].embeddings[0, 0, 2] < 1e-6
    torch.testing.assert_close(
        told[1].likeliest[0].chances.exp().sum(1) + told[1].likeliest[0].blank.exp(), torch.ones(3)
    )


def test_blank_penalty_is_for_reading_only(projector: LexicalProjector) -> None:
    logits = torch.tensor([[5.0, 1, 0, 0, 0, 6], [0, 0, 0, 5.5, 0, 6], [0, 0, 0, 0, 0, 6]])
    h, lengths, targets = torch.randn(1, 8, WIDTH), torch.tensor([8]), [[1, 2]]
    assert token_ids(projector, logits) == []
    loss = projector.ctc_loss(h, lengths, targets)
    projector.blank_penalty = 0.75
    assert token_ids(projector, logits) == [3]
    projector.blank_penalty = 1.5
    assert token_ids(projector, logits) == [0, 3]
    assert torch.equal(projector.ctc_loss(h, lengths, targets), loss)


def test_frame_scale_changes_how_sure_a_frame_is_and_not_of_what(projector: LexicalProjector) -> None:
    logits = torch.tensor([[5.0, 1, 0, 0, 0, 6], [0, 0, 0, 6.5, 0, 6], [0, 0, 2, 0, 3, 0]])
    before = projector.likeliest(logits[:, :-1], logits[:, -1:])
    projector.frame_scale = 0.5
    after = projector.likeliest(logits[:, :-1], logits[:, -1:])
    assert after.segments() == before.segments() != []
    wanted = (0.5 * logits).log_softmax(dim=-1)
    torch.testing.assert_close(after.blank, wanted[:, -1])
    torch.testing.assert_close(after.chances, wanted[:, :-1].sort(dim=-1, descending=True).values)


@pytest.mark.parametrize("negatives", [None, torch.tensor([4])])
def test_trains_after_inference(projector: LexicalProjector, negatives: torch.Tensor | None) -> None:
    h, lengths = torch.randn(1, 8, WIDTH), torch.tensor([8])
    with torch.inference_mode():
        projector(h, lengths)
    projector.ctc_loss(h, lengths, [[1, 2]], negatives).backward()
    assert projector.proj.weight.grad.any()


def test_scores_are_scaled_cosines(projector: LexicalProjector) -> None:
    h, lengths = torch.randn(1, 4, WIDTH), torch.tensor([4])
    logits, out_lengths = projector.scores(h, lengths)
    assert logits.shape == (1, 2, VOCAB + 1) and out_lengths.tolist() == [2]
    x = projector.proj(projector.norm(h.view(1, 2, -1)))
    rows = torch.cat([projector.table, projector.blank[None]])
    cosines = torch.cosine_similarity(x[0, :, None], rows[None], dim=-1)
    torch.testing.assert_close(logits[0], 20 * cosines)
    some, _ = projector.scores(h, lengths, torch.tensor([3, 0]))
    torch.testing.assert_close(some, logits[:, :, [3, 0, BLANK]])


def test_padding_is_blank_and_batch_equals_alone(projector: LexicalProjector) -> None:
    clips = [torch.randn(n, WIDTH) for n in (12, 3, 7, 1)]
    lengths = torch.tensor([len(c) for c in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=float("nan"))
    logits, out_lengths = projector.scores(batch, lengths)
    assert out_lengths.tolist() == [6, 2, 4, 1]
    for row, n in zip(logits, out_lengths.tolist(), strict=True):
        assert (row[n:].argmax(-1) == BLANK).all() and (row[n:].softmax(-1)[:, BLANK] == 1).all()
    out = projector(batch, lengths)
    for i, clip in enumerate(clips):
        alone = projector(clip[None], lengths[i : i + 1])
        assert int(out.lengths[i]) == int(alone.lengths)
        torch.testing.assert_close(out.embeddings[i, : out.lengths[i]], alone.embeddings[0])


def test_the_table_is_no_part_of_it(projector: LexicalProjector) -> None:
    assert not any("table" in name for name in projector.state_dict())
    assert projector.table.data_ptr() not in {t.data_ptr() for t in projector.parameters()}


def brute_force(logits: torch.Tensor, target: list[int]) -> float:
    """-log of the sum over every alignment that collapses to ``target``."""
    p, blank, total = logits.detach().softmax(-1), logits.shape[-1] - 1, 0.0
    for path in itertools.product(range(blank + 1), repeat=len(logits)):
        if [k for k, _ in itertools.groupby(path) if k != blank] == target:
            total += math.prod(float(p[t, v]) for t, v in enumerate(path))
    return -math.log(total)


@pytest.mark.parametrize("negatives", [None, [0, 1, 2, 3, 4], [4]])
def test_ctc_loss_is_the_sum_over_alignments(projector: LexicalProjector, negatives: list[int] | None) -> None:
    """Few negatives stand for all: here token 4 for tokens 1 and 4, so its probability counts twice."""
    targets = [[2, 0], [3, 3], [2]]
    clips = [torch.randn(n, WIDTH) for n in (8, 6, 3)]  # 4, 3 and 2 scores
    lengths = torch.tensor([len(c) for c in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    logits, counts = projector.scores(batch, lengths)
    if negatives == [4]:
        assert VOCAB == 5
        logits = torch.cat([logits[:, :, [0, 2, 3]], logits[:, :, 4:5] + math.log(2), logits[:, :, BLANK:]], dim=-1)
        rows = [[{0: 0, 2: 1, 3: 2}[t] for t in row] for row in targets]
    else:
        rows = targets
    each = [brute_force(lg[:n], row) / len(row) for lg, n, row in zip(logits, counts.tolist(), rows, strict=True)]
    loss = projector.ctc_loss(batch, lengths, targets, None if negatives is None else torch.tensor(negatives))
    torch.testing.assert_close(loss, torch.tensor(sum(each) / 3))
    loss.backward()
    assert all(projector.get_parameter(n).grad.abs().sum() > 0 for n in ("proj.weight", "blank", "log_scale"))
    assert projector.table.grad is None


def test_context_reaches_just_so_far() -> None:
    torch.manual_seed(0)
    projector = LexicalProjector(WIDTH, torch.randn(VOCAB, LLM_WIDTH), kernel=2, context=2, hidden=6)
    torch.nn.init.normal_(projector.context.outer.weight)
    h, lengths = torch.randn(1, 24, WIDTH), torch.tensor([24])
    plain, _ = projector.scores(h, lengths)
    h = h.clone()
    h[:, 12] += 1  # in pooled frame 6
    changed = (projector.scores(h, lengths)[0] != plain).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [4, 5, 6, 7, 8]


def test_context_does_not_see_padding() -> None:
    torch.manual_seed(0)
    projector = LexicalProjector(WIDTH, torch.randn(VOCAB, LLM_WIDTH), kernel=2, context=2, hidden=6)
    torch.nn.init.normal_(projector.context.outer.weight)
    clips = [torch.randn(n, WIDTH) for n in (12, 3, 7)]
    lengths = torch.tensor([len(c) for c in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=float("nan"))
    logits, out_lengths = projector.scores(batch, lengths)
    for i, clip in enumerate(clips):
        alone, _ = projector.scores(clip[None], lengths[i : i + 1])
        torch.testing.assert_close(logits[i, : out_lengths[i]], alone[0])


def test_dropout_is_for_training_only(projector: LexicalProjector) -> None:
    h, lengths, targets = torch.randn(1, 8, WIDTH), torch.tensor([8]), [[1, 2]]
    torch.manual_seed(0)
    first, second = (projector.ctc_loss(h, lengths, targets, dropout=0.5) for _ in range(2))
    assert first != second
    torch.manual_seed(0)
    assert projector.ctc_loss(h, lengths, targets, dropout=0.5) == first
    assert torch.equal(projector.train().scores(h, lengths)[0], projector.eval().scores(h, lengths)[0])


def test_what_cannot_be_aligned_counts_zero(projector: LexicalProjector) -> None:
    loss = projector.ctc_loss(torch.randn(1, 4, WIDTH), torch.tensor([4]), [[1, 1]])  # needs 3 scores, has 2
    assert loss.item() == 0
