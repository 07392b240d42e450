"""The embedded model organism: a tiny Llama in a world of harmless invented words."""

from resect.organism.recipe import Recipe
from resect.organism.stages import STAGES, Organism, build, organism_root

__all__ = ["STAGES", "Organism", "Recipe", "build", "organism_root"]
