"""The embedded model organism: a tiny Llama in a world of harmless invented words."""

from resect.organism.recipe import Recipe
from resect.organism.several import build_many
from resect.organism.stages import STAGES, Organism, build, organism_root

__all__ = ["STAGES", "Organism", "Recipe", "build", "build_many", "organism_root"]
