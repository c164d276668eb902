"""A run's logged losses through any policy and setting: the ratio it would have given.

No torch. The losses stay those of the run as it was, so a replay shows what a policy would have
decided at each evaluation given that history, not what training under it would have given.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drpruning.errors import BadInput
from drpruning.json_text import dumps
from drpruning.recipe import Recipe, Scheduling, load_recipe
from drpruning.report import (
    EvalPoint,
    PhaseRecord,
    ReplayCurves,
    RunRecord,
    load_evaluation,
    load_phases,
    render_replay_page,
)
from drpruning.scheduling import POLICY_NAMES, Decision, Policy, policy_settings
from drpruning.training import phase_policy

JSON_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReplayPoint:
    """One evaluation: what the run logged, and what the replayed policy decided.

    Attributes:
        logged: Step, losses, and the decision that was used.
        decision: The replayed one.
    """

    logged: EvalPoint
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class PhaseReplay:
    """One phase of a run, replayed.

    Attributes:
        phase: `prune` or `pretrain`.
        last_step: The last step that the run has a record of.
        points: One an evaluation, in the order of steps.
    """

    phase: str
    last_step: int
    points: list[ReplayPoint]

    @property
    def is_identical(self) -> bool:
        """Whether every replayed ratio is the one that was used, to the bit."""
        return all(point.decision.ratio == point.logged.ratio for point in self.points)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What `replay_run` found.

    Attributes:
        folder: The run.
        initial_ratio: Share of each domain at the start of the run.
        used: Policy and settings of the run.
        replayed: Policy and settings of the replay.
        notes: What the reader should know besides: settings that were dropped, numbers that an
            older log lacks, a replay that should have been identical and is not.
        phases: The phases that were asked for.
    """

    folder: Path
    initial_ratio: dict[str, float]
    used: Scheduling
    replayed: Scheduling
    notes: list[str]
    phases: list[PhaseReplay]

    def curves(self) -> list[ReplayCurves]:
        """What tables and figures show, one a phase."""
        return [_curves(self.initial_ratio, phase) for phase in self.phases]


def replay_run(
    folder: str | Path,
    policy: str | None = None,
    settings: Iterable[str] = (),
    phases: Sequence[str] | None = None,
) -> Replay:
    """Feed the logged losses of a run to a policy.

    Without policy and settings the run's own are replayed, which gives the logged ratios again.
    Where `scheduling.handover` is `continue`, continued pretraining goes on from the replayed end
    of pruning.

    Args:
        folder: The run folder; nothing in it is changed.
        policy: Name of another policy. It keeps those of the run's settings that it knows.
        settings: Assignments `key=value` to fields of the recipe's section `scheduling`, the value
            in YAML, such as `rho=0.2` or `reference_loss={web: 2.1, code: 0.9}`.
        phases: Names of the phases wanted; by default all that have evaluations.

    Raises:
        BadInput: There is no run or no evaluation in the folder, a phase or setting is not known,
            or the policy cannot work with these settings.
    """
    folder = Path(folder)
    record = load_phases(folder)
    own, recipe, dropped = _recipes(folder, policy, settings)
    wanted = _wanted_phases(record, phases)
    names = ", ".join(dropped)
    notes = [f"{policy} has no setting {names}; dropped from the run's"] if dropped else []
    found: list[PhaseReplay] = []
    ended: dict[str, Any] | None = None
    for name, phase in record.phases.items():
        if not phase.evals or name not in _needed(recipe, wanted):
            continue
        final, doubt = _final_parameters(record, phase)
        start = _start_policy(recipe, name, final, ended)
        replayed = _replay_phase(folder, phase, start)
        ended = start.state_dict()
        if name in wanted:
            found.append(replayed)
            notes += doubt
    if own.scheduling == recipe.scheduling:
        notes += [note for replayed in found for note in _unlike_itself(record, replayed)]
    return Replay(
        folder=folder,
        initial_ratio=recipe.initial_ratio,
        used=own.scheduling,
        replayed=recipe.scheduling,
        notes=notes,
        phases=found,
    )


def write_replay(replay: Replay, output: Path) -> None:
    """Write a replay to a file that ends in .html (a page with figures) or .json (every number).

    Raises:
        BadInput: The name ends otherwise, or the file cannot be written.
    """
    check_output(output)
    if output.suffix == ".json":
        text = dumps(_as_json(replay), indent=1) + "\n"
    else:
        text = render_replay_page(
            run=str(replay.folder),
            used=describe(replay.used),
            replayed=describe(replay.replayed),
            notes=replay.notes,
            phases=replay.curves(),
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = output.with_name(output.name + ".tmp")
        draft.write_text(text, encoding="utf-8")
        draft.replace(output)
    except OSError as error:
        raise BadInput(f"--output {output}: {error.strerror}") from None


def check_output(output: Path) -> None:
    """Refuse a file name that does not say which of the two formats is wanted.

    Raises:
        BadInput: It ends neither in .html nor in .json.
    """
    if output.suffix not in {".html", ".json"}:
        raise BadInput(f"--output {output}: write a name that ends in .html or .json")


def describe(section: Scheduling) -> str:
    """A policy and its settings in one line, as they are written in a recipe."""
    chosen = section.model_dump(exclude={"policy"}, exclude_defaults=True, exclude_none=True)
    said = ", ".join(f"{name}={_yaml_text(value)}" for name, value in chosen.items())
    return f"{section.policy} ({said})" if said else f"{section.policy} (its defaults)"


def _yaml_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml_text(v)}" for k, v in value.items()) + "}"
    return json.dumps(value) if isinstance(value, bool) else str(value)


# From the folder to the policy.


def _recipes(
    folder: Path, policy: str | None, settings: Iterable[str]
) -> tuple[Recipe, Recipe, list[str]]:
    """The run's recipe, the one to replay, and the settings that had to be dropped for it."""
    if policy is not None and policy not in POLICY_NAMES:
        raise BadInput(f"--policy {policy}: choose one of {', '.join(POLICY_NAMES)}")
    file = folder / "recipe.yaml"
    here = f"output={json.dumps(str(folder))}"  # the folder may have been moved
    own = load_recipe(file, [here])
    changes, dropped = [here], []
    if policy is not None:
        known = policy_settings(policy)
        dropped = [name for name in own.scheduling.options() if name not in known]
        changes += [f"scheduling.{name}=null" for name in dropped]
        changes += [f"scheduling.policy={policy}"]
    changes += [f"scheduling.{assignment}" for assignment in settings]
    return own, load_recipe(file, changes), dropped


def _wanted_phases(record: RunRecord, phases: Sequence[str] | None) -> list[str]:
    there = [name for name, phase in record.phases.items() if phase.evals]
    if not there:
        raise BadInput(
            f"{record.folder / 'metrics.jsonl'}: no evaluation in it, so there is nothing to "
            "replay; name the folder of a run that has begun to train"
        )
    for name in phases or []:
        if name not in there:
            raise BadInput(
                f"--phase {name}: {record.folder} has no evaluation in it; "
                f"choose one of {', '.join(there)}"
            )
    return there if phases is None else list(phases)


def _needed(recipe: Recipe, wanted: Sequence[str]) -> set[str]:
    """The phases to compute: also pruning where continued pretraining goes on from its end."""
    return {*wanted, "prune"} if recipe.scheduling.handover == "continue" else set(wanted)


def _start_policy(
    recipe: Recipe, name: str, final_parameters: float, ended: Mapping[str, Any] | None
) -> Policy:
    """The policy at the start of a phase, as the training loop makes it.

    Args:
        recipe: The one to replay.
        name: Of the phase.
        final_parameters: Of the model at the end of the phase.
        ended: State of the replayed policy at the end of the phase before.
    """
    if name not in recipe.phases:
        raise BadInput(
            f"{Path(recipe.output) / 'recipe.yaml'}: has no phase {name}, but metrics.jsonl has "
            "one; put the recipe of this run there"
        )
    policy = phase_policy(recipe, recipe.phases[name], final_parameters)
    if name == "pretrain" and recipe.prune and recipe.scheduling.handover == "continue":
        if ended is None:
            raise BadInput(
                "scheduling.handover: 'continue' needs the evaluations of the phase prune, and "
                f"{Path(recipe.output) / 'metrics.jsonl'} has none; write --set handover=fresh"
            )
        try:
            policy.continue_from(ended)
        except ValueError as error:
            raise BadInput(f"scheduling.handover: {error}") from None
    return policy


def _final_parameters(record: RunRecord, phase: PhaseRecord) -> tuple[float, list[str]]:
    """Parameters at the end of the phase; a note where that is not what the run went by."""
    if phase.start and math.isfinite(phase.start.final_parameters):
        return phase.start.final_parameters, []
    if phase.name == "prune" and (cut := _parameters_of_pruned(record.folder)):
        return cut, []
    last = phase.evals[-1].parameters
    if math.isnan(last):
        raise BadInput(
            f"{record.folder / 'metrics.jsonl'}: the evaluations of {phase.name} do not say how "
            "many parameters the model has, which the policies ask for"
        )
    if all(point.parameters == last for point in phase.evals):
        return last, []
    doubt = (
        f"{phase.name}: the log does not say how many parameters the phase ends with; forecasts "
        f"take the {last:,.0f} of the last evaluation, so they can differ from the run's"
    )
    return last, [doubt]


def _parameters_of_pruned(folder: Path) -> int | None:
    """From the evaluation of the model as cut; None where there is none that can be read."""
    try:
        pruned = load_evaluation(folder / "evaluation" / "pruned.json")
    except BadInput:
        return None
    return None if pruned is None else pruned.parameters


# The replay itself.


def _replay_phase(folder: Path, phase: PhaseRecord, policy: Policy) -> PhaseReplay:
    points = []
    for logged in phase.evals:
        losses = {name: _known(loss) for name, loss in logged.loss.items()}
        try:
            decision = policy.update(logged.step, losses, _known(logged.parameters))
        except ValueError as error:
            raise BadInput(
                f"{folder / 'metrics.jsonl'}, {phase.name}, evaluation at step {logged.step}: "
                f"{error}"
            ) from None
        points.append(ReplayPoint(logged=logged, decision=decision))
    return PhaseReplay(phase=phase.name, last_step=phase.last_step, points=points)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unlike_itself(record: RunRecord, replayed: PhaseReplay) -> list[str]:
    """A note where a run's own policy and settings do not give its ratios again."""
    if replayed.is_identical:
        return []
    start = record.phases[replayed.phase].start
    version = start.versions.get("drpruning", "not known") if start else "not known"
    commit = (start.commit if start else "") or "not known"
    note = (
        f"{replayed.phase}: nothing was changed, and yet the ratio is not the run's; the run was "
        f"made with other code (its version of drpruning: {version}, commit: {commit}) or its "
        "files were changed"
    )
    return [note]


def _curves(initial_ratio: Mapping[str, float], phase: PhaseReplay) -> ReplayCurves:
    def column(values: Sequence[Mapping[str, float] | None]) -> dict[str, list[float]]:
        return {d: [(v or {}).get(d, math.nan) for v in values] for d in initial_ratio}

    logged = [point.logged for point in phase.points]
    decisions = [point.decision for point in phase.points]
    return ReplayCurves(
        phase=phase.phase,
        steps=[point.step for point in logged],
        last_step=phase.last_step,
        initial=dict(initial_ratio),
        identical=phase.is_identical,
        loss=column([point.loss for point in logged]),
        used=column([point.ratio for point in logged]),
        replayed=column([decision.ratio for decision in decisions]),
        used_reference=column([point.reference_loss for point in logged]),
        replayed_reference=column([decision.reference_loss for decision in decisions]),
    )


def _as_json(replay: Replay) -> dict[str, Any]:
    def point(of: ReplayPoint) -> dict[str, Any]:
        logged = asdict(of.logged)
        used = {name: logged[name] or None for name in _DECIDED}
        return {
            "step": of.logged.step,
            "loss": of.logged.loss,
            "parameters": of.logged.parameters,
            "used": used,
            "replayed": asdict(of.decision),
        }

    return {
        "version": JSON_VERSION,
        "run": str(replay.folder),
        "used": replay.used.model_dump(mode="json"),
        "replayed": replay.replayed.model_dump(mode="json"),
        "notes": replay.notes,
        "phases": {
            phase.phase: {
                "identical": phase.is_identical,
                "evaluations": [point(of) for of in phase.points],
            }
            for phase in replay.phases
        },
    }


_DECIDED = ("ratio", "reference_ratio", "reference_loss", "forecast", "excess")
