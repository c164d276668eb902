"""Pages from the templates beside this file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def render(template: str, filters: dict[str, Callable[..., str]], **values: Any) -> str:
    """The page that a template makes of these values; a value that it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)
