"""Training: a recipe (recipe.py), what is minimised (objectives.py), the loop, its checkpoints."""
