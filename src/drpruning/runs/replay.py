"""A run's logged losses through any policy and setting: the ratio it would have given.

No torch. The losses stay those of the run as it was, and so do the data that gave them, so a replay
shows what a policy would have decided at each evaluation given that history, not what training
under it would have given.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpruning.common.console import Reporter, Task
from drpruning.common.errors import BadInput
from drpruning.recipe import Recipe, ReferenceModels, Scheduling, load_recipe
from drpruning.recipe.yaml_io import parse_yaml
from drpruning.runs.counterfactuals import (
    ForecastCheck,
    ForecastPoint,
    check_forecasts,
    churns,
    trained_shares,
)
from drpruning.runs.folder import PRUNED, RunFolder, rebased
from drpruning.runs.lines import EvalPoint
from drpruning.runs.policy import hand_over, phase_policy
from drpruning.runs.records import PhaseRecord, RunRecord, load_evaluation, load_phases
from drpruning.runs.reference_losses import OfOtherModels, ReferenceLosses
from drpruning.runs.reference_origin import bases
from drpruning.runs.replay_curves import ReplayCurves
from drpruning.scheduling import POLICY_NAMES, Decision, Policy, policy_settings

PATIENCE = 2.0
"""Seconds after which a replay shows how far it is."""


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
        total_steps: The steps that it was to have; None where that was not recorded.
        has_ended: Whether the run has completed this phase.
        points: One for each evaluation, in the order of steps.
    """

    phase: str
    last_step: int
    total_steps: int | None
    has_ended: bool
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
        """What tables and figures show, one for each phase."""
        return [_curves(self.initial_ratio, phase) for phase in self.phases]


def replay_run(
    folder: str | Path,
    policy: str | None = None,
    settings: Iterable[str] = (),
    phases: Sequence[str] | None = None,
    reporter: Reporter | None = None,
) -> Replay:
    """Feed the logged losses of a run to a policy.

    Without policy and settings the run's own are replayed, which gives the logged ratios again.
    Where `scheduling.handover` is `continue`, continued pretraining starts from the replayed end of
    pruning.

    Args:
        folder: The run folder; nothing in it is changed.
        policy: Name of another policy. It keeps those of the run's settings that it knows.
        settings: Assignments `key=value` to fields of the recipe's section `scheduling`, the value
            in YAML, such as `rho=0.2` or `reference_loss={web: 2.1, code: 0.9}`; `scheduling.`
            may stand before the key.
        phases: Names of the phases wanted; by default all that have evaluations.
        reporter: Shows a bar where the replay takes more than `PATIENCE` seconds.

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
    if recipe.untrained:
        notes.append(
            f"only evaluated, so no policy sees their losses: {', '.join(recipe.untrained)}"
        )
    needed = [record.phases[name] for name in _needed(record, recipe, wanted)]
    found: list[PhaseReplay] = []
    ended: dict[str, Any] | None = None
    with _progress(reporter, sum(len(phase.evals) for phase in needed)) as advance:
        for phase in needed:
            final, doubt = _final_parameters(record, phase)
            start = _start_policy(recipe, phase.name, final, ended)
            replayed = _replay_phase(folder, phase, start, recipe.untrained, advance)
            ended = start.state_dict()
            if phase.name in wanted:
                found.append(replayed)
                notes += doubt
    if own.scheduling == recipe.scheduling:
        name = own.scheduling.policy
        notes += [note for replayed in found for note in _unlike_itself(record, replayed, name)]
    return Replay(
        folder=folder,
        initial_ratio=recipe.initial_ratio,
        used=own.scheduling,
        replayed=recipe.scheduling,
        notes=notes,
        phases=found,
    )


# From the folder to the policy.


def _recipes(
    folder: Path, policy: str | None, settings: Iterable[str]
) -> tuple[Recipe, Recipe, list[str]]:
    """The run's recipe, the one to replay, and the settings that had to be dropped for it."""
    if policy is not None and policy not in POLICY_NAMES:
        raise BadInput(f"--policy {policy}: choose one of {', '.join(POLICY_NAMES)}")
    file = RunFolder(folder).recipe
    own = _recipe(file, [])
    changes, dropped = [], []
    if policy is not None:
        known = policy_settings(policy)
        dropped = [name for name in own.scheduling.options() if name not in known]
        if "reference_loss" not in known and isinstance(own.scheduling.reference_loss, str):
            changes += ["scheduling.reference_loss=null"]  # a word, which is no option
        changes += [f"scheduling.{name}=null" for name in dropped]
        changes += [f"scheduling.policy={policy}"]
    changes += [f"scheduling.{_assignment(given)}" for given in settings]
    return own, _recipe(file, changes), dropped


def _recipe(file: Path, changes: Sequence[str]) -> Recipe:
    """A recipe whose run folder is where the file lies: the folder may have been moved."""
    return rebased(load_recipe(file, changes), file.parent)


def _assignment(given: str) -> str:
    """An assignment to a field of the section `scheduling`, without the section's name."""
    key, equals, value = given.partition("=")
    field = key.removeprefix("scheduling.")
    if not equals or not all(field.split(".")):
        raise BadInput(f"--set {given}: write --set KEY=VALUE, such as --set rho=0.2")
    parse_yaml(value, f"--set {key}")
    return f"{field}={value}"


def _wanted_phases(record: RunRecord, phases: Sequence[str] | None) -> list[str]:
    evaluated = list(record.evaluated)
    if not evaluated:
        raise BadInput(
            f"{RunFolder(record.folder).metrics}: no evaluation in it, so there is nothing to "
            "replay; name the folder of a run that has begun to train"
        )
    for name in phases or []:
        if name not in evaluated:
            raise BadInput(
                f"--phase {name}: {record.folder} has no evaluation in it; "
                f"choose one of {', '.join(evaluated)}"
            )
    return evaluated if phases is None else list(phases)


def _needed(record: RunRecord, recipe: Recipe, wanted: Sequence[str]) -> list[str]:
    """The phases to compute: also pruning, where continued pretraining starts from its end."""
    before = {"prune"} if recipe.scheduling.handover == "continue" else set()
    return [name for name in record.evaluated if name in {*wanted, *before}]


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
            f"{RunFolder(Path(recipe.output)).recipe}: has no phase {name}, but metrics.jsonl has "
            "one; put the recipe of this run there"
        )
    if (models := recipe.reference_models) is not None:
        _check_measured(Path(recipe.output), models, recipe.initial_ratio)
    policy = phase_policy(recipe, recipe.phases[name], final_parameters)
    if name == "pretrain" and recipe.prune and recipe.scheduling.handover == "continue":
        if ended is None:
            raise BadInput(
                "scheduling.handover: 'continue' needs the evaluations of the phase prune, and "
                f"{RunFolder(Path(recipe.output)).metrics} has none; write --set handover=fresh"
            )
        try:
            hand_over(policy, ended)
        except ValueError as error:
            raise BadInput(f"scheduling.handover: {error}") from None
    return policy


def _check_measured(folder: Path, models: ReferenceModels, domains: Collection[str]) -> None:
    """Refuse models whose losses the run has not measured, and say how to."""
    named = " ".join(f"--model {model}" for model in models.models)
    remedy = (
        f"measure with `drprune reference-loss {folder} {named} --output FILE`, then write --set "
        "start=FILE in place of reference_loss"
    )
    try:
        if RunFolder(folder).reference_loss.is_file():
            ReferenceLosses.read(folder, models, domains)
            return
    except OfOtherModels:
        pass
    except BadInput as error:
        raise BadInput(f"{error}; {remedy}") from None
    raise BadInput(
        f"scheduling.reference_loss: the run has not measured {', '.join(models.models)}; {remedy}"
    )


def _final_parameters(record: RunRecord, phase: PhaseRecord) -> tuple[float, list[str]]:
    """Parameters at the end of the phase; a note where that is not what the run went by."""
    if phase.start and math.isfinite(phase.start.final_parameters):
        return phase.start.final_parameters, []
    if phase.name == "prune" and (cut := _parameters_of_pruned(record.folder)):
        return cut, []
    last = phase.evals[-1].parameters
    if math.isnan(last):
        raise BadInput(
            f"{RunFolder(record.folder).metrics}: the evaluations of {phase.name} do not say how "
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
        pruned = load_evaluation(RunFolder(folder).evaluation(PRUNED))
    except (BadInput, OSError):
        return None
    return None if pruned is None else pruned.parameters.total


# The replay itself.


@contextmanager
def _progress(reporter: Reporter | None, total: int) -> Iterator[Callable[[], None]]:
    """What to call after each of so many evaluations; there is a bar once it has taken a while."""
    began, done = time.monotonic(), 0
    bar: Task | None = None
    with ExitStack() as stack:

        def advance() -> None:
            nonlocal bar, done
            done += 1
            if bar is None and reporter is not None and time.monotonic() - began > PATIENCE:
                bar = stack.enter_context(reporter.task("replaying", total, done))
            if bar is not None:
                bar.update(done)

        yield advance


def _replay_phase(
    folder: Path,
    phase: PhaseRecord,
    policy: Policy,
    untrained: Collection[str],
    advance: Callable[[], None],
) -> PhaseReplay:
    points = []
    for before, logged in zip([None, *phase.evals], phase.evals, strict=False):
        losses = {n: _known(loss) for n, loss in logged.loss.items() if n not in untrained}
        shares = trained_shares(before, logged, policy.domains)
        try:
            decision = policy.update(logged.step, losses, _known(logged.parameters), shares)
        except ValueError as error:
            raise BadInput(
                f"{RunFolder(folder).metrics}, {phase.name}, evaluation at step {logged.step}: "
                f"{error}"
            ) from None
        points.append(ReplayPoint(logged=logged, decision=decision))
        advance()
    return PhaseReplay(
        phase=phase.name,
        last_step=phase.last_step,
        total_steps=phase.total_steps,
        has_ended=phase.end is not None,
        points=points,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unlike_itself(record: RunRecord, replayed: PhaseReplay, policy: str) -> list[str]:
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
    if policy == "drpruning" and not any(point.logged.data for point in replayed.points):
        # Logs have the data of each domain since the defaults are no longer nearly the paper's.
        note += (
            "; its log is of a version with other defaults, which --set reference=paper --set "
            "min_quality=0.5 gives"
        )
    return [note]


def _checks(phase: PhaseReplay, points: Sequence[ForecastPoint]) -> list[ForecastCheck]:
    """The forecasts against the losses at the end; nothing before the end of the phase."""
    return check_forecasts(points, phase.total_steps) if phase.has_ended else []


def _curves(initial_ratio: Mapping[str, float], phase: PhaseReplay) -> ReplayCurves:
    def column(values: Sequence[Mapping[str, float] | None]) -> dict[str, list[float]]:
        return {d: [(v or {}).get(d, math.nan) for v in values] for d in initial_ratio}

    logged = [point.logged for point in phase.points]
    decisions = [point.decision for point in phase.points]
    pairs = list(zip(logged, decisions, strict=True))
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
        bases=bases(decisions[-1]),
        used_churn=churns(logged),
        replayed_churn=[decision.explanation.churn for decision in decisions],
        used_checks=_checks(phase, [ForecastPoint.logged(point) for point in logged]),
        replayed_checks=_checks(phase, [ForecastPoint.decided(*pair) for pair in pairs]),
    )
