"""A training program as the subject of checks: found by its name, rehearsed under the recorder, each rehearsal once."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, Missing, MissingAbility, SubjectError
from harness.core.limits import MEMORY_SHARE, Limits, machine_memory_gib
from harness.training.child.program_source import ProgramSource, reads_arguments_itself, top_level_names
from harness.training.child.request import Request
from harness.training.child_processes import ChildProcesses, Outcome, environments_of_ranks, shared_processes
from harness.training.endings import how_it_ended, what_to_give
from harness.training.events import Save
from harness.training.literals import chosen_literals, project_files, settable_literals
from harness.training.optimizer_steps import Step
from harness.training.recording import Ended, Recording
from harness.training.recording_files import RecordingReader
from harness.training.rehearsals import REHEARSALS, Rehearsal
from harness.training.requirements import require
from harness.training.scratch import ProjectCopies, project_root
from harness.training.setting_words import describe
from harness.training.settings import Assignment, Settings, read_settings
from harness.training.settings_in_effect import in_effect

SECONDS = 120.0  # for one rehearsal: ten times as long as the reference's longest takes
SPARE_STEPS = 2  # times the steps that were asked for: a program that makes more of them is stopped
UNKNOWN_NAME = "--no_program_has_this_setting=1"
HASHES, OTHER_HASHES = 1, 2  # seeds of hash(), of which the second is for rehearsals that are to have another one
NEEDS_GPU = re.compile(r"nccl|cuda", re.IGNORECASE)  # in the message of a program that failed on this machine
INSTALLED = ("site-packages", "dist-packages")  # names of folders of installed packages, also of other installations
TOKENS = "GPT_HARNESS_TOKENS"  # where the reference keeps token files: not in the user's cache, for texts of rehearsals


class TrainingProgram:
    """A training program. It is a subject with the ability `Trains`.

    Args:
        name: `train.py`, `"train.py --flags"`, `pkg.module` or `pkg.module:function`.
        folder: Where it runs, and is looked for first; None for the current folder.
        chosen: What the user set in the source with `--set`, as `NAME=VALUE`; the rehearsals leave it as it is.
        limits: Of one rehearsal.
        processes: Where it runs; None for processes that all programs share.

    Raises:
        SubjectError: in one line, if there is no such program, or no literal of a name that was chosen.
    """

    def __init__(
        self,
        name: str,
        *,
        chosen: Sequence[str] = (),
        folder: Path | None = None,
        limits: Limits | None = None,
        processes: ChildProcesses | None = None,
    ) -> None:
        self.name = name.strip()
        words = shlex.split(name)
        if not words:
            raise SubjectError("the name of the training program is empty; give train.py or package.module")
        self.source = ProgramSource.parse(words[0])
        self.cwd = str((folder or Path()).resolve())
        self.file = self.source.find(Path(self.cwd))
        self.arguments = tuple(words[1:])
        self.chosen = chosen_literals(self.files, chosen)
        self.limits = limits or Limits(SECONDS, MEMORY_SHARE * machine_memory_gib())
        self.processes = processes or shared_processes(HASHES)
        self._own_processes = processes
        self._folder = tempfile.TemporaryDirectory(prefix="gpt-harness-training-")
        self._recordings: dict[str, list[Recording] | HarnessError | Missing] = {}
        # The reference, which a folder is given for, writes only into its output folder.
        own = folder is None and self.file.is_relative_to(project_root(Path(self.cwd)))
        self._copies = ProjectCopies(Path(self.cwd), Path(self._folder.name), copied=own)
        self._projects: dict[str, str] = {}  # rehearsal -> the copy of the project that it ran in
        self._keeps_its_text = False  # the file that it opens can be replaced, and then it fails
        self._unread = ""  # why the program did not come to parse its arguments
        self._made_steps = False  # in any rehearsal
        self._untrained: SubjectError | None = None  # why no rehearsal makes a step

    # ------------------------------------------------------------------------ rehearsals

    def record(self, rehearsal: str) -> Recording:
        """See `Trains.record`."""
        return self.record_ranks(rehearsal)[0]

    def record_ranks(self, rehearsal: str) -> list[Recording]:
        """See `Trains.record_ranks`."""
        if rehearsal not in self._recordings:
            try:
                self._recordings[rehearsal] = self.rehearse(REHEARSALS[rehearsal])
            except (HarnessError, Missing) as error:
                self._recordings[rehearsal] = error
        found = self._recordings[rehearsal]
        if isinstance(found, HarnessError | Missing):
            raise found
        return found

    def close(self) -> None:
        """Remove the recordings."""
        self._folder.cleanup()

    @functools.cached_property
    def settings(self) -> Settings:
        """Return what can be set: the program is run until it parses its arguments.

        Its literals are those of the plain rehearsal, so that it finds a text.
        """
        literals = settable_literals(self.files)
        chosen = {literal.word: literal.default for literal in self.chosen if literal.word}
        settings = functools.partial(read_settings, literals=literals, arguments=self.arguments, chosen=chosen)
        found = settings([])
        options, ended, message = self._run_for_options("options", found)
        if options is None and ended == "failed" and "text" in found and self._untrained is None:
            # It may read its text before its arguments, and need another one than that of the rehearsals.
            options, ended, message = self._run_for_options("options-own-text", found, keeps_text=True)
        if options is None and ended == "failed":
            self._unread = message
        if options is not None or not reads_arguments_itself(self.files):
            return settings(options or [])
        # A program that refuses a name that it does not have, and takes those that it has, reads them.
        named = settings([], names=top_level_names(self.file))
        _, ended_named, _ = self._run_for_options("options-named", named)
        _, ended_unknown, _ = self._run_for_options("options-unknown", found, UNKNOWN_NAME)
        if ended_named != "failed" and ended_unknown == "failed":
            self._unread = ""
            return named
        return found

    def leave(self, words: Collection[str]) -> None:
        """Let the rehearsals leave these settings as the program has them."""
        self.settings = self.settings.leaving(words)

    @functools.cached_property
    def files(self) -> list[Path]:
        """Return the program's file, the modules of the project that it imports, and its configuration files."""
        installed = {Path(path) for kind in ("stdlib", "purelib", "platlib") for path in [sysconfig.get_path(kind)]}
        folders = [path for each in sys.path if (path := Path(each)).is_dir() and path.name not in INSTALLED]
        own = [path for path in folders if not installed & {path, *path.parents}]
        return project_files(self.file, [Path(self.cwd), *own], arguments=self.arguments)

    def _run_for_options(
        self, name: str, settings: Settings, *more: str, keeps_text: bool = False
    ) -> tuple[list[dict[str, Any]] | None, Ended, str]:
        """Run the program up to its parser or its first module call: its options, how it ended, and why it failed."""
        plain = REHEARSALS["plain"]
        text = {} if keeps_text else {"text": str(self._text(plain))}
        assignment = settings.assign({**plain.values, **text})
        request = Request(
            task="options",
            folder=str(self._new_folder(name)),
            program=self._target,
            arguments=(*self.arguments, *assignment.arguments, *more),
            cwd=str(self._copies.cwd_of(name)),
            environment={TOKENS: str(self._path("tokens"))},
            replaced=self._replaced(assignment, name),
        )
        (outcome,) = self.processes.run([request], self.limits)
        reader = RecordingReader(Path(request.folder))
        ended, message = how_it_ended(reader.one("end"), outcome, request)
        if outcome.limit:
            self._untrained = SubjectError(f"{self.name}: {message}{what_to_give(self.name, message)}")
        return reader.one("options").get("options"), ended, message

    def _replaced(self, assignment: Assignment, name: str) -> dict[str, list[tuple[int, int, Any]]]:
        """Return the literals to replace, by file: those of an assignment, and those that the user chose."""
        values = {file: dict(places) for file, places in assignment.replaced.items()}
        for literal in self.chosen:
            values.setdefault(literal.file, {})[literal.place] = literal.default
        found = {file: [(*place, value) for place, value in places.items()] for file, places in values.items()}
        return self._copies.with_copies(found, name)

    # ------------------------------------------------------------------------ one rehearsal

    def rehearse(self, rehearsal: Rehearsal) -> list[Recording]:
        """Run a rehearsal, which need not be of the table, and return each rank's recording; it is not kept."""
        rehearsal = self._in_epochs(rehearsal)
        require(rehearsal, self.settings, self.name, self._unread)
        if self._untrained is not None:
            raise self._untrained
        first_step = 0
        if rehearsal.resumes is not None:
            first_step = self._last_checkpoint(self.record(rehearsal.resumes)).step
        failure: SubjectError | None = None
        for attempt, values in enumerate(self._attempts(rehearsal)):
            try:
                found = self._run(rehearsal, values, first_step, f"{rehearsal.name}-{attempt}")
            except SubjectError as error:
                failure = failure or error
                continue
            if rehearsal.name == REHEARSALS["plain"].name:  # others have shorter texts: too short is not unreadable
                self._keeps_its_text = "text" in self.settings and "text" not in values
            return found
        assert failure is not None
        if rehearsal.name == REHEARSALS["plain"].name and not self._made_steps:
            self._untrained = failure
        if "text" in rehearsal.needs and self._trains("plain"):
            raise MissingAbility(f"{self.name} cannot train on the text of a rehearsal: {failure}")
        raise failure

    def why_not(self, rehearsal: Rehearsal) -> str:
        """Return what a rehearsal needs and the program has no setting for; "" if nothing is missing."""
        try:
            require(self._in_epochs(rehearsal), self.settings, self.name, self._unread)
        except (HarnessError, Missing) as error:
            return str(error)
        return ""

    def _in_epochs(self, rehearsal: Rehearsal) -> Rehearsal:
        """Return a rehearsal as the program can do it: in epochs, if nothing sets the steps between validations."""
        if not rehearsal.epochs or not self._steps_of_an_epoch:
            return rehearsal
        return rehearsal.in_epochs(self._steps_of_an_epoch)

    @functools.cached_property
    def _steps_of_an_epoch(self) -> int:
        """Return after how many steps the program validates or saves first; 0 if that is a setting of steps."""
        if "eval_every" in self.settings or "save_every" in self.settings or not self._trains("epochs"):
            return 0
        recording = self.record("epochs")
        ends = {each.step for each in recording.forwards() if each.validates} | {save.step for save in recording.saves}
        return min(ends - {0}, default=0)

    def _trains(self, rehearsal: str) -> bool:
        """Return True if the program makes steps in a rehearsal."""
        try:
            return bool(self.record(rehearsal).steps)
        except (HarnessError, Missing):
            return False

    def _attempts(self, rehearsal: Rehearsal) -> Iterator[dict[str, Any]]:
        """Yield the settings of a rehearsal; to resume there are several ways, of which one works."""
        out = self._path(f"out-{rehearsal.resumes or rehearsal.name}")
        values = {**rehearsal.values, "text": str(self._text(rehearsal)), "out": str(out)}
        flag, default = self.settings.flags.get("resume"), self.settings.default("resume")
        if self._keeps_its_text and "text" not in rehearsal.needs:
            del values["text"]
        if "block_size" not in self.settings:
            del values["stride"]  # windows side by side are so for the length that a rehearsal sets
        if rehearsal.resumes is None:
            yield values
            if "text" in values and "text" in self.settings and "text" not in rehearsal.needs:
                yield {word: value for word, value in values.items() if word != "text"}
        elif (flag is None or not flag.takes_value) and not isinstance(default, str):
            yield {**values, "resume": True}
        else:
            folder_of_run = self._copies.cwd_of(self._projects[rehearsal.resumes])
            saved = str(_still_there(Path(folder_of_run, self._last_checkpoint(self.record(rehearsal.resumes)).path)))
            without_out = {word: value for word, value in values.items() if word != "out"}
            by_folder = [{**without_out, "resume": str(out)}, {**values, "resume": str(out)}]
            by_file = [{**values, "resume": saved}]
            folder = flag is not None and any(part in (flag.metavar or "").lower() for part in ("dir", "fold"))
            yield from [*by_folder, *by_file] if folder else [*by_file, *by_folder]

    def _run(self, rehearsal: Rehearsal, values: Mapping[str, Any], first_step: int, name: str) -> list[Recording]:
        assignment = self.settings.assign(values)
        # A run that is resumed finds its files where it left them.
        project = self._projects.get(rehearsal.resumes or "", name)
        self._projects[rehearsal.name] = project
        requests = [
            Request(
                folder=str(self._new_folder(f"{name}-{rank}")),
                program=self._target,
                arguments=(*self.arguments, *assignment.arguments),
                cwd=str(self._copies.cwd_of(project)),
                environment={TOKENS: str(self._path("tokens")), **environment},
                replaced=self._replaced(assignment, project),
                detail=rehearsal.detail,
                stop_after=self._stop_after(rehearsal, first_step),
                kill_after=rehearsal.kill_after,
                first_step=first_step,
                loader_seeds_apart=rehearsal.loader_seeds_apart,
            )
            for rank, environment in enumerate(environments_of_ranks(rehearsal.ranks))
        ]
        processes = self._own_processes or shared_processes(OTHER_HASHES if rehearsal.other_hashes else HASHES)
        outcomes = processes.run(requests, self.limits)
        found = [
            self._read(rehearsal, request, outcome, assignment)
            for request, outcome in zip(requests, outcomes, strict=True)
        ]
        self._check(rehearsal, found)
        return found

    def _stop_after(self, rehearsal: Rehearsal, first_step: int) -> int:
        """Return after how many steps to stop: later than asked for, if the program can be asked to stop itself.

        A resumed program makes the steps that remain, from `first_step`.
        """
        if "steps" in self.settings and "steps" not in rehearsal.leaves:
            return rehearsal.steps * SPARE_STEPS
        return max(1, rehearsal.steps - first_step)

    def _read(self, rehearsal: Rehearsal, request: Request, outcome: Outcome, assignment: Assignment) -> Recording:
        reader = RecordingReader(Path(request.folder))
        end = reader.one("end")
        ended, message = how_it_ended(end, outcome, request)
        settings = in_effect(self.settings, assignment, reader.one("observed").get("settings", {}))
        events = reader.events()
        steps = len({event.number for event in events if isinstance(event, Step)})
        self._made_steps |= steps > 0
        if "epochs" in assignment.values and ended == "finished" and self._ends_by_epochs(steps):
            settings["horizon"] = steps
        return Recording(
            program=self.name,
            rehearsal=rehearsal.name,
            ended=ended,
            message=message,
            events=events,
            parameters=reader.parameters(),
            constants=reader.one("parameters").get("constants", {}),
            settings=settings,
            source=rehearsal.source if "text" in assignment.values and "text" in self.settings else None,
            text=rehearsal.make_text() if "text" in assignment.values and "text" in self.settings else "",
            rank=end.get("rank", 0),
            ranks=end.get("ranks", 1),
        )

    def _ends_by_epochs(self, steps: int) -> bool:
        """Return True if so many steps are those of the epochs, and nothing else ends the schedule or the run."""
        most = self.settings.own.get("steps")
        return "horizon" not in self.settings and not (type(most) is int and 0 < most <= steps)

    def _check(self, rehearsal: Rehearsal, found: Sequence[Recording]) -> None:
        """Raise SubjectError if the program failed, and MissingAbility if it cannot do what the rehearsal is for."""
        failed = next((recording for recording in found if recording.ended == "failed"), None)
        if failed is not None and rehearsal.ranks > 1 and NEEDS_GPU.search(failed.message):
            raise MissingAbility(f"the ranks of {self.name} need a GPU each: {failed.message}")
        if failed is not None and rehearsal.ranks > 1 and all(recording.ranks == 1 for recording in found):
            raise MissingAbility(
                f"{self.name} does not train on several ranks: started as torchrun starts it (RANK, WORLD_SIZE), "
                f"it did not call torch.distributed.init_process_group, and failed: {failed.message}"
            )
        if failed is not None:
            rank = f" on rank {found.index(failed)}" if len(found) > 1 else ""
            why = f"{failed.message}{what_to_give(self.name, failed.message)}"
            raise SubjectError(f"{self.name} fails in the rehearsal '{rehearsal.name}'{rank}: {why}")
        if rehearsal.ranks > 1 and any(recording.ranks != rehearsal.ranks for recording in found):
            raise MissingAbility(
                f"{self.name} does not train on several ranks: started as torchrun starts it (RANK, WORLD_SIZE), "
                "it did not call torch.distributed.init_process_group"
            )
        if rehearsal.kill_after is not None:
            self._last_checkpoint(found[0])

    def _last_checkpoint(self, recording: Recording) -> Save:
        """Return the last checkpoint of a run. Raises MissingAbility if it has none after its first step."""
        saves = [save for save in recording.saves if save.step > 0]
        if not saves:
            steps = len(recording.steps)
            raise MissingAbility(
                f"{self.name} saved nothing in {steps} steps (torch.save, safetensors), and cannot be resumed; "
                f"looked for {describe('save_every')}"
            )
        whole = [save for save in saves if "best" not in Path(save.path).name.lower()]
        return (whole or saves)[-1]

    # ------------------------------------------------------------------------ files

    @property
    def _target(self) -> str:
        """Return the program as a child process in the same folder finds it."""
        function = f":{self.source.function}" if self.source.function else ""
        target = self.source.target
        if self._copies.root is not None and Path(target).is_absolute():
            target = os.path.relpath(self.file, self.cwd)
        return f"{target}{function}"

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _new_folder(self, name: str) -> Path:
        folder = self._path(name)
        folder.mkdir()
        return folder

    def _text(self, rehearsal: Rehearsal) -> Path:
        path = self._path(f"{rehearsal.text}-{rehearsal.length}.txt")
        if not path.exists():
            path.write_text(rehearsal.make_text(), encoding="utf-8", newline="\n")
        return path


def _still_there(saved: Path) -> Path:
    """Return a saved file; if it is gone, the newest one beside it: many programs save to a file that they rename."""
    if saved.exists() or not saved.parent.is_dir():
        return saved
    beside = [path for path in saved.parent.iterdir() if path.is_file()]
    return max(beside, key=lambda path: path.stat().st_mtime_ns, default=saved)
