"""Ears: from sources of sound to text."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from steermoe.audio import windows
from steermoe.errors import AdapterError, AudioError, UsageError
from steermoe.inference.decoding import greedy
from steermoe.inference.ears import Ears, load
from steermoe.inference.find import find_adapter, needed_models
from steermoe.inference.halves import in_batches
from steermoe.projector import Projected
from tests.conftest import speechlike


def test_one_in_one_out_a_list_in_a_list_out(ears: Ears, tmp_path: Path) -> None:
    clip = speechlike(1.5)
    soundfile.write(tmp_path / "a.wav", clip, 16_000, subtype="FLOAT")
    one = ears.transcribe(tmp_path / "a.wav")
    assert isinstance(one, str)
    assert ears.transcribe([tmp_path / "a.wav"]) == [one]
    assert ears.transcribe((tmp_path / "a.wav").read_bytes()) == one
    assert ears.transcribe(io.BytesIO((tmp_path / "a.wav").read_bytes())) == one
    assert ears.transcribe(clip, sampling_rate=16_000) == one


def test_no_word_heard_is_no_text(make: Callable[..., Ears]) -> None:
    """Without words there is nothing to repeat, and an LLM that is asked all the same invents."""
    ears = make()
    with torch.no_grad():
        ears.model.projector.blank_bias.fill_(1e4)  # type: ignore[union-attr,operator]
    clips = [speechlike(1.0, seed) for seed in range(3)]
    assert ears.transcribe(clips, sampling_rate=16_000) == ["", "", ""]
    assert ears.hear(clips, sampling_rate=16_000) == ["", "", ""]


def test_some_silent_some_not_keep_their_places(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ears.config, "llm_margin", 0.0)  # plain greedy, as generate writes
    clips = [speechlike(1.0, 1), speechlike(1.2, 2), speechlike(0.8, 3)]
    expected = [ears.transcribe(clip, sampling_rate=16_000) for clip in clips]
    real = ears.model.project

    def second_is_silent(h: torch.Tensor, lengths: torch.Tensor) -> Projected:
        heard = real(h, lengths)
        heard.tokens = [
            [] if n == 60 else tokens for n, tokens in zip(lengths.tolist(), heard.tokens or [], strict=True)
        ]
        return heard

    monkeypatch.setattr(ears.model, "project", second_is_silent)
    assert ears.transcribe(clips, sampling_rate=16_000) == [expected[0], "", expected[2]]
    written = ears.transcribe(clips, sampling_rate=16_000, num_beams=1)  # any option: the LLM's own generate
    assert written == [expected[0], "", expected[2]]


def test_a_voice_ends_no_turn(ears: Ears) -> None:
    """Frames that sound like nothing but the marks of a chat template are read as something else."""
    projector, marks = ears.model.projector, ears.processor.tokenizer.all_special_ids
    assert len(marks) >= 2 and {*marks} <= {*projector.control}
    logits = torch.zeros(1, len(projector.table)).index_fill(1, torch.tensor(marks), 9.0)
    assert not {*projector.likeliest(logits, torch.zeros(1, 1)).ids[0, :1].tolist()} & {*marks}


@pytest.mark.parametrize("seed", range(4))
def test_a_draft_never_changes_the_text(ears: Ears, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drafted, good, bad or nothing, the tokens are those of the LLM's own greedy generate."""
    llm, rng = ears.model.llm, np.random.default_rng(seed)
    prompt = torch.randn(9, 48, generator=torch.Generator().manual_seed(seed))
    known = {"do_sample": False, "pad_token_id": 0, "eos_token_id": sorted(ears.ends), "max_new_tokens": 40}
    plain = llm.generate(inputs_embeds=prompt[None], **known)[0].tolist()
    wanted = plain[: next((i for i, t in enumerate(plain) if t in ears.ends), len(plain))]
    noisy = [t if rng.random() < 0.7 else int(rng.integers(300)) for t in wanted]
    shorter = [t for t in wanted if rng.random() < 0.8]
    passes: list[int] = []
    monkeypatch.setattr(llm, "forward", lambda *a, _f=llm.forward, **k: passes.append(1) or _f(*a, **k))
    drafts = [[], wanted, noisy, shorter, noisy[::-1]]
    for draft in drafts:
        passes.clear()
        assert greedy(llm, [prompt], [draft], ears.ends, [40]) == [wanted]
        if draft is wanted and len(wanted) > 4:
            assert len(passes) < len(wanted)
    other = torch.randn(4, 48, generator=torch.Generator().manual_seed(seed + 9))
    (alone,) = greedy(llm, [other], [noisy], ears.ends, [11])
    prompts, limits = [prompt] * 3 + [other] + [prompt] * 2, [40, 40, 40, 11, 40, 0]
    written = greedy(llm, prompts, [*drafts[:3], noisy, drafts[4], noisy], ears.ends, limits)
    assert written == [wanted, wanted, wanted, alone, wanted, []]  # whatever is beside it in a batch


@pytest.mark.parametrize("seed", range(4))
def test_with_a_margin_the_draft_stands_unless_clearly_unlikely(ears: Ears, seed: int) -> None:
    llm, ends = ears.model.llm, ears.ends
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(9, 48, generator=generator)
    draft = torch.randint(5, 250, (20,), generator=generator).tolist()
    assert (
        greedy(llm, [prompt], [draft], ends, [40], margin=1e6)[0] == draft
    )  # nothing is that unlikely: read, then end
    assert greedy(llm, [prompt], [draft], ends, [7], margin=1e6)[0] == draft[:7]
    assert greedy(llm, [prompt], [draft], ends, [40], margin=0.0)[0] == greedy(llm, [prompt], [[]], ends, [40])[0]
    table = llm.get_input_embeddings()(torch.tensor([draft]))
    logits = llm(inputs_embeds=torch.cat([prompt[None], table], dim=1)).logits[0, 8:-1]
    short = (logits.max(dim=-1).values - logits[range(20), draft]).tolist()  # what each drafted token lacks
    margin = sorted(short)[10] + 1e-4
    first = next(i for i, lacks in enumerate(short) if lacks > margin)
    written = greedy(llm, [prompt], [draft], ends, [40], margin=margin)[0]
    assert written[:first] == draft[:first]
    assert written[first : first + 1] != draft[first : first + 1]  # the LLM's own token, or the end


def test_long_audio_is_the_texts_of_its_windows(ears: Ears) -> None:
    from steermoe.audio import windows

    clip = speechlike(67.0)
    pieces = windows(clip, ears.model.frames.window)
    assert len(pieces) > 2
    texts = [str(ears.transcribe(piece, sampling_rate=16_000)) for piece in pieces]
    assert ears.transcribe(clip, sampling_rate=16_000) == " ".join(text for text in texts if text)


def test_many_sources_one_after_the_other(ears: Ears, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, read no further ahead than a few batches; what cannot be read costs nothing but itself."""
    monkeypatch.setattr("steermoe.inference.transcripts.AHEAD", 2)
    monkeypatch.setattr(ears.config, "piece_seconds", 1.0)
    clips = [speechlike(seconds, i) for i, seconds in enumerate((0.7, 2.6, 0.4, 1.9, 0.5, 0.8))]
    broken = tmp_path / "a.wav"
    broken.write_bytes(b"RIFF no")
    read: list[int] = []

    def sources() -> Iterator[object]:
        for i, source in enumerate([*clips[:3], broken, *clips[3:]]):
            read.append(i)
            yield source

    found, ahead = [], []
    for told in ears.transcripts(sources(), sampling_rate=16_000, batch_size=2):
        found.append(told)
        ahead.append(len(read) - len(found))
    assert "a.wav" in str(found.pop(3).error) and max(ahead) <= 4
    for clip, told in zip(clips, found, strict=True):
        assert told.error is None and told.text == ears.transcribe(clip, sampling_rate=16_000)
        assert [told.pieces[0].start, told.duration] == [0.0, pytest.approx(len(clip) / 16_000)]
        assert all(a.end == b.start for a, b in itertools.pairwise(told.pieces)) and told.seconds > 0
    assert len(found[1].pieces) > 2


def test_two_halves_keep_places_context_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half has its share of the threads and the caller's context; what goes wrong in one is raised; others keep theirs."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(4)
    choice: ContextVar[str] = ContextVar("choice", default="none")
    try:
        choice.set("mine")

        def work(some: list[int]) -> list[str]:
            seen.append((len(some), torch.get_num_threads(), choice.get(), threading.current_thread().name))
            time.sleep(0.02)
            return [str(item) for item in some]

        for size in (1, 2, 3, 8, 99):
            assert in_batches(work, range(19), size, halved=True) == [str(i) for i in range(19)]
            assert max(count for count, *_ in seen) <= max(1, (size + 1) // 2)
            if size > 1:
                assert {(t, c) for _, t, c, _ in seen} == {(2, "mine")} and len({name for *_, name in seen}) == 2
            seen.clear()
        assert in_batches(work, range(5), 4, halved=False) == list("01234") and [n for n, *_ in seen] == [4, 1]
        assert torch.get_num_threads() == 4
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 4
        with pytest.raises(ZeroDivisionError):
            in_batches(lambda some: [str(1 // item) for item in some], range(4), 4, halved=True)
    finally:
        torch.set_num_threads(before)


def test_a_stream_is_the_transcript_as_it_is_written(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ears.config, "piece_seconds", 1.0)
    clip, heard = speechlike(7.5), []
    monkeypatch.setattr(ears, "said_in", lambda c, *a, _t=ears.said_in: heard.append(len(c)) or _t(c, *a))
    found, first = [], 0
    for piece in ears.stream(clip, sampling_rate=16_000, batch_size=4):
        first = first or sum(heard)
        found.append(piece)
    assert first == 1 and 2 <= max(heard) <= 4  # the first words wait for nothing but their own window
    assert " ".join(p.text for p in found if p.text) == ears.transcribe(clip, sampling_rate=16_000)
    assert found[0].start == 0 and found[-1].end == 7.5
    with pytest.raises(AudioError):
        next(ears.stream("nowhere.wav"))


def test_chat_hears_long_audio_a_few_windows_at_a_time(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, sizes = speechlike(70.0), []
    monkeypatch.setattr("steermoe.inference.ears.BATCH", 2)
    real = ears.listen
    monkeypatch.setattr(ears, "listen", lambda i: sizes.append(len(i["input_features"])) or real(i))
    parts = [{"type": "audio", "audio": a, "sampling_rate": 16_000} for a in (clip, clip[:16_000])]
    few = ears.chat([{"role": "user", "content": parts}], max_new_tokens=5)
    assert sizes == [2, 2]
    monkeypatch.setattr("steermoe.inference.ears.BATCH", 8)
    assert ears.chat([{"role": "user", "content": parts}], max_new_tokens=5) == few


def test_a_transcript_may_repeat_whatever_the_llm_was_told(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ears.config, "llm_margin", 0.0)  # plain greedy, as generate writes
    clip = speechlike(2.0)
    wanted = ears.transcribe(clip, sampling_rate=16_000, num_beams=1)
    monkeypatch.setattr(ears.model.llm.generation_config, "repetition_penalty", 50.0)
    assert ears.transcribe(clip, sampling_rate=16_000, num_beams=1) == wanted
    assert ears.transcribe(clip, sampling_rate=16_000) == wanted


def test_longer_than_the_limit_is_refused(ears: Ears) -> None:
    with pytest.raises(AudioError, match="max-duration"):
        ears.transcribe(speechlike(3.0), sampling_rate=16_000, max_duration=2.0)


def test_hear_is_for_lexical_projectors(make: Callable[..., Ears]) -> None:
    with pytest.raises(UsageError, match="projector: linear"):
        make(projector="linear").hear(speechlike(1.0), sampling_rate=16_000)


def test_blank_penalty_drops_fewer_words(make: Callable[..., Ears]) -> None:
    clip = speechlike(4.0)
    counts = []
    for penalty in (0.0, 2.0, 1e4):
        ears = make(blank_penalty=penalty)
        with torch.no_grad():
            ears.model.projector.blank_bias.fill_(9.0)  # type: ignore[union-attr,operator]
        inputs = ears.processor.features([clip])
        counts.append(len(ears.model.hear(**inputs)[0]))
    assert counts[0] <= counts[1] <= counts[2] and counts[0] < counts[2]


def test_frame_scale_reads_the_same_less_surely(make: Callable[..., Ears]) -> None:
    read = []
    for scale in (1.0, 0.5):
        ears = make(frame_scale=scale)
        inputs = ears.processor.features([speechlike(4.0)])
        with torch.inference_mode():
            heard = ears.model.project(*ears.model.encode(inputs["input_features"], inputs["feature_lengths"]))
        read.append(heard.likeliest[0])  # type: ignore[index]
    assert read[0].segments() == read[1].segments() != []
    sure, less = (torch.maximum(clip.blank, clip.chances[:, 0]) for clip in read)
    assert (less < sure).all()


def test_load_gives_back_what_was_saved(make: Callable[..., Ears], tmp_path: Path) -> None:
    ears = make(prompt_vectors=3, seed=5)
    ears.model.save_adapter(tmp_path / "a")
    again = load(tmp_path / "a", dtype=torch.float32)
    assert again.config == ears.config
    clip = speechlike(2.0)
    assert again.transcribe(clip, sampling_rate=16_000) == ears.transcribe(clip, sampling_rate=16_000)
    assert needed_models(tmp_path / "a") == [ears.config.encoder, ears.config.llm]


def test_adapters_side_by_side(make: Callable[..., Ears], tmp_path: Path) -> None:
    """Two adapters and a static one on one encoder and LLM: each hears as it does alone, in any order and thread."""
    made = [make(seed=1), make(seed=2, projector="linear", steer_layers=[1]), make(seed=3, steer=False)]
    for i, one in enumerate(made):
        one.model.save_adapter(tmp_path / str(i))
    clips = [speechlike(1.0 + 0.3 * i, i) for i in range(4)]
    alone = [[h for c in clips for h in hears(one, c)] for one in made]
    first = load(tmp_path / "0", dtype=torch.float32)
    beside = [first, first.with_adapter(tmp_path / "1"), first.with_adapter(tmp_path / "2")]
    assert all(b.model.llm is first.model.llm and b.model.frames is first.model.frames for b in beside)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            for found, wanted in zip(
                pool.map(lambda b: [h for c in clips for h in hears(b, c)], beside), alone, strict=True
            ):
                assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
    with beside[1].model.steering.disabled():
        assert all(torch.equal(f, w) for f, w in zip(hears(first, clips[0]), alone[0], strict=False))
    for name, value in (("pad_to_window", True), ("silence", 1.0)):
        make(**{name: value}).model.save_adapter(tmp_path / "3")
        with pytest.raises(AdapterError, match=name):
            first.with_adapter(tmp_path / "3")
    with pytest.raises(AdapterError, match="another pair"):
        first.with_adapter("tiny")
    pytest.importorskip("peft")
    make(lora_rank=2).model.save_adapter(tmp_path / "4")
    with pytest.raises(AdapterError, match=r"4: its LoRA lies in the encoder"):
        first.with_adapter(tmp_path / "4")
    with pytest.raises(AdapterError, match=r"4: its LoRA lies in the encoder"):
        load(tmp_path / "4", dtype=torch.float32).with_adapter(tmp_path / "0")


def hears(ears: Ears, clip: np.ndarray) -> list[torch.Tensor]:
    with torch.inference_mode():
        inputs = ears.processor.features([clip])
        return ears.model.hear(**inputs)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "xla"])
def test_a_device_that_is_not_there_is_said_at_once(device: str) -> None:
    with pytest.raises(UsageError, match=rf"device='{device}': this torch has cpu"):
        load("nowhere", device=device)


def test_an_adapter_that_is_not_there() -> None:
    for name in ("nowhere", "me/adapter@main", "me/adapter@", f"me/adapter@{'a' * 39}"):  # of the hub, one commit alone
        with pytest.raises(AdapterError, match=r"no adapter there.*its commit \(org/name@<40 hex digits>\)"):
            find_adapter(name)


def test_nan_never_reaches_the_model(ears: Ears) -> None:
    clip = speechlike(1.0)
    clip[100] = np.nan
    with pytest.raises(AudioError):
        ears.transcribe(clip, sampling_rate=16_000)


def test_a_run_s_folder_means_the_adapter_in_it(ears: Ears, tmp_path: Path) -> None:
    ears.model.save_adapter(tmp_path / "run" / "adapter")
    assert find_adapter(tmp_path / "run") == find_adapter(tmp_path / "run" / "adapter") == tmp_path / "run" / "adapter"


def test_windows_are_joined_with_a_space_and_silent_ones_say_nothing(make: Callable[..., Ears]) -> None:
    ears = make()
    projector: Any = ears.model.projector
    first, behind = ears.processor.tokens("very"), ears.processor.tokens(" very")
    turned = torch.arange(len(projector.table))
    turned[first[0]] = behind[0]
    projector.behind = turned
    rows = {i: projector.table[torch.tensor(ids)] for i, ids in enumerate((first, behind))}
    nothing = torch.zeros(1, projector.table.shape[1])
    joined = ears._joined([(rows[0], first), (nothing, []), (rows[0], first)])
    assert torch.equal(joined, torch.cat([rows[0], projector.table[behind[:1]], rows[0][1:]]))
    assert torch.equal(ears._joined([(nothing, []), (nothing, [])]), nothing)
    clip = np.concatenate([speechlike(2.0, seed=i) for i in range(30)])
    parts = [ears.hear(w, sampling_rate=16_000) for w in windows(clip, ears.model.frames.window)]
    assert len(parts) > 1 and ears.hear(clip, sampling_rate=16_000) == " ".join(filter(None, parts))
