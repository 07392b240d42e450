"""From a model and examples to scores, and to a mask in rounds."""

from resect.attribution.engine import attribute, attribute_many
from resect.attribution.settings import AttributeSettings, Origin, Pass

__all__ = ["AttributeSettings", "Origin", "Pass", "attribute", "attribute_many"]
