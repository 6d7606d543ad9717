"""A simulated machine: a clock that only work moves, and comparisons whose arms take known times on it."""

import random

from harness.bench.comparison import Arm, Comparison
from harness.bench.measurement import measure
from harness.bench.work import Verification, Work


class Machine:
    """A clock that only work moves, and a log of every call."""

    def __init__(self, noise=0.0):
        self.now = 0.0
        self.log = []
        self.noise = noise
        self.rng = random.Random(0)

    def clock(self):
        return self.now

    def arm(self, name, seconds, *, answer=42, prepare_seconds=0.0, twin_of=None, tokens=10):
        def call():
            self.log.append(name)
            self.now += seconds * (1 + self.noise * self.rng.random())

        def prepare():
            self.log.append(f"prepare {name}")
            self.now += prepare_seconds

        def build():
            self.log.append(f"build {name}")
            return Work(call=call, answer=lambda: answer, prepare=prepare, tokens=tokens)

        return Arm(name, build, twin_of=twin_of)

    def measure(self, comparison, **options):
        return measure(comparison, clock=self.clock, **options)


def right_is_42(name, work):
    answer = work.answer()
    if answer == 42:
        return Verification("pass", "equal to the control's answer")
    return Verification("fail", f"answers {answer}, the control answers 42")


def comparison(*arms, control="control", verify=right_is_42):
    return Comparison("toy", "A toy", "forward", control, arms, verify, axis="T", point=8)
