"""One run of a training program in this process, under the recorder."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from harness.core.error_text import describe_error
from harness.training.child.options import find_options
from harness.training.child.passes import Passes
from harness.training.child.program_source import ProgramSource, run_as_main
from harness.training.child.recorder import Recorder, StopRecording
from harness.training.child.replay import replay
from harness.training.child.request import Request
from harness.training.child.seams.checkpoints import CheckpointSeam
from harness.training.child.seams.functions import FunctionSeam, ModuleSeam
from harness.training.child.seams.gradients import GradientWatch
from harness.training.child.seams.optimizers import OptimizerSeam
from harness.training.child.seams.output import OutputSeam
from harness.training.child.seams.own_updates import OwnUpdates
from harness.training.child.seams.patches import Patches
from harness.training.child.seams.seeds import LoaderSeeds, Seeds
from harness.training.child.seams.token_streams import TokenStreams
from harness.training.recording_files import RecordingReader, RecordingWriter


def run(request: Request) -> None:
    """Run the program of a request, and record how it ends. Nothing that it raises leaves this function."""
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    writer = RecordingWriter(Path(request.folder))
    recorder = Recorder(request, writer)
    passes = Passes(recorder)
    ended, message = "finished", ""
    try:
        if request.task == "options":
            with find_options(writer):
                _run_program(request)
        else:
            with recording(recorder, passes, LoaderSeeds() if request.loader_seeds_apart else None):
                _run_program(request)
    except StopRecording:
        ended = "stopped"
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            ended, message = "failed", f"exited with status {leaving.code}"
    except BaseException as error:
        ended, message = "failed", describe_error(error)
    recorder.know_ranks()
    writer.event("end", {"ended": ended, "message": message, **recorder.ranks})
    if request.replay and request.detail == "tensors":
        replay(recorder, passes.training, RecordingReader(Path(request.folder)))
    writer.close()


def _run_program(request: Request) -> None:
    with _exit_raises():
        run_as_main(ProgramSource.parse(request.program), request.arguments, request.replaced)


@contextlib.contextmanager
def _exit_raises() -> Iterator[None]:
    """Have os._exit end the program, not its recording: programs call it at their end, not to wait for a thread."""
    process, own = os.getpid(), os._exit

    def leave(status: int) -> NoReturn:
        if os.getpid() != process or threading.current_thread() is not threading.main_thread():
            own(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = own


@contextlib.contextmanager
def recording(recorder: Recorder, passes: Passes, loader_seeds: LoaderSeeds | None = None) -> Iterator[None]:
    """Record what happens inside the block, and restore everything that was replaced for that."""
    watch, streams, patches = GradientWatch(recorder, passes), TokenStreams(recorder), Patches()
    optimizers, output = OptimizerSeam(recorder, passes, watch), OutputSeam(recorder)
    updates = OwnUpdates(recorder, watch, optimizers)
    modules, functions = (
        ModuleSeam(recorder, passes, updates),
        FunctionSeam(recorder, passes, watch, streams, updates),
    )
    watch.on_backward += [updates.after_backward, optimizers.after_backward]
    recorder.goes_on = updates.goes_on
    try:
        if loader_seeds is not None:
            loader_seeds.install(patches)
        for seam in (watch, streams, optimizers, CheckpointSeam(recorder), Seeds(recorder)):
            seam.install(patches)
        modules.install(patches)
        output.install()
        with functions:
            yield
        updates.finish()
    finally:
        output.remove()
        modules.remove()
        optimizers.remove()
        patches.restore()
        with recorder.observing():
            passes.flush()
