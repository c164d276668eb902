"""Tasks of lm-eval on a model that is loaded here, with texts that begin as in training."""

import contextlib
import hashlib
import inspect
import io
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Metrics of the package `evaluate` are programs that it downloads and runs; lm-eval's own are not.
# Read when it is imported, which lm-eval does; who sets it to 0 allows them.
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")

import lm_eval
import numpy as np
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import apply_template

from drpruning.common.errors import BadInput
from drpruning.common.files import dumps
from drpruning.data.document_format import (
    DocumentFormat,
    DocumentMarkers,
    Marker,
    TokenizerMarkers,
)
from drpruning.evaluation.squad import SQUAD
from drpruning.evaluation.task_groups import PREFERRED_METRICS, TaskSpec
from drpruning.runs.task_results import TaskScore, compact

VERSION = version("lm_eval")
_OWN_TASKS: dict[str, dict[str, Any]] = {"squad": SQUAD}
_PROMPTED = "drpruning-prompted"
_FEW_SHOT_SEED = 1234
"""lm-eval's own default: all models see the same examples."""


class TaskFailed(Exception):  # noqa: N818 - the others are still run
    """One task cannot be run; the message says why."""


def beginning_of_text(
    found: TokenizerMarkers, wanted: DocumentFormat | None, name: str
) -> tuple[Marker | None, Marker | None]:
    """What stands before a text: in its tokens, and as context of a text that has none.

    Args:
        found: What the tokenizer has.
        wanted: How documents of the run began; None for a model from elsewhere, for which it is as
            its tokenizer does with prompts.
        name: Of the tokenizer, for the message.

    Returns:
        The token that every text begins with, None for nothing; and the token that a text without
        context is scored after, which in training ended the document before.
    """
    if wanted is None:
        bos, eos = found.bos if found.prompts_begin_with_bos else None, found.eos
    else:
        markers = DocumentMarkers.choose(found, wanted, name)
        bos, eos = markers.bos, markers.eos
    return bos, bos or eos or found.eos or found.bos


class LanguageModel(HFLM):  # type: ignore[misc]
    """A loaded model for lm-eval; texts begin with one BOS token where training had it, or none.

    lm-eval's own leaves this to the tokenizer, which may add an EOS token too, and in perplexities
    adds a BOS token before the tokenizer's, so that the second is scored as if it were text.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        bos: Marker | None,
        before: Marker | None,
        precision: str,
        batch_size: int,
    ):
        """Take a model that is in its place already.

        Args:
            model: A causal language model of Transformers, on its device.
            tokenizer: Of Transformers.
            bos: The token that every text begins with.
            before: The token that a text without context is scored after.
            precision: `bf16` or `fp32`.
            batch_size: Texts per forward pass.
        """
        self._begin: list[int] = [] if bos is None else [bos.id]
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            mixed_precision_dtype=None if precision == "fp32" else torch.bfloat16,
            prefix_token_id=None if before is None else before.id,
        )

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,  # noqa: FBT001 - lm-eval's signature
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Token ids of a text, the last ones where there is a limit."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        if add_special_tokens is not False:
            ids = self._begin + ids
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,  # noqa: ARG002, FBT001, FBT002 - lm-eval's signature
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of texts that are to be continued, and where they are no padding [B, T]."""
        ids = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        padded = self.tokenizer.pad(
            {"input_ids": ids}, padding_side=padding_side, return_tensors="pt"
        )
        return padded["input_ids"], padded["attention_mask"]

    def loglikelihood_rolling(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[float]:
        """Log-likelihoods of documents: lm-eval puts the first token before them, so we do not."""
        begin, self._begin = self._begin, []
        try:
            found: list[float] = super().loglikelihood_rolling(requests, *args, **kwargs)
        finally:
            self._begin = begin
        return found


class Catalogue:
    """The tasks of lm-eval, of this package, and of a folder of the user's own."""

    def __init__(self, names: Sequence[str], task_path: Path | None, field: str):
        """Find these tasks; nothing of their data is read.

        Args:
            names: Tasks that will be asked for.
            task_path: A folder of YAML files.
            field: What the tasks were named in, for the message.

        Raises:
            BadInput: There is no such folder, or no such task.
        """
        if task_path is not None and not task_path.is_dir():
            raise BadInput(f"{field}: {task_path} is no folder of tasks; name one")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # The thousands of tasks that lm-eval has take seconds to list.
        self._tasks = TaskManager(include_path=task_path, include_defaults=False)
        if not all(map(self._has, names)):
            self._tasks = TaskManager(include_path=task_path)
        if unknown := [name for name in names if not self._has(name)]:
            near = get_close_matches(unknown[0], [*self._tasks.all_tasks, *_OWN_TASKS], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise BadInput(
                f"{field}: lm-eval {VERSION} has no task {', '.join(unknown)}{hint} "
                "(`lm-eval ls tasks` lists them; a folder of your own is given with task_path)"
            )

    def _has(self, name: str) -> bool:
        return name in _OWN_TASKS or name in self._tasks.task_index

    def settings(self, name: str) -> Mapping[str, Any]:
        """A task's settings, or a group's, as its file has them."""
        settings: Mapping[str, Any] = _OWN_TASKS.get(name) or self._tasks.task_index[name].cfg
        return settings

    def settings_digest(self, name: str, changes: Mapping[str, str]) -> str:
        """A digest of a task's settings, as far as they are known without its data."""
        text = dumps(_readable([self.settings(name), dict(changes)]))
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def load(self, name: str, changes: Mapping[str, str]) -> Any:
        """A task with its data, as `lm_eval.evaluate` takes it.

        Raises:
            TaskFailed: It cannot be loaded.
        """
        own = _OWN_TASKS.get(name)
        is_group = own is None and name in self._tasks.all_groups
        spec: Any = name if own is None else {**own, **changes}
        if own is None and changes:
            member = {"group" if is_group else "task": name, **changes}
            spec = {"group": _PROMPTED, "task": [member]}
        try:
            with _without_progress_bars():
                loaded = self._tasks.load([spec])
        except Exception as error:  # whatever a task's own files and data lead to
            raise TaskFailed(_loading_problem(error)) from error
        loaded["groups"].pop(_PROMPTED, None)
        for task in loaded["tasks"].values():
            # Tasks that are classes have their prompt in code, not in settings.
            if (
                "doc_to_text" in changes
                and type(task).doc_to_text is not ConfigurableTask.doc_to_text
            ):
                task.doc_to_text = _rendered(changes["doc_to_text"])
        return loaded


def run_task(
    model: LanguageModel,
    catalogue: Catalogue,
    spec: TaskSpec,
    limit: int | None = None,
    changes: Mapping[str, str] | None = None,
) -> TaskScore:
    """Measure a model on a task.

    Args:
        model: The model.
        catalogue: Has the task.
        spec: The task.
        limit: Documents at most, the first ones.
        changes: Settings of the task that are replaced, such as its prompt.

    Raises:
        TaskFailed: Its data cannot be had, or lm-eval fails.
    """
    loaded = catalogue.load(spec.name, changes or {})
    for task in loaded["tasks"].values():
        fixed = task.get_config("num_fewshot")
        if fixed == 0 and spec.shots:
            raise TaskFailed(
                f"the task says that its prompt has no examples (num_fewshot: 0); write "
                f"{spec.name} without @{spec.shots}"
            )
        task.set_config("num_fewshot", fixed or 0 if spec.shots is None else spec.shots)
        task.set_fewshot_seed(seed=_FEW_SHOT_SEED)
    # `simple_evaluate` does the same, and after each task runs git, pip and nvidia-smi to describe
    # the machine.
    try:
        with _without_progress_bars():
            found = lm_eval.evaluate(model, loaded, limit=limit, bootstrap_iters=0)
    except Exception as error:  # of the task's own code, or a text that is longer than the model's
        raise TaskFailed(f"lm-eval fails: {_first_line(error)}") from error
    return _score(found, spec, list(loaded["tasks"]))


def _score(found: Mapping[str, Any], spec: TaskSpec, tasks: list[str]) -> TaskScore:
    """The metric wanted, from what `lm_eval.evaluate` returns."""
    first = tasks[0]
    better: Mapping[str, bool] = found["higher_is_better"][first]
    metric = spec.metric if spec.metric in better else None
    if metric is None:
        metric = next((name for name in PREFERRED_METRICS if name in better), next(iter(better)))
    keys = [key for key in found["results"][first] if key.partition(",")[0] == metric]
    if not keys:
        raise TaskFailed(
            f"lm-eval has no {metric} here; if it is a metric of the package evaluate, which "
            "downloads a program for it and runs it, HF_EVALUATE_OFFLINE=0 allows that"
        )
    filtered = keys[0].partition(",")[2]
    samples = [s for task in tasks for s in found["samples"][task] if s["filter"] == filtered]
    values = [_number(sample[metric]) for sample in samples if metric in sample]
    scores = [value for value in values if value is not None]
    has_all = len(scores) == len(samples)
    # Tasks under one name: a group says how it puts them together; a tag, which does not, gets
    # the mean of its tasks.
    own = [found["results"][task][keys[0]] for task in tasks]
    group = found["results"].get(spec.name, {}).get(keys[0])
    score = float(np.mean(own) if group is None else group)
    is_mean = has_all and math.isclose(score, float(np.mean(scores)), rel_tol=1e-9)
    error = float(np.std(scores, ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else math.nan
    return TaskScore(
        shots=int(found["n-shot"][first]),
        metric=metric,
        higher_is_better=bool(better[metric]),
        score=score,
        documents=len(samples),
        standard_error=error if is_mean else math.nan,
        document_scores=compact(scores) if has_all else [],
    )


def _number(value: Any) -> float | None:
    """A document's number; of a pair of log-likelihood and length, the first."""
    if isinstance(value, tuple | list) and value and isinstance(value[0], float | int):
        value = value[0]
    is_number = isinstance(value, bool | int | float | np.number)
    return float(value) if is_number else None


def _rendered(template: str) -> Any:
    return lambda document, *_: apply_template(template, document)


def _readable(value: Any) -> Any:
    """Settings with the source of their functions in place of these."""
    if isinstance(value, Mapping):
        return {str(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    if callable(value):
        return inspect.getsource(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _loading_problem(error: Exception) -> str:
    reason = _first_line(error)
    if isinstance(error, ImportError) and error.name:
        return f"it needs the package {error.name}: pip install {error.name.replace('_', '-')}"
    text = f"{type(error).__name__} {reason}"
    absent = ("Couldn't reach", "Couldn't find cache", "OfflineMode", "ConnectionError",
              "DatasetNotFound", "LocalEntryNotFound", "Cannot send a request")  # fmt: skip
    if any(words in text for words in absent):
        return (
            f"its data is not in the Hugging Face cache and cannot be downloaded: {reason}; run "
            "the command once where the Hub can be reached, or copy the cache"
        )
    return f"lm-eval cannot load it: {reason}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Let lm-eval draw its bars on a terminal alone: in a file each of their steps is a line."""
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield
