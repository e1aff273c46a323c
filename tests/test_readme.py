"""The README's commands, recipes and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from steermoe.arguments import parser
from steermoe.training.recipe import load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line[2:].split("#")[0] for line in README.splitlines() if line.startswith("$ ")]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("steermoe ")])
def test_command_parses(command: str) -> None:
    assert parser().parse_args(shlex.split(command)[1:]).command


@pytest.mark.parametrize("target", sorted({c.split()[1] for c in COMMANDS if c.startswith("make ")}))
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.stages and recipe.data.train


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) >= 5 and len(RECIPES) >= 3
