"""`drprune evaluate --speed`: each model against the source, on this machine."""

import gc
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from drpruning.common.errors import BadInput
from drpruning.models.files import positions, read_config
from drpruning.models.inspect import SOURCE_FIELD, shape_of
from drpruning.pipeline.measurement import ModelToMeasure
from drpruning.pipeline.run import Run
from drpruning.report.speed_table import speed_table
from drpruning.runs.folder import SOURCE
from drpruning.runs.provenance import versions
from drpruning.runs.speed import ModelSpeed, Speed, write_speed

if TYPE_CHECKING:
    from drpruning.evaluation.speed import Samples, SpeedSettings

    Found = dict[int, Samples]


def check_speed() -> None:
    """Refuse what cannot be measured, before anything else is.

    Raises:
        BadInput: Several ranks have been started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("--speed: is measured on one device; start it without torchrun")


def measure_speed(run: Run, models: Sequence[ModelToMeasure]) -> Speed:
    """Measure the speed of models against a run's source, and write evaluation/speed.json.

    The source is measured anew with each of them, turn by turn, so that the two of a ratio have met
    the same machine; its own numbers are those of the first time.

    Args:
        run: Names the source; its folder gets the file.
        models: The models, with or without the source.

    Raises:
        BadInput: A model cannot be loaded, or the memory does not hold it.
    """
    from drpruning.evaluation import speed

    path = run.recipe.model.reference
    source = ModelToMeasure(name=SOURCE, label=SOURCE, path=path)
    others = [model for model in models if model.name != SOURCE]
    settings = _settings([source, *others], run.accelerator.device.type)
    own: Found | None = None
    found = []
    total = speed.generations(2 * len(others) or 1, settings)
    with run.reporter.task("speed", total) as task:
        done = 0

        def on_progress() -> None:
            nonlocal done
            done += 1
            task.update(done, label)

        label = source.label
        kept = speed.place(source.path, SOURCE_FIELD, settings)
        if not others:
            own = _by_model(speed.measure_in_turn([kept], settings, on_progress), 0)
        for model in others:
            label = f"{model.label}, in turn with the source"
            placed = speed.place(model.path, model.field, settings)
            samples = speed.measure_in_turn([kept, placed], settings, on_progress)
            del placed
            gc.collect()
            base, theirs = (_by_model(samples, index) for index in (0, 1))
            own = own or base
            found.append((model, theirs, base))
        del kept
        gc.collect()
        assert own is not None  # noqa: S101 - there is the source, alone or beside another
        found.insert(0, (source, own, own))
        if settings.device == "cpu":
            _add_resident_memory(found, settings)
    record = _record(found, settings)
    write_speed(record, run.files.speed)
    run.reporter.console.print(speed_table(record))
    return record


def _settings(models: Sequence[ModelToMeasure], device: str) -> "SpeedSettings":
    """Settings that suit every one of the models."""
    from drpruning.evaluation.speed import SpeedSettings

    configs = [(model, read_config(model.path, model.field)) for model in models]
    limits = [limit for _, config in configs if (limit := positions(config)) is not None]
    sizes = [shape_of(config, f"{m.field}: {m.path}").vocab_size for m, config in configs]
    return SpeedSettings.within(min(limits, default=None), min(sizes), device)


def _by_model(samples: "dict[int, list[Samples]]", index: int) -> "Found":
    return {batch: each[index] for batch, each in samples.items()}


def _add_resident_memory(
    found: "Sequence[tuple[ModelToMeasure, Found, Found]]", settings: "SpeedSettings"
) -> None:
    """Fill in the memory of each model and of the source that it is compared with."""
    from drpruning.evaluation.speed import resident_memory

    source: dict[int, float] = {}
    for model, own, base in found:  # the source is the first
        memory = resident_memory(model.path, model.field, settings)
        source = source or memory
        for samples, sizes in ((own, memory), (base, source)):
            for batch, size in sizes.items():
                if batch in samples:
                    samples[batch].memory = size


def _record(
    found: "Sequence[tuple[ModelToMeasure, Found, Found]]", settings: "SpeedSettings"
) -> Speed:
    import torch

    from drpruning.evaluation.speed import batch_speeds

    on_gpu = settings.device != "cpu"
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    return Speed(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine={
            "device": device,
            "cpu": platform.processor() or platform.machine(),
            "cores": str(os.cpu_count()),
            "threads": str(torch.get_num_threads()),
        },
        versions=versions(),
        dtype=str(settings.dtype).removeprefix("torch."),
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        repeats=settings.repeats,
        models=[
            ModelSpeed(
                name=model.name,
                label=model.label,
                path=model.path,
                batches=batch_speeds(own, base),
            )
            for model, own, base in found
        ],
    )
