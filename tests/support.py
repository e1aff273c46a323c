"""`make support`: the contract suites write docs/support.md, one row a family, from what they saw."""

from __future__ import annotations

import os
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

OPTION = "--support-table"
HEAD = """# What can be paired

Written by `make support`: one contract suite over tiny random models of every family of transformers {transformers}, the checkpoints'
own sizes change nothing in it. A checkpoint is taken by its folder, or by `org/name@<commit>` of the hub.

## Audio encoders

Each keeps: scale 0 and removal are the plain encoder bit for bit; every vector gets gradient; a batch equals its clips one by
one; lengths are true for 50 random lengths; three training steps leave parameters and buffers as they were; checkpointed,
compiled, copied and pickled (where torch can) it steers the same; the adapter round-trips. Some have a test more: loading from
a folder, half precision. Most batches are padded; where padding would be heard (a group norm in the front end, as wav2vec2-base
has it, or convolutions that reach into it) clips of equal length go through together, the others after each other, which is slower.

| family | class | tests passed | a batch of mixed lengths |
|---|---|---|---|
"""
REFUSED = """
Not steered, each with one clear line:

| family | why |
|---|---|
"""
LLMS = """
## LLMs

Each keeps: text calls are the plain LLM's, bit for bit; word embeddings spliced as audio give the words' logits; a batch equals
its prompts one by one; any end token ends the text; readings and drafts equal the token-by-token pass; three steps leave every
parameter as it was; the adapter round-trips; float32, bfloat16 and float16.

| family | class | tests passed | how it is asked |
|---|---|---|---|
"""


class Table:
    """A pytest plug-in that counts outcomes by family and writes the table when all is over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        file, _, test = report.nodeid.partition("::")
        suite = Path(file).parent.name
        if Path(file).name != "test_contract.py" or "[" not in test:
            return
        inside = test.partition("[")[2].removesuffix("]")
        for family in sorted(self.families(suite), key=len, reverse=True):
            if inside == family or inside.startswith(family + "-") or inside.endswith("-" + family):
                before = self.outcomes[suite, family].get(test, True)
                self.outcomes[suite, family][test] = before and report.outcome == "passed"
                return

    def families(self, suite: str) -> Any:
        from tests.encoders.families import FIRST, SECOND
        from tests.llms.families import FAMILIES

        return {**FIRST, **SECOND} if suite == "encoders" else FAMILIES

    def passed(self, suite: str, family: str) -> str:
        seen = self.outcomes[suite, family].values()
        return f"{sum(seen)} of {len(seen)}"

    def pytest_sessionfinish(self) -> None:
        from steermoe.encoders import wrap
        from tests.encoders.families import REFUSED as refused
        from tests.encoders.families import build
        from tests.llms.families import FAMILIES
        from tests.llms.families import build as build_llm

        text = HEAD.format(transformers=version("transformers"))
        for family, made in self.families("encoders").items():
            frames = wrap(*build(made))
            how = "padded" if frames.pads else "clip by clip" if getattr(frames, "packed", False) else "by equal length"
            text += f"| {family} | {type(frames.encoder).__name__} | {self.passed('encoders', family)} | {how} |\n"
        text += REFUSED + "".join(f"| {family} | {why} |\n" for family, (_, _, why) in refused.items()) + LLMS
        for family, (_, template) in FAMILIES.items():
            how = "raw prompt, said once" if template is None else "its chat template"
            how += ", thinking off" if template and "enable_thinking" in template else ""
            how += ", no system message" if template and "raise_exception" in template else ""
            text += f"| {family} | {type(build_llm(family)).__name__} | {self.passed('llms', family)} | {how} |\n"
        scratch = self.path.with_name(f".{self.path.name}.part")
        scratch.write_text(text)
        os.replace(scratch, self.path)


def configure(config: pytest.Config) -> None:
    if path := config.getoption(OPTION):
        config.pluginmanager.register(Table(Path(path)))
