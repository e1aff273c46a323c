"""A run in one YAML file: the pair and its steering, the data, and one or more stages of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import SteerMoEConfig, build
from ..errors import UsageError

OBJECTIVES = ("ctc", "phones", "ce", "copy", "distill", "balance")
PARTS = ("steering", "projector", "phones", "prompt_vectors", "lora")


@dataclass
class Rates:
    """Learning rates by group; the paper's are 1e-2, 1e-3 and 1e-4."""

    vectors: float = 1e-2
    """Steering vectors and layer scales."""
    router: float = 1e-3
    """The router that mixes them."""
    projector: float = 1e-4
    """All of the projector."""
    phones: float = 2e-3
    """What hears phones."""
    prompt: float = 1e-2
    """Learned prompt vectors."""
    lora: float = 1e-4
    """LoRA on the encoder, where `model.lora_rank` asks for it."""


@dataclass
class Stage:
    """Some steps of one objective over some of the parts."""

    steps: int = 1000
    """Times that what learns is changed."""
    objectives: dict[str, float] = field(default_factory=lambda: {"ctc": 1.0})
    """Weights of `ctc`, `phones`, `ce`, `copy`, `distill` and `balance`: see training/objectives.py."""
    trains: list[str] = field(default_factory=lambda: ["steering", "projector"])
    """Parts that learn: steering, projector, phones, prompt_vectors, lora."""
    rates: Rates = field(default_factory=Rates)
    warmup: int = 50
    """Steps of linear warm-up; then `decay` brings the rate down to its share `floor`."""
    decay: Literal["cosine", "linear"] = "cosine"
    floor: float = 0.02
    weight_decay: float = 0.0
    """AdamW's, of everything that learns."""
    clip: float = 1.0
    """Largest gradient norm."""
    batch_seconds: float = 100.0
    """Audio in one batch, padding included."""
    batch_clips: int | None = None
    """The most clips in one batch; as many as `batch_seconds` hold when absent."""
    accumulate: int = 1
    """Batches of one step, one after the other; on several processes each takes so many."""
    negatives: int = 2000
    """Tokens, drawn anew each step, that `ctc` scores beside those spoken in the batch; 0: the whole vocabulary."""
    dropout: float = 0.0
    """Share of a lexical projector's inputs left out under `ctc`, and of what hears phones: against learning the training set by heart."""
    response_tokens: int = 64
    """The longest response that the LLM writes to a transcript for `distill`."""
    keep_frames: bool = False
    """Keep what enters the first layer that learns, in memory and, until the run ends, in `out`/kept (51 kB a second
    for Whisper-base, 3.7 GB for 20 hours): a clip passes the layers below once. With data.augment or data.codec each clip is then
    changed once, too."""

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise UsageError(f"objectives: {name!r} is none of {', '.join(OBJECTIVES)}")
        for name in self.trains:
            if name not in PARTS:
                raise UsageError(f"trains: {name!r} is none of {', '.join(PARTS)}")
        if not self.objectives or not self.trains:
            raise UsageError(f"objectives={self.objectives}, trains={self.trains}: each needs at least one")
        if self.steps < 1 or self.batch_seconds <= 0 or self.negatives < 0:
            raise UsageError(
                f"steps={self.steps}, batch_seconds={self.batch_seconds}, negatives={self.negatives}: the first two "
                "must be positive, the last not negative"
            )
        if self.accumulate < 1 or (self.batch_clips is not None and self.batch_clips < 1):
            raise UsageError(f"accumulate={self.accumulate}, batch_clips={self.batch_clips}: must be at least 1")
        if self.response_tokens < 1:
            raise UsageError(f"response_tokens={self.response_tokens}: must be at least 1")
        if self.clip <= 0:
            raise UsageError(f"clip={self.clip}: the largest gradient norm must be positive; give .inf for no limit")
        if self.weight_decay < 0 or min(vars(self.rates).values()) < 0:
            raise UsageError(f"weight_decay={self.weight_decay}, rates={self.rates}: none may be negative")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout={self.dropout}: must be at least 0 and below 1")


@dataclass
class Source:
    """One of the training sources, where more than its name is to be said of it."""

    source: str
    """NAME[:SPLIT] or a manifest, as `steermoe evaluate --data` takes it."""
    root: str | None = None
    """The folder where it lies, if it is not fetched."""
    weight: float = 1.0
    """How often each of its clips is heard in an epoch."""
    prompts: list[str] = field(default_factory=list)
    """What `ce` and `distill` ask of its clips, drawn anew each time. {prompt} and {language} stand for the clip's own."""

    tools: str | None = None
    """Functions that the LLM is shown beside what it hears, for `distill`: a file as `steermoe chat --tools` takes it."""
    tool_choice: Literal["auto", "required"] = "auto"
    """`required`: the response that it writes to the transcript is a call, valid against its schema."""

    def __post_init__(self) -> None:
        if self.tool_choice == "required" and not self.tools:
            raise UsageError(
                f"{self.source}: tool_choice: required, but no tools are given: name their file, tools: FILE"
            )
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"{self.source}: weight={self.weight:g}: must be above 0; leave the source out instead")


@dataclass
class Data:
    """What is heard."""

    train: list[str | Source] = field(default_factory=lambda: ["synth:train"])
    """Sources (NAME[:SPLIT]) or manifests; or {source: ..., root: ..., weight: ..., prompts: [...]}."""
    prompts: dict[str, list[str]] = field(default_factory=dict)
    """By language (`en`, `zh`, `""` where it is not said): what is asked of clips that have no prompt, nor does their source."""
    valid: str | None = None
    """A source whose word error rate is measured now and then, as Chinese or English by its clips' language."""
    valid_root: str | None = None
    """The folder where that lies, if it is not fetched."""
    valid_clips: int = 96
    """How many of its clips, the same each time."""
    min_words: int = 1
    """Clips with fewer words are left out, and counted. 0 keeps those without any: `ctc` then learns to hear nothing in them."""
    max_clip_seconds: float = 30.0
    """Longer clips are left out, and counted; so are those that are longer than the encoder's window."""
    max_skipped: float = 0.01
    """Clips that cannot be read are skipped and listed in `out`/skipped.jsonl; more than this share of them end the run."""
    digits: bool = False
    """English numbers from ten on are written in digits, whatever their clips' texts do: "seventy two" is learned as "72"."""
    augment: bool = False
    """Speed, microphone, room, band limits, noise and gain, drawn per clip and step."""
    codec: float = 0.0
    """The share of clips that pass a lossy codec (MP3, Opus, Vorbis, GSM) at a low rate, drawn per clip and step."""
    mask: bool = False
    """Masks over stretches of time and frequency of the spectrogram, drawn per clip and step."""

    @property
    def sources(self) -> list[Source]:
        return [Source(item) if isinstance(item, str) else item for item in self.train]

    def __post_init__(self) -> None:
        for name, least in (("valid_clips", 1), ("min_words", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not 0 <= self.codec <= 1:
            raise UsageError(f"codec={self.codec:g}: a share of the clips, from 0 to 1")
        if not 0 <= self.max_skipped < 1:
            raise UsageError(f"max_skipped={self.max_skipped:g}: a share, at least 0 and below 1")
        if not self.train:
            raise UsageError("train: names no source, so there is nothing to hear")


@dataclass
class Recipe:
    """Everything `steermoe train` needs."""

    model: SteerMoEConfig = field(default_factory=SteerMoEConfig)
    data: Data = field(default_factory=Data)
    stages: list[Stage] = field(default_factory=lambda: [Stage()])
    init_from: str | None = None
    """An adapter to start from, else everything starts at random. Of one with another LLM the steering is kept."""
    out: str = "runs/unnamed"
    """Folder of the run: metrics, checkpoints, and at last `adapter`."""
    seed: int = 0
    """Of all that is drawn: what the adapter begins as, the order of clips, prompts, augmentation."""
    log_every: int = 10
    """Steps between two lines on the screen; metrics.jsonl has every step."""
    valid_every: int = 200
    """Steps between two looks at `data.valid`; also at the end."""
    checkpoint_every: int = 100
    """Steps between two checkpoints; also when interrupted."""
    gradient_checkpointing: bool = False
    """Compute the encoder's layers twice instead of keeping what they computed: slower, in a fraction of the memory."""
    shard_llm: bool = False
    """Share the frozen LLM out over all processes (FSDP2), for one that is larger than a card."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the frozen weights; what is trained is float32. `auto`: bfloat16 where the hardware multiplies it."""
    threads: int = 0
    """CPU threads for torch; 0 leaves its default."""

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"threads={self.threads}: cannot be negative")
        for name in ("log_every", "valid_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.stages:
            raise UsageError("stages: there is none, so nothing would be trained")
        if self.data.mask and any(stage.keep_frames for stage in self.stages):
            raise UsageError("data.mask draws anew each step, and keep_frames keeps what was drawn once: choose one")
        if tools := [source.tools for source in self.data.sources if source.tools]:
            if not any("distill" in stage.objectives for stage in self.stages):
                raise UsageError(
                    f"tools: {tools[0]}: distill alone shows them, and no stage has it: add it to objectives, or leave tools out"
                )
            if self.shard_llm:
                raise UsageError(
                    f"tools: {tools[0]}: calls are not written by an LLM that is shared out: leave out tools or shard_llm"
                )
        lexical = self.model.projector == "lexical"
        for stage in self.stages:
            steers = {"steering"} if self.model.steer else set()
            hears = set(stage.trains) & ({"projector", "lora"} | steers)
            if "balance" in stage.objectives and not (
                steers and "steering" in stage.trains and len(stage.objectives) > 1
            ):
                raise UsageError(
                    "balance spreads the gates that are trained: it goes with steering and another objective"
                )
            if "lora" in stage.trains and not self.model.lora_rank:
                raise UsageError("trains: lora, but model.lora_rank is 0")
            if "phones" in {*stage.trains, *stage.objectives} and not self.model.phones:
                raise UsageError("phones: nothing hears them: set model.phones: true")
            if "phones" in stage.trains and "phones" not in stage.objectives:
                raise UsageError("trains: phones, but no objective teaches them: add phones to objectives")
            taught = set(stage.trains) & ({"phones", "lora"} | steers) if "phones" in stage.objectives else set()
            hears -= taught
            for name in {"ctc", "copy"} & set(stage.objectives):
                if not lexical:
                    raise UsageError(f"objective {name} needs projector: lexical, not {self.model.projector}")
            if "ctc" not in stage.objectives and lexical and hears and not self.model.temperature:
                raise UsageError(
                    "ce or distill alone give a lexical projector and its steering no gradient: keep ctc in objectives, or have it "
                    "read mixtures (model.temperature above 0) once it finds words"
                )
            if not hears | taught and (
                not {"ce", "copy", "distill"} & set(stage.objectives) or "prompt_vectors" not in stage.trains
            ):
                raise UsageError(
                    f"objectives {list(stage.objectives)} give nothing in trains={stage.trains} a gradient"
                )
            if "prompt_vectors" in stage.trains and not self.model.prompt_vectors:
                raise UsageError("trains: prompt_vectors, but model.prompt_vectors is 0")


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe; ``overrides`` are ``dotted.key=value``, values read as YAML.

    A recipe that names another as its ``base`` (a path beside it) says only what differs; lists are replaced whole. Raises UsageError that names the file and key; an unknown key comes with its nearest known one.
    """
    content = _read(Path(path))
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"override {override!r}: write it as key=value, such as stages.0.steps=200")
        import yaml

        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"override {override!r}: {value!r} is not YAML") from None
        _override(content, key.split("."), parsed, override)
    return build(Recipe, content, str(path))


def _read(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """The values of a recipe, laid over those of its ``base``."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = path.parent / str(content.pop("base"))
    if base.resolve() in {p.resolve() for p in (path, *above)}:
        raise UsageError(f"{path}: base: {base} is based on this recipe")
    return _laid_over(_read(base, (path, *above)), content)


def _laid_over(base: Any, content: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(content, dict)):
        return content
    return {**base, **{key: _laid_over(base.get(key), value) for key, value in content.items()}}


def _override(content: Any, keys: list[str], value: Any, said: str) -> None:
    for key in keys[:-1]:
        if isinstance(content, list):
            if not key.isdigit() or int(key) >= len(content):
                raise UsageError(f"override {said!r}: {key!r} is no item of a list of {len(content)}")
            content = content[int(key)]
        elif isinstance(content, dict):
            content = content.setdefault(key, {})
    if isinstance(content, list):
        if not keys[-1].isdigit() or int(keys[-1]) >= len(content):
            raise UsageError(f"override {said!r}: {keys[-1]!r} is no item of a list of {len(content)}")
        content[int(keys[-1])] = value
    elif isinstance(content, dict):
        content[keys[-1]] = value
    else:
        raise UsageError(f"override {said!r}: {'.'.join(keys[:-1]) or 'the recipe'} holds no keys")
