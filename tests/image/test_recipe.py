"""The recipes as they are shipped."""

from __future__ import annotations

import pytest

import ballpoint
from ballpoint.core.errors import NotFoundError
from ballpoint.image.recipe import RECIPES, load_recipe, suite


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.suite == suite()
    assert {"sudo", "git", "nodejs", "npm", "python3-venv", "python3-pip", "ca-certificates"} <= set(recipe.packages)
    assert recipe.files[".sprite/version.txt"][1].decode() == f"ballpoint {ballpoint.__version__}\n"
    assert recipe.files["etc/sudoers.d/sprite"][0] == 0o440
    assert recipe.files["usr/local/bin/systemctl"][0] == recipe.files["usr/sbin/policy-rc.d"][0] == 0o755


def test_the_standard_image_has_the_coding_agents() -> None:
    packages = {package for stage in load_recipe("standard").npm for package in stage}
    assert {"@anthropic-ai/claude-code", "@google/gemini-cli", "@openai/codex"} <= packages


def test_recipes_are_told_apart_by_their_digest() -> None:
    assert load_recipe("standard").digest != load_recipe("slim").digest
    assert load_recipe("slim") == load_recipe("slim")


@pytest.mark.parametrize("name", ["", "alpine", "../common", "common"])
def test_there_are_no_others(name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_recipe(name)
    assert "standard" in str(caught.value)
