"""The run: the steps, and along the way validation, samples, checkpoints, the log, and every way to stop."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy
import torch

from gpt.data import corpus, load_text
from gpt.errors import ConfigError, DoesNotFit, GPTError, OtherRankFailed, RunError
from gpt.training.checkpoints import BEST, Checkpoints, Snapshot
from gpt.training.command_line import Command
from gpt.training.environment import environment
from gpt.training.identity import check_identity, identity
from gpt.training.memory import (
    active_parameter_count,
    available_memory,
    check_fit,
    flops_per_token,
    parameter_count,
    used_memory,
    what_fits,
)
from gpt.training.peak import measured_peak
from gpt.training.precision import TYPES
from gpt.training.progress import Progress
from gpt.training.randomness import derived_seed
from gpt.training.ranks import Ranks, join
from gpt.training.run_folder import CHECKPOINTS, FolderLock, check_new, write_config, write_start
from gpt.training.run_log import LOG, RunLog, require_tensorboard, truncate_log
from gpt.training.signals import StopRequest
from gpt.training.trainer import StepResult, Trainer

STATUS = {"finished": 0, "budget": 3, "interrupted": 130, "terminated": 143}
"""The exit status for each reason to stop; 130 and 143 are what shells give for SIGINT and SIGTERM."""

WHY = {"budget": "the budget is used up", "interrupted": "Ctrl-C", "terminated": "SIGTERM"}


def run(command: Command) -> int:
    """Do what a command line asks for and return the exit status.

    Raises `GPTError` with what is to be said about a run that does not start, or that fails.
    """
    started = time.monotonic()
    with (
        join(command.config.device) as ranks,
        StopRequest(quiet=ranks.rank > 0) as stop,
        FolderLock(command.out) as lock,
    ):
        return Run(command, ranks, stop, lock, started=started).main()


class Run:
    """One run on one of its ranks. Rank 0 writes and prints; all ranks call every method together.

    Nothing is written before the text, the memory and the model are known to be right.
    """

    def __init__(self, command: Command, ranks: Ranks, stop: StopRequest, lock: FolderLock, *, started: float) -> None:
        self.command, self.config, self.ranks, self.stop, self.lock = command, command.config, ranks, stop, lock
        self.folder, self.deadline = command.out, started + 60 * command.config.budget
        if not command.resume:
            self._on_first_rank(lambda: check_new(self.folder))
        if self.config.tensorboard:
            require_tensorboard()
        text = load_text(self.config.text)
        self.corpus = corpus(text, self.config.vocabulary, validation_fraction=self.config.validation_fraction)
        self.available = available_memory(ranks.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.memory = check_fit(self.config, self.corpus.vocabulary.size, self.available, ranks.device.type)
        # Nothing here draws from these two, but checkpoints have their states: the same seed gives the same bytes.
        random.seed(derived_seed(self.config.seed, "python", ranks.rank))
        numpy.random.seed(derived_seed(self.config.seed, "numpy", ranks.rank) % 2**32)
        self.trainer = Trainer(self.config, self.corpus, ranks)
        self.identity = identity(self.config, text=text, vocabulary=self.corpus.vocabulary, ranks=ranks.size)
        self.progress = Progress(self.config.steps, quiet=ranks.rank > 0)
        self.checkpoints = Checkpoints(self.folder / CHECKPOINTS, keep=self.config.keep, say=self.progress.message)
        self.environment = environment(ranks.device, ranks.size)  # of this part of the run; a resumed one may differ
        self.log: RunLog | None = None
        self.peak: float | None = None
        self.validation: float | None = None
        self.best: dict[str, Any] | None = None  # the loss and the step of the best validation
        # The step at which each was done last. Nothing is done twice at a step, even if the run was stopped there.
        self.visited = self.validated = self.sampled = self.saved = -1
        self.step_seconds = 0.0

    def main(self) -> int:
        """Start or resume, train, and return the exit status."""
        self._on_first_rank(self._take_folder)
        if self.command.resume:
            event = self._resume()
        else:
            event = {"event": "header", "version": 1, "preset": self.command.preset, "config": asdict(self.config)}
        if self.visited == self.saved == self.trainer.step == self.config.steps:
            self.progress.message(f"{self.folder}: all {self.config.steps} steps are done; --steps N trains longer")
            return 0
        machine = self._machine()
        self._on_first_rank(lambda: self._open(machine))
        try:
            self._write(**event, step=self.trainer.step, **machine)
            reason = self._train()
            if reason in ("finished", "budget"):
                self._along_the_way(final=True)
            self._save()
            self._end(reason)
        except torch.OutOfMemoryError as error:
            failure = self._does_not_fit()
            self._failed(failure)
            raise failure from error
        except Exception as error:
            self._failed(error)
            raise
        finally:
            if self.log:
                self.log.close()
        return STATUS[reason]

    # ------------------------------------------------------------------------ start and resume

    def _take_folder(self) -> None:
        self.lock.take()
        if not self.command.resume:
            check_new(self.folder)  # again: another process may have started a run there meanwhile

    def _open(self, machine: dict[str, Any]) -> None:
        """Write the folder's files and open the log, on rank 0."""
        if self.command.resume:
            write_config(self.folder, self.config)
            if removed := self.checkpoints.remove_after(self.trainer.step):
                self.progress.message(f"removed what was saved after step {self.trainer.step}: {', '.join(removed)}")
            # After that: no checkpoint, the best one included, is newer than the log.
            truncate_log(self.folder / LOG, self.trainer.step, {"validation": self.validated, "sample": self.sampled})
        else:
            found = {"preset": self.command.preset, **self.environment}
            write_start(self.folder, self.config, environment=found, vocabulary=self.corpus.vocabulary)
        events = self.folder / "tensorboard" if self.config.tensorboard else None
        self.log = RunLog(self.folder / LOG, tensorboard=events, step=self.trainer.step)
        self._introduce(machine)
        self.progress.start(self.trainer.step)

    def _resume(self) -> dict[str, Any]:
        """Continue from a checkpoint, and return the event that says so."""
        self._on_first_rank(self.checkpoints.repair)
        name = self.command.checkpoint
        folder = self.checkpoints.folder / name if name else self.checkpoints.newest()
        event: dict[str, Any] = {"event": "resume", "checkpoint": folder.name if folder else None}
        if folder is None:  # stopped before the first one: everything is as at the start
            self.progress.message(f"{self.folder}: has no checkpoint yet; the run starts at its first step")
            return event
        snapshot = self.checkpoints.load(folder)
        check_identity(folder, snapshot.identity, self.identity)
        if snapshot.step > self.config.steps:
            raise ConfigError(f"steps={self.config.steps} is before step {snapshot.step} of {folder}; give more steps")
        self.trainer.load_weights(snapshot.weights)
        self.trainer.load_state_dict(snapshot.state["trainer"])
        progress = snapshot.state["run"]
        self.best, self.validation, self.visited = progress["best"], progress["validation"], progress["visited"]
        # Earlier revisions did not save these two.
        self.validated, self.sampled = (progress.get(name, self.visited) for name in ("validated", "sampled"))
        if folder.name != BEST:  # which may be replaced at any time: a run that stops now must save its step
            self.saved = snapshot.step
        before = snapshot.identity["config"]
        changed = {key: value for key, value in asdict(self.config).items() if value != before.get(key)}
        return {**event, "changed": changed}

    def _machine(self) -> dict[str, Any]:
        """Return what the log says about the machine and the size of the work."""
        config, size = self.config, self.corpus.vocabulary.size
        weights, products = TYPES[config.precision]
        peak, name = measured_peak(self.ranks.device, products or weights)
        self.peak = float(self.ranks.sum(torch.tensor(peak, dtype=torch.float64, device=self.ranks.device)))
        return {
            "device": str(self.ranks.device),
            "ranks": self.ranks.size,
            "parameters": parameter_count(config, size),
            "active_parameters": active_parameter_count(config, size),
            "vocabulary_size": size,
            "train_tokens": len(self.corpus.train),
            "validation_tokens": len(self.corpus.validation),
            "tokens_per_step": config.batch_size * config.accumulation * config.block_size * self.ranks.size,
            "flops_per_token": flops_per_token(config, size),
            "peak_flops_per_second": self.peak,
            "peak_name": name,
            "estimated_bytes": self.memory.total,
            "environment": self.environment,
        }

    def _introduce(self, machine: dict[str, Any]) -> None:
        config = self.config
        start = f"resuming at step {self.trainer.step} of" if self.command.resume else "training for"
        self.progress.message(
            f"{start} {config.steps:,} steps of {machine['tokens_per_step']:,} tokens: {config.n_layer} layers, "
            f"{config.n_embd} wide, {machine['parameters'] / 1e6:.2f}M parameters, a vocabulary of "
            f"{machine['vocabulary_size']:,}\n{machine['train_tokens']:,} tokens to train on, "
            f"{machine['validation_tokens']:,} to validate on; {config.precision} on {machine['device']}, "
            f"ranks: {self.ranks.size}, "
            f"{(self.peak or 0) / 1e9:,.0f} GFLOP/s by {machine['peak_name']}"
        )

    # ------------------------------------------------------------------------ the loop

    def _train(self) -> str:
        """Train until the run ends, and return why it ended."""
        while True:
            if reason := self._stop_reason():
                return reason
            if self.visited < self.trainer.step:
                self._along_the_way()
            elif self.trainer.step == self.config.steps:
                return "finished"
            else:
                self._step()

    def _step(self) -> None:
        logged = self.trainer.step % self.config.log_every == 0
        result = self.trainer.train_step(measure_lost_updates=logged)
        self.step_seconds = result.seconds
        if logged or result.spike or self.trainer.step == self.config.steps:
            self._log_step(result)
        if result.spike:
            self.progress.message(f"spike: {result.spike}")
        self.progress.step(
            self.trainer.step,
            tokens=result.targets,
            seconds=result.seconds,
            numbers={"loss": result.loss, "val": self.validation, "lr": result.lr, "norm": result.norm},
        )

    def _log_step(self, result: StepResult) -> None:
        speed = result.targets / result.seconds
        work = speed * flops_per_token(self.config, self.corpus.vocabulary.size)
        numbers = asdict(result)
        del numbers["targets"]
        self._write(
            "step",
            **numbers,
            tokens_per_second=round(speed, 1),
            mfu=round(work / self.peak, 4) if self.peak else None,
            memory_bytes=used_memory(self.ranks.device),
        )

    def _stop_reason(self) -> str | None:
        """Return why the run should stop now, None if it should go on. The ranks agree."""
        another = self.trainer.step < self.config.steps  # a run that has no step left is finished, not over its budget
        over = another and self.config.budget > 0 and time.monotonic() + self.step_seconds > self.deadline
        mine = self.stop.reason or ("budget" if over else "")
        if not self.ranks.any(bool(mine)):
            return None
        found = self.ranks.gather(mine)
        return next(reason for reason in ("interrupted", "terminated", "budget") if reason in found)

    # ------------------------------------------------------------------------ along the way

    def _along_the_way(self, *, final: bool = False) -> None:
        """Validate, sample and save, each if it is due after the steps so far; at the end of a run all are."""
        step, config = self.trainer.step, self.config
        last, improved = final or step == config.steps, False
        if self.trainer.can_evaluate and self.validated != step and (last or _due(step, config.eval_every)):
            improved = self._validate()
        if config.sample_every and self.sampled != step and (last or _due(step, config.sample_every)):
            self._sample()
        self.visited = step
        if improved and step > 0:  # before the first step, the best of one is no news
            self._save_best()
        if step > 0 and (last or _due(step, config.save_every)):
            self._save()

    def _validate(self) -> bool:
        """Log the validation loss; return True if it is the lowest so far."""
        self.validation, self.validated = self.trainer.evaluate(), self.trainer.step
        self.saved = -1  # a checkpoint of this step does not know of it yet
        improved = self.best is None or self.validation < self.best["loss"]
        if improved:
            self.best = {"loss": self.validation, "step": self.trainer.step}
        assert self.best is not None
        self._write("validation", step=self.trainer.step, loss=self.validation, best=self.best["loss"])
        return improved

    def _sample(self) -> None:
        self.sampled, self.saved = self.trainer.step, -1

        def show() -> None:
            text = self.trainer.sample()
            self._write("sample", step=self.trainer.step, loss=self.validation, text=text)
            shown = text.strip("\n").replace("\n", "\n  | ")
            self.progress.message(f"sample after {self.trainer.step} steps:\n  | {shown}")

        self._on_first_rank(show)

    def _snapshot(self) -> Snapshot:
        names = ("best", "validation", "visited", "validated", "sampled")
        state = {"trainer": self.trainer.state_dict(), "run": {name: getattr(self, name) for name in names}}
        described = {**self.identity, "environment": self.environment}
        return Snapshot(self.trainer.step, self.trainer.weights(), state, described)

    def _save(self) -> None:
        """Save a checkpoint, unless there is one of this step."""
        if self.saved != self.trainer.step:
            self._write_checkpoint(self.checkpoints.save)
            self.saved = self.trainer.step

    def _save_best(self) -> None:
        self._write_checkpoint(self.checkpoints.save_best)

    def _write_checkpoint(self, save: Callable[[Snapshot], Any]) -> None:
        snapshot = self._snapshot()  # with the random states of all ranks
        started = time.monotonic()

        def write() -> None:
            if self.log:
                self.log.flush_to_disk()
            folder = save(snapshot)
            self._write("checkpoint", step=snapshot.step, name=folder.name, seconds=time.monotonic() - started)

        self._on_first_rank(write)

    # ------------------------------------------------------------------------ the end

    def _end(self, reason: str) -> None:
        step, steps = self.trainer.step, self.config.steps
        self._write("end", step=step, reason=reason)
        best = f", the best validation loss is {self.best['loss']:.4f} at step {self.best['step']}" if self.best else ""
        if reason == "finished":
            self.progress.message(f"finished: {steps:,} steps{best}\n{self.folder}: checkpoints, samples and {LOG}")
            return
        several = f"torchrun --nproc_per_node {self.ranks.size} -m gpt.train"
        start = several if self.ranks.size > 1 else "python -m gpt.train"
        self.progress.message(
            f"stopped after step {step:,} of {steps:,} ({WHY[reason]}){best}\n"
            f"everything is saved; go on with: {start} --resume {self.folder}"
        )

    def _does_not_fit(self) -> DoesNotFit:
        """Return the error of a step that ran out of memory: the estimate was too low for what was available."""
        room = min(self.available or self.memory.total, self.memory.total)
        advice = what_fits(self.config, self.corpus.vocabulary.size, room, self.ranks.device.type)
        return DoesNotFit(f"step {self.trainer.step} does not fit into the memory of {self.ranks.device}; {advice}")

    def _failed(self, error: Exception) -> None:
        """Log why the run failed, if the log can still be written."""
        self.progress.end_line()
        message = str(error) if isinstance(error, GPTError) else f"{type(error).__name__}: {error}"
        try:
            self._write("end", step=self.trainer.step, reason="failed", message=message)
        except RunError:
            return  # a full disk: the error that is raised says so

    def _write(self, event: str, **values: Any) -> None:
        if self.log:
            self.log.write(event, **values)

    def _on_first_rank(self, action: Callable[[], object]) -> None:
        """Do something on rank 0. If it fails there, for whatever reason, every rank stops."""
        problem: Exception | None = None
        try:
            if self.ranks.rank == 0:
                action()
        except Exception as error:
            problem = error
        if self.ranks.any(problem is not None):
            raise problem or OtherRankFailed("rank 0 could not go on; its message says why")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
