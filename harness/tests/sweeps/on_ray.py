"""The task of a sweep on Ray, with the fake trainer: workers are other processes, in which nothing is patched."""


def with_fake_trainer(*arguments):
    """Train with the fake trainer."""
    from harness.lessons import trainer_process
    from harness.sweeps.cluster import train

    trainer_process.TRAINER = "harness.tests.sweeps.fake_trainer"
    return train(*arguments)
