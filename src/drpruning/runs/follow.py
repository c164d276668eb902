"""A run folder while it grows: its files are read once, and then only what was appended.

What is known of a run is a `RunState`. A resumed run cuts metrics.jsonl back to a checkpoint, which
shows by the last line read: it is no longer where it was.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from drpruning.common.errors import BadInput
from drpruning.common.files import is_locked, parse_json
from drpruning.recipe.phases import PHASES
from drpruning.runs.counterfactuals import mean
from drpruning.runs.folder import SOURCE, RunFolder, is_run
from drpruning.runs.lines import Line, parse_line
from drpruning.runs.records import (
    PhaseRecord,
    RunRecord,
    is_number,
    load_evaluation,
    read_recipe,
    section,
)

Status = Literal["waiting", "running", "stopped", "finished"]

SHORTEST_SILENCE = 120.0
"""Seconds without a new line that are never worth a word."""
_LINES_OF_PACE = 8
"""Logged steps and evaluations over which the speed is averaged: the latest ones."""
_CHECKPOINT = re.compile(rf"({'|'.join(PHASES)})-(\d+)")


class AppendedLines:
    """Complete lines of a file that grows, each given once."""

    def __init__(self, path: Path):
        """Read from the beginning of `path`, which need not exist yet."""
        self._path = path
        self.restart()

    def restart(self) -> None:
        """Read from the beginning again."""
        self._end, self._last = 0, b""

    def read_new(self) -> tuple[bool, list[bytes]]:
        """Read what was appended.

        Returns:
            Whether the file is not the one read before or was cut back, so that lines given earlier
            do not count any more; and the new lines.

        Raises:
            BadInput: The file cannot be read.
        """
        found = self._read_from(self._end - len(self._last))
        changed = not found.startswith(self._last)
        if changed:
            self.restart()
            found = self._read_from(0)
        new = found[len(self._last) :]
        new = new[: new.rfind(b"\n") + 1]
        lines = new.split(b"\n")[:-1]
        if lines:
            self._end += len(new)
            self._last = lines[-1] + b"\n"
        return changed, lines

    def _read_from(self, position: int) -> bytes:
        if not self._path.is_file():
            return b""
        try:
            with self._path.open("rb") as file:
                file.seek(position)
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise BadInput(f"{self._path} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint in the run folder, and when it was saved."""

    phase: str
    step: int
    time: float


@dataclass(frozen=True)
class Progress:
    """Steps done of those to do; `seconds_left` is None where no speed is known."""

    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True)
class RunState:
    """All that the view of a run is made from.

    Attributes:
        record: Its recipe and log.
        has_begun: Whether a command has begun it.
        is_worked_on: Whether a process works in the folder; None where that cannot be found out.
        has_result: Whether the model of the last phase is there.
        source_loss: Domain -> loss of the model that is pruned, where it is known.
        checkpoint: The latest.
        started: When the latest command began, in seconds since the epoch.
        step: Steps done, where more is known than the log says.
        activity: What is being done, if it is not training.
    """

    record: RunRecord
    has_begun: bool = False
    is_worked_on: bool | None = None
    has_result: bool = False
    source_loss: Mapping[str, float] = field(default_factory=dict)
    checkpoint: SavedCheckpoint | None = None
    started: float | None = None
    step: int | None = None
    activity: str = ""

    @property
    def phase(self) -> PhaseRecord | None:
        """The phase that was begun last."""
        return next(reversed(self.record.phases.values()), None)

    @property
    def phases(self) -> list[str]:
        """The phases that the run has, in their order."""
        planned = {name for name in PHASES if section(self.record.recipe, name)}
        return [name for name in PHASES if name in planned | self.record.phases.keys()]

    @property
    def status(self) -> Status:
        """Where the run stands."""
        if not self.has_begun:
            return "waiting"
        if self.has_result and not self.is_worked_on:
            return "finished"
        return "stopped" if self.is_worked_on is False else "running"

    @property
    def result(self) -> Path:
        """The model that the run leads to."""
        return RunFolder(self.record.folder).result(self.phases[-1])

    @property
    def last_line(self) -> Line | None:
        """The line of the log that was written last."""
        return None if self.phase is None else _last_line(self.phase)

    @property
    def is_starting(self) -> bool:
        """Whether the latest command has neither trained nor written a line yet."""
        last = self.last_line
        if self.step is not None:
            return False
        return last is None or (self.started is not None and self.started > last.time)

    def silence(self, now: float) -> float | None:
        """Seconds since the last line, if that is far longer than lines usually take.

        Args:
            now: Seconds since the epoch.
        """
        if self.phase is None or self.last_line is None or self.is_starting:
            return None
        times = sorted(
            point.time
            for points in (self.phase.steps, self.phase.evals)
            for point in points[-_LINES_OF_PACE:]
        )
        longest = max((b - a for a, b in pairwise(times)), default=0.0)
        silent = now - max(self.last_line.time, self.started or 0.0)
        return silent if silent > max(SHORTEST_SILENCE, 3 * longest) else None

    def progress(self) -> Progress | None:
        """Steps of the latest phase."""
        if self.phase is None:
            return None
        done, total = self._steps_done(self.phase), self._steps_of(self.phase.name)
        return Progress(done, total, self._seconds_left(self.phase.name, done))

    def run_progress(self) -> Progress:
        """Steps of all phases; one that has not begun is taken to train at the present speed."""
        done = total = 0
        left: float | None = 0.0
        for name in self.phases:
            phase = self.record.phases.get(name)
            of_phase = 0 if phase is None else self._steps_done(phase)
            done += of_phase
            total += self._steps_of(name)
            seconds = self._seconds_left(name, of_phase)
            left = None if left is None or seconds is None else left + seconds
        return Progress(done, total, left)

    def _steps_done(self, phase: PhaseRecord) -> int:
        if phase is self.phase and self.step is not None:
            return self.step
        last = _last_line(phase)
        return 0 if last is None else last.step

    def _steps_of(self, name: str) -> int:
        phase = self.record.phases.get(name)
        if phase is not None and phase.end is not None:  # it may have ended early
            return phase.end.step
        return (phase and phase.total_steps) or self._setting(name, "steps", 0)

    def _setting(self, phase: str, key: str, default: int) -> int:
        value = section(self.record.recipe, phase).get(key)
        return int(value) if value is not None and is_number(value) else default

    def _seconds_left(self, name: str, done: int) -> float | None:
        """Time for the rest of a phase: its steps and its evaluations, at the latest speed."""
        phase, total = self.phase, self._steps_of(name)
        of_phase = self.record.phases.get(name)
        if done >= total or (of_phase is not None and of_phase.end is not None):
            return 0.0
        if phase is None or phase.start is None:
            return None
        speeds = [point.tokens_per_second for point in phase.steps[-_LINES_OF_PACE:]]
        seconds_per_token = mean([1 / speed for speed in speeds if speed > 0])
        if math.isnan(seconds_per_token):
            return None
        batch = self._setting(name, "global_batch", phase.start.global_batch)
        step_seconds = seconds_per_token * batch * phase.start.sequence_length
        evaluation_seconds = mean(
            [p.evaluation_seconds + p.update_seconds for p in phase.evals[-_LINES_OF_PACE:]]
        )
        known = 0.0 if math.isnan(evaluation_seconds) else evaluation_seconds
        every = max(1, self._setting(name, "evaluate_every", total))
        evaluations = math.ceil(total / every) - done // every
        return (total - done) * step_seconds + evaluations * known


def _last_line(phase: PhaseRecord) -> Line | None:
    ends: list[Line | None] = [phase.start, phase.end]
    for points in (phase.steps, phase.evals, phase.warnings, phase.skipped):
        ends += points[-1:]
    known = [line for line in ends if line is not None and not math.isnan(line.time)]
    return max(known, key=lambda line: (line.step, line.time), default=None)


class RunFollower:
    """Reads one run again and again."""

    def __init__(self, folder: Path, *, is_own: bool = False):
        """Begin to follow a run; nothing is read yet.

        Args:
            folder: A run folder; it need not exist.
            is_own: Whether it is this process that works in it.
        """
        self._files, self._is_own = RunFolder(folder), is_own
        self._record = RunRecord(folder=folder)
        self._recipe_version: tuple[int, int] | None = None
        self._metrics = AppendedLines(self._files.metrics)
        self._lines = 0
        self._sessions = AppendedLines(self._files.sessions)
        self._started: float | None = None
        self._was_unlocked, self._lock_shows = False, True

    def read(self) -> RunState:
        """Read what is new, and say where the run stands.

        Raises:
            BadInput: A file is not what docs/run-folder.md says.
        """
        self._read_recipe()
        grew = self._read_metrics()
        phases = [name for name in PHASES if section(self._record.recipe, name)]
        return RunState(
            record=self._record,
            has_begun=is_run(self._files.path) or bool(self._record.phases),
            is_worked_on=self._is_own or self._is_locked(grew=grew),
            has_result=bool(phases) and self._files.result(phases[-1]).is_dir(),
            source_loss=self._source_loss(),
            checkpoint=self._latest_checkpoint(),
            started=self._latest_start(),
        )

    def _read_recipe(self) -> None:
        try:
            found = self._files.recipe.stat()
        except OSError:
            return
        version = (found.st_mtime_ns, found.st_size)
        if version != self._recipe_version:
            text, values = read_recipe(self._files.recipe)
            self._record.recipe_text, self._record.recipe = text, values
            self._recipe_version = version

    def _read_metrics(self) -> bool:
        """Add the new lines of the log; whether there were any.

        A line that makes no sense may be due to a file that was cut back while it was read, so all
        of it is read again once.
        """
        try:
            return self._add_new_lines()
        except BadInput:
            self._forget_lines()
            try:
                return self._add_new_lines()
            except BadInput:
                self._forget_lines()  # so that the next look finds the same
                raise

    def _add_new_lines(self) -> bool:
        changed, new = self._metrics.read_new()
        if changed:
            self._record.phases, self._lines = {}, 0
        for text in new:
            self._lines += 1
            if text.strip():
                line = parse_line(text, f"{self._files.metrics}, line {self._lines}")
                self._record.phases.setdefault(line.phase, PhaseRecord(line.phase)).add(line)
        return bool(new)

    def _forget_lines(self) -> None:
        self._metrics.restart()
        self._record.phases, self._lines = {}, 0

    def _is_locked(self, *, grew: bool) -> bool | None:
        """Whether a process holds the folder's lock, unless that is not to be seen from here.

        On a file system that other machines share, their locks may be unknown here. Then the log
        of a folder that looks unlocked grows.
        """
        locked = is_locked(self._files.path)
        if grew and self._was_unlocked and locked is False:
            self._lock_shows = False
        self._was_unlocked = locked is False
        return locked if locked or self._lock_shows else None

    def _source_loss(self) -> Mapping[str, float]:
        """The losses of the model that is pruned: as evaluated, or before the first step."""
        try:
            found = load_evaluation(self._files.evaluation(SOURCE))
        except BadInput:  # it is the report that needs it, and says so
            found = None
        if found is not None:
            return found.loss
        phase = self._record.phases.get("prune")
        return {} if phase is None else phase.first_loss

    def _latest_start(self) -> float | None:
        for text in self._sessions.read_new()[1]:
            try:
                started = section(parse_json(text)).get("time")
            except ValueError:
                continue
            if is_number(started):
                self._started = started
        return self._started

    def _latest_checkpoint(self) -> SavedCheckpoint | None:
        found = []
        try:
            for path in self._files.checkpoints.iterdir():
                if match := _CHECKPOINT.fullmatch(path.name):
                    name, step = match[1], int(match[2])
                    found.append(SavedCheckpoint(name, step, path.stat().st_mtime))
        except OSError:  # none yet, or one that is being removed
            pass
        return max(found, key=lambda saved: (PHASES.index(saved.phase), saved.step), default=None)


class FolderFollower:
    """Reads a folder again and again that holds a run, or one for each of several targets."""

    def __init__(self, folder: Path):
        """Begin to follow the runs of a folder.

        Raises:
            BadInput: There is no run in it, and there is other content.
        """
        check_may_hold_run(folder)
        self.folder = folder
        self._own = RunFollower(folder)
        self._targets: dict[str, RunFollower] = {}

    def read(self) -> list[RunState]:
        """The state of the run, or of each target's run in their order.

        Raises:
            BadInput: A file is not what docs/run-folder.md says.
        """
        own = self._own.read()
        names = list(map(str, section(own.record.recipe, "model", "targets")))
        for name in names:
            self._targets.setdefault(name, RunFollower(self.folder / name))
        states = [self._targets[name].read() for name in names]
        for state in states:
            if not state.has_begun:  # its phases will be those of the recipe for all targets
                state.record.recipe = own.record.recipe
        return states or [own]


def current_state(states: Sequence[RunState]) -> RunState:
    """The run to look at, of those of several targets: the last one that was begun."""
    begun = [state for state in states if state.has_begun]
    return begun[-1] if begun else states[0]


def check_may_hold_run(folder: Path) -> None:
    """Refuse a place in which neither a run has begun nor one can begin.

    Raises:
        BadInput: It is a file, or a folder with other content.
    """
    remedy = "name a run folder, which is `output` of the recipe"
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: not a folder; {remedy}")
    try:
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise BadInput(f"{folder} cannot be read: {error.strerror}") from None
    begun = is_run(folder) or RunFolder(folder).metrics.is_file()
    # Before a run begins, its folder may have a lock, drafts, and the prepared data.
    other = {name for name in names if not name.startswith(".")} - {RunFolder(folder).data.name}
    if other and not begun:
        sessions = RunFolder(folder).sessions.name
        raise BadInput(f"{folder}: no run folder (it has no {sessions}); {remedy}")
