"""Runs in processes of their own, which can be killed, and on two ranks."""

import os
import signal
import socket
import sys

from gpt.train import main
from gpt.training.checkpoints import Checkpoints


def kill_after_saving(method, step):
    """Make the checkpoint of a step the last thing that rank 0 does."""
    save = getattr(Checkpoints, method)

    def save_and_die(checkpoints, snapshot):
        path = save(checkpoints, snapshot)
        if snapshot.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    setattr(Checkpoints, method, save_and_die)


def forked(action):
    """Start an action in a process of its own, which needs no imports; return its id. It ends with the result."""
    child = os.fork()
    if child == 0:
        status = 99  # of an exception
        try:
            status = action()
        finally:
            os._exit(status)
    return child


def ended(child):
    """Return the exit status of a process when it has ended, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def as_ranks(*words):
    """Run the program on two ranks, as torchrun starts them, and return their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

    def rank(number):
        os.environ |= address | {"RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
        return main([str(word) for word in words])

    children = [forked(lambda number=number: rank(number)) for number in range(2)]
    return [ended(child) for child in children]


def torchrun(action):
    """Do an action on two ranks, started by torchrun's own launcher, and return torchrun's exit status."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    ranks = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "run_id": "test", "max_restarts": 0}
    address = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    try:
        elastic_launch(LaunchConfig(**ranks, **address, start_method="fork", monitor_interval=0.05), action)()
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0
