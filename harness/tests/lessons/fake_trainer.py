"""A trainer that trains nothing: the flags, files, signals and exit statuses of `python -m gpt.train`, in a moment.

`--lr 666` fails, `--lr 999` ends with a loss that is not finite, `--lr 130` starts for ever, and ends with that status
at Ctrl-C. A step takes `--eps` seconds.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main():
    words = sys.argv[1:]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    out = Path(flags.get("--resume") or flags["--out"])
    config, log = out / "config.toml", out / "log.jsonl"
    if flags.get("--lr") == "130":
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
        (out / "starts").touch()
        time.sleep(60)
    if "--resume" in flags:
        flags = json.loads(config.read_text()) | {"--budget": flags["--budget"], "resumed": True}
    stop = []
    signal.signal(signal.SIGINT, lambda number, frame: stop.append("interrupted"))
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append("terminated"))
    (out / "environment.json").write_text(json.dumps({"device_name": "a processor", "threads": 1, "pid": os.getpid()}))
    config.write_text(json.dumps(flags))
    done = [line for line in log.read_text().splitlines() if '"step"' in line] if log.exists() else []
    first = sum(json.loads(line)["event"] == "step" for line in done)
    deadline = time.monotonic() + 60 * float(flags["--budget"]) if float(flags["--budget"]) else None
    with log.open("a") as file:

        def write(event, step, **values):
            file.write(json.dumps({"event": event, "step": step} | values) + "\n")
            file.flush()

        write("resume" if first else "header", first, vocabulary_size=65)
        for step in range(first, int(flags["--steps"])):
            time.sleep(float(flags.get("--eps", 0.0)))
            if deadline is not None and time.monotonic() > deadline:
                stop.append("budget")
            if stop:
                write("end", step, reason=stop[0])
                return {"budget": 3, "interrupted": 130, "terminated": 143}[stop[0]]
            if flags.get("--lr") in ("666", "999") and step == 3:
                message = {"666": "the disk is full", "999": "step 3: the loss is nan; in h.0"}[flags["--lr"]]
                write("end", step, reason="failed", message=message)
                print(f"gpt.train: {message}", file=sys.stderr)
                return 1
            write("step", step, loss=4.0 - 0.01 * step, lr=1e-3, norm=0.5, clipped_norm=0.5, clip_cosine=None,
                  tokens=step, seconds=0.1, tokens_per_second=100.0)  # fmt: skip
        write("end", int(flags["--steps"]), reason="finished")
    return 0


if __name__ == "__main__":
    sys.exit(main())
