"""A trainer that trains nothing: its validation loss is that of a known law, with a little noise from the seed.

It has the flags, files and exit statuses of `python -m gpt.train` that a sweep uses. `FAKE_STEP_SECONDS` makes a run
last: five parts of so many seconds, after each of which it can resume.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

E, A, B, ALPHA, BETA = 1.3, 4.0, 9.0, 0.45, 0.4
NOISE = 0.001
PARTS = 5


def parameters(flags, vocabulary):
    width, layers = int(flags["--n-embd"]), int(flags["--n-layer"])
    return vocabulary * width + int(flags["--block-size"]) * width + layers * (12 * width**2 + 13 * width) + 2 * width


def main():
    words = sys.argv[1:]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    out = Path(flags.get("--resume") or flags["--out"])
    config, log = out / "config.toml", out / "log.jsonl"
    if "--resume" in flags:
        flags = json.loads(config.read_text())
    stop = []
    signal.signal(signal.SIGINT, lambda number, frame: stop.append(("interrupted", 130)))
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(("terminated", 143)))
    (out / "environment.json").write_text(json.dumps({"device_name": "a processor", "threads": 1, "pid": os.getpid()}))
    config.write_text(json.dumps(flags))
    (out / "starts").open("a").write("x")
    vocabulary = len(set(Path(flags["--text"]).read_text(encoding="utf-8")))
    steps, N = int(flags["--steps"]), parameters(flags, vocabulary)
    per_step = int(flags["--batch-size"]) * int(flags["--block-size"])
    known = log.read_text() if log.exists() else ""
    with log.open("a") as file:

        def write(event, step, **values):
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
            file.flush()

        if not known:
            write("header", 0, vocabulary_size=vocabulary, parameters=N, tokens_per_step=per_step, device="cpu",
                  train_tokens=1, config={})  # fmt: skip
        for part in range(known.count('"step",'), PARTS):
            time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0")))
            if stop:
                write("end", steps * part // PARTS, reason=stop[0][0])
                return stop[0][1]
            write("step", steps * (part + 1) // PARTS - 1, loss=4.0, lr=1e-3, norm=0.5, tokens_per_second=100.0)
        noise = 1 + NOISE * random.Random(f"{flags['--seed']} {N} {steps}").gauss(0, 1)
        write("validation", steps, loss=(E + A * N**-ALPHA + B * (steps * per_step) ** -BETA) * noise)
        write("end", steps, reason="finished")
    return 0


if __name__ == "__main__":
    sys.exit(main())
