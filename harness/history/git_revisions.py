"""Git revisions: resolved to commits, listed between two, and checked out into a folder."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.core.errors import HarnessError

WORKING_TREE = "."


@contextlib.contextmanager
def checkout(repository: Path, revision: str) -> Iterator[Path]:
    """Check out a revision into a temporary folder inside the block, and yield the folder.

    For `.`, yield the repository itself with its uncommitted changes.
    """
    if revision == WORKING_TREE:
        yield repository
        return
    commit = resolve_commit(repository, revision)
    with tempfile.TemporaryDirectory(prefix="gpt-harness-") as folder:
        tree = Path(folder) / "tree"
        try:
            # Without hooks: they are for a change of branch, and this checkout is only read.
            git(repository, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(tree), commit)
            yield tree
        finally:
            git(repository, "worktree", "remove", "--force", str(tree), check=False)


def repository_root(folder: Path) -> Path:
    """Return the root of the repository that contains `folder`. Raises HarnessError if there is none."""
    return Path(git(folder, "rev-parse", "--show-toplevel"))


def resolve_commit(repository: Path, revision: str) -> str:
    """Return the hash of the commit that a revision names. Raises HarnessError if it names none."""
    return git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")


def describe_revision(repository: Path, revision: str) -> str:
    """Return the short hash and the first line of the message: `22ef657 Add the cache`."""
    if revision == WORKING_TREE:
        return "the working tree"
    return git(repository, "log", "-1", "--format=%h %s", resolve_commit(repository, revision))


def commits_between(repository: Path, old: str, new: str) -> list[str]:
    """Return the commits after `old` up to `new`, oldest first, along first parents. Raises HarnessError if none."""
    if WORKING_TREE in (old, new):
        raise HarnessError("--bisect goes through commits; expected two of them, and the working tree is none")
    ends = (resolve_commit(repository, old), resolve_commit(repository, new))
    commits = git(repository, "rev-list", "--first-parent", "--reverse", f"{ends[0]}..{ends[1]}").split()
    if not commits:
        raise HarnessError(f"no commit leads from {old} to {new}; expected the older revision first")
    return commits


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    """Run git and return its output. With `check`, raises HarnessError with git's own message if it fails."""
    answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if check and answer.returncode != 0:
        message = answer.stderr.strip().splitlines()[-1:] or ["it names no commit"]
        raise HarnessError(f"git {' '.join(arguments)}: {message[0]}")
    return answer.stdout.strip()
