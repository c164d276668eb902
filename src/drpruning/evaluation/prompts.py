"""Templates that put one task in several wordings, for the significance of a difference (B.3)."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from drpruning.common.errors import BadInput
from drpruning.recipe import Section
from drpruning.recipe.yaml_io import read_yaml

_FILE = Path(__file__).with_name("prompts.yaml")
_PLACE = re.compile(r"\{(\w+)\}")
_LAST = "{text}"


def _template(text: str) -> str:
    if re.search(r"\{[{%#]", text):
        raise ValueError("write a field as {name}; {{, {% and {# are Jinja's")
    return text


Template = Annotated[str, AfterValidator(_template)]
"""Text with `{field}` in it, and nothing that Jinja would read."""


class TaskPrompt(Section):
    """How the documents of a task fill the templates of its kind."""

    kind: str
    """Name of the kind."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Name in the templates -> Jinja expression over the columns of a document."""
    contexts: Annotated[list[str], Field(min_length=2)] | None = None
    """In place of fields: a Jinja expression for each context that the continuation may have."""


class Prompts(Section):
    """Templates of each kind of task, and the kind of each task."""

    kinds: dict[str, Annotated[list[Template], Field(min_length=1)]] = Field(default_factory=dict)
    """Kind -> templates."""
    tasks: dict[str, TaskPrompt] = Field(default_factory=dict)
    """Task, as lm-eval names it -> how it fills them."""

    @model_validator(mode="after")
    def _templates_can_be_filled(self) -> Self:
        for task, prompt in self.tasks.items():
            if prompt.kind not in self.kinds:
                raise ValueError(f"tasks.{task}.kind: there is no kind {prompt.kind!r}")
            for template in self.kinds[prompt.kind]:
                if prompt.contexts is not None:
                    if _PLACE.findall(template) != ["text"] or not template.endswith(_LAST):
                        raise ValueError(
                            f"tasks.{task}.contexts: the template {template!r} of {prompt.kind} "
                            f"does not end with {_LAST}, or has another field"
                        )
                elif missing := sorted(set(_PLACE.findall(template)) - prompt.fields.keys()):
                    raise ValueError(
                        f"tasks.{task}.fields: {missing[0]} is missing, which a template of "
                        f"{prompt.kind} has"
                    )
        return self

    def count(self, task: str) -> int:
        """The number of prompts of a task."""
        return len(self.kinds[self.tasks[task].kind])

    def settings(self, task: str, number: int) -> dict[str, str]:
        """The settings of a task of lm-eval that put it in other words.

        Args:
            task: One of `tasks`.
            number: Of the template, from 0 on.
        """
        prompt = self.tasks[task]
        template = self.kinds[prompt.kind][number]
        if prompt.contexts is None:
            text = _PLACE.sub(lambda match: f"{{{{ {prompt.fields[match[1]]} }}}}", template)
            return {"doc_to_text": text}
        before = json.dumps(template.removesuffix(_LAST))  # a Jinja string is written like JSON's
        contexts = ", ".join(f"{before} ~ ({context})" for context in prompt.contexts)
        return {"doc_to_choice": f"{{{{ [{contexts}] }}}}"}


@cache
def package_prompts() -> Prompts:
    """The templates that ship with the package: five of each kind."""
    return Prompts.model_validate(read_yaml(_FILE, "prompts"))


def load_prompts(file: Path | None) -> Prompts:
    """The package's templates with those of a file on top.

    Args:
        file: In the form of the package's prompts.yaml; None: nothing on top.

    Raises:
        BadInput: The file cannot be read, or is not of that form.
    """
    package = package_prompts()
    if file is None:
        return package
    own = read_yaml(file, "--prompts")
    if not isinstance(own, dict):
        raise BadInput(f"--prompts {file}: expected a mapping with kinds and tasks")
    merged = {
        key: value | own[key] if key in own and isinstance(own[key], dict) else own.get(key, value)
        for key, value in package.model_dump().items()
    }
    try:
        return Prompts.model_validate(own | merged)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    reason = problem["msg"].removeprefix("Value error, ")
    raise BadInput(f"--prompts {file}: {f'{place}: ' if place else ''}{reason}; correct it")
