"""A judge that has the subject in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from harness.core import global_state
from harness.core.captured_output import CapturedOutput, captured_output
from harness.core.devices import CPU, arithmetic_of
from harness.core.error_text import describe_error, error_location, raised_by_user
from harness.core.errors import SubjectError
from harness.core.forked import answer_of_fork
from harness.core.limits import Limits, TooLong, alarm
from harness.core.one_thread import one_thread
from harness.core.originals import ORIGINALS, Patch, operations_changed, remember_replacements, replacements_of
from harness.core.process_exit import subject_at_work
from harness.core.record_files import Row
from harness.core.resources import Resources
from harness.diagnosis import diagnose
from harness.judging.run_check import run
from harness.judging.unreadable import why_unreadable
from harness.oracle.declared import compared_with
from harness.oracle.deviating_subject import DeviatingSubject
from harness.oracle.deviation_fit import DeviationFit
from harness.oracle.deviations import Deviation
from harness.oracle.gpt2_with_deviations import DeviatingGPT2
from harness.oracle.hugging_face import protect_oracle
from harness.subjects.adapters import adapt
from harness.subjects.on_device import on_device
from harness.subjects.protocols import Subject
from harness.suites.check import Check
from harness.suites.record import Record

PROBE_SECONDS = 60.0  # at most, to find out if a subject can be built and called at all


class InProcessJudge:
    """Imports a subject and judges it in this process.

    Args:
        spec: the subject, as `--subject` names it.
        limits: for the import, and for the diagnosis.
        echo: show what the subject prints instead of capturing it.
        own: look for the name in the user's folder first. False for the reference that ships with the harness.

    Raises:
        SubjectError: in one line, if the subject cannot be imported.
    """

    def __init__(self, spec: str, *, limits: Limits, echo: bool = False, own: bool = True) -> None:
        self.limits, self.echo = limits, echo
        self._fits: dict[tuple[Deviation, ...], DeviationFit] = {}
        self._with_deviations: dict[DeviatingGPT2, Subject] = {}
        changed: dict[str, str] = {}
        protect_oracle()
        before = global_state.snapshot()
        patches: list[Patch] = []
        try:
            with subject_at_work(), captured_output(CapturedOutput()), alarm(limits.seconds):
                self.subject = on_device(adapt(spec, own=own), Resources.current.device)
        except SubjectError as error:
            if isinstance(late := error.__cause__, TooLong):
                message = f"does not import within {limits.seconds:g} s: it was at {error_location(late)}"
                raise SubjectError(message) from None
            raise
        except TooLong as late:
            message = f"is not read within {limits.seconds:g} s: it was at {error_location(late)}"
            raise SubjectError(message) from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of a module's __getattr__, or of a metaclass
            if not raised_by_user(error):
                raise
            raise SubjectError(f"its own code fails while it is read: {describe_error(error)}") from error
        finally:
            patches = ORIGINALS.patches()
            changed |= global_state.restore(before)
        global_state.remember_import(self.subject, changed)
        remember_replacements(self.subject.name, patches)
        if spoiled := _spoiled(patches, changed):
            raise SubjectError(
                f"when it is imported it changes {spoiled}, which the checks compute with, too: no verdict would be one"
            )

    def judge(self, check: Check, limits: Limits, deviations: Sequence[Deviation] = ()) -> Record:
        """See `Judge.judge`."""
        if not deviations:
            return run(check, self.subject, limits=limits, echo=self.echo)
        gpt2 = self._gpt2(deviations)
        with compared_with(gpt2):
            record = run(check, self._compared(gpt2), limits=limits, echo=self.echo)
        return gpt2.judge_again(record, self.subject)

    def judge_gpt2(self, check: Check, limits: Limits, deviations: Sequence[Deviation]) -> Record:
        """See `Judge.judge_gpt2`."""
        gpt2 = self._gpt2(deviations)
        with compared_with(gpt2):
            return run(check, DeviatingSubject(gpt2), limits=limits, echo=self.echo)

    def diagnose(self, rows: Sequence[Row], deviations: Sequence[Deviation] = ()) -> Row:
        """See `Judge.diagnose`."""
        records = [Record.from_row(Check.from_row(row), row) for row in rows]
        with self._at_work():
            gpt2 = self._gpt2(deviations) if deviations else None
            with compared_with(gpt2):
                return diagnose(self.subject if gpt2 is None else self._compared(gpt2), records).as_row()

    def unfounded(self, deviations: Sequence[Deviation]) -> dict[str, str]:
        """See `Judge.unfounded`."""
        with self._at_work():
            return self._fit(deviations).unfounded()

    def why_unreadable(self) -> str:
        """See `Judge.why_unreadable`. A forked process asks, so that the subject's code costs this one nothing."""

        def ask() -> str:
            with self._at_work():
                return why_unreadable(self.subject)

        def ask_alone() -> str:
            torch.set_num_threads(1)  # with more, OpenMP hangs in a forked process
            return ask()

        if Resources.current.device != CPU:  # CUDA, which is in use by now, cannot be used in a forked process
            return ask()
        return answer_of_fork(ask_alone, min(self.limits.seconds or PROBE_SECONDS, PROBE_SECONDS))

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let the subject run inside the block, without a check, at the debug size."""
        with (
            one_thread(),
            arithmetic_of(Resources.current.device),
            global_state.isolated_global_state({}),
            replacements_of(self.subject.name),
            subject_at_work(),
            captured_output(CapturedOutput()),
            alarm(self.limits.seconds),
        ):
            yield

    def _gpt2(self, deviations: Sequence[Deviation]) -> DeviatingGPT2:
        """Return the GPT-2 with these deviations, of the first fit that has them all: it takes a second."""
        fits = (fit for of, fit in self._fits.items() if set(deviations) <= set(of))
        fit = next(fits, None) or self._fit(deviations)
        return fit.gpt2_with([each for each in fit.deviations if each in deviations])

    def _fit(self, deviations: Sequence[Deviation]) -> DeviationFit:
        """Return the fit of these deviations; it is made once."""
        key = tuple(deviations)
        if key not in self._fits:
            with self._at_work():
                self._fits[key] = DeviationFit(key, self.subject)
        return self._fits[key]

    def _compared(self, gpt2: DeviatingGPT2) -> Subject:
        """Return the copy of the subject that is compared with this GPT-2."""
        if gpt2 not in self._with_deviations:
            self._with_deviations[gpt2] = gpt2.copy_of_subject(self.subject)
        return self._with_deviations[gpt2]

    def close(self) -> None:
        """See `Judge.close`."""
        self._with_deviations.clear()
        self._fits.clear()


def _spoiled(patches: Sequence[Patch], changed: Mapping[str, str]) -> str:
    """Return what the import changed that the checks themselves compute with; "" if nothing."""
    what = [str(patch) for patch in patches if patch.spoils_verdicts][:4]
    what += [f"{name} ({changed[name]})" for name in ("function modes", "hooks on every module") if name in changed]
    return ", ".join(what or operations_changed())
