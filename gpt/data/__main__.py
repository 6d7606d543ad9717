"""`python -m gpt.data` fetches the text and GPT-2's vocabulary."""

import sys

from gpt.data import published
from gpt.errors import DataError


def main() -> int:
    """Fetch every file that is not on this machine and print the path of each; return 1 if any is missing, else 0."""
    problems = 0
    for sources in ((published.TEXTS["tinyshakespeare"],), published.VOCABULARY):
        try:
            folder = published.locate(sources)
        except DataError as error:
            problems += 1
            print(error, file=sys.stderr)
        else:
            for source in sources:
                print(f"{source.name}: {folder / source.file}")
    return min(problems, 1)


if __name__ == "__main__":
    sys.exit(main())
