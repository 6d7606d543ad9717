"""Train a GPT on a text: `python -m gpt.train --preset shakespeare-char --out runs/a`; `--help` documents it."""

import os
import sys
from collections.abc import Sequence

from gpt.errors import ConfigError, GPTError, NonFinite, OtherRankFailed
from gpt.training.command_line import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say (None: the process's own) and return the exit status; `--help` lists them."""
    rank = os.environ.get("RANK", "0")
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
    except GPTError as error:
        if rank == "0":  # it is the same on all ranks
            print(f"gpt.train: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    try:
        from gpt.training.run import run  # here, so that --help and mistakes are answered without importing torch

        return run(command)
    except GPTError as error:
        if rank == "0" or not isinstance(error, OtherRankFailed | NonFinite):  # those are said by rank 0
            print(f"gpt.train: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:  # while torch was imported: from then on the run has its own handler
        return 130


if __name__ == "__main__":
    sys.exit(main())
