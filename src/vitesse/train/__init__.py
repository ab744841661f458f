"""Training: a recipe, a loop that resumes exactly, checkpoints."""

from vitesse.train.loop import TrainResult, train
from vitesse.train.recipe import Recipe
from vitesse.train.recipe_files import load_recipe

__all__ = ["Recipe", "TrainResult", "load_recipe", "train"]
