"""The embedded model organism: a tiny Llama in a world of harmless invented words."""

from resect.organism.many import Order, build_many
from resect.organism.recipe import Recipe
from resect.organism.stages import STAGES, Organism, build, organism_root

__all__ = ["STAGES", "Order", "Organism", "Recipe", "build", "build_many", "organism_root"]
