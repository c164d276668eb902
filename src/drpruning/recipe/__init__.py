"""What a run is: one strict, frozen description, read from YAML. This room never imports torch."""

from drpruning.recipe.distillation import Distill
from drpruning.recipe.domains import Domain
from drpruning.recipe.evaluate import Evaluate
from drpruning.recipe.load import load_recipe, parse_recipe, read_values
from drpruning.recipe.model import ModelSection, Target
from drpruning.recipe.phases import Phase, Pretrain, Prune, Stop
from drpruning.recipe.scheduling import ReferenceModels, Scheduling, Start
from drpruning.recipe.schema import Checkpoint, Data, Recipe, Training
from drpruning.recipe.section import Section

__all__ = [
    "Checkpoint",
    "Data",
    "Distill",
    "Domain",
    "Evaluate",
    "ModelSection",
    "Phase",
    "Pretrain",
    "Prune",
    "Recipe",
    "ReferenceModels",
    "Scheduling",
    "Section",
    "Start",
    "Stop",
    "Target",
    "Training",
    "load_recipe",
    "parse_recipe",
    "read_values",
]
