"""Chat templates, which are programs of strangers, rendered within bounds."""

from resect.data.template.render import bounded_template

__all__ = ["bounded_template"]
