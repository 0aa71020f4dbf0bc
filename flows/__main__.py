"""The command `jelou-rotation`: the terminal's door to the same flows."""

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from jelou_rotation import __version__
from jelou_rotation.errors import RefusedInput, RowsNeedAttention

# Heavy imports (Prefect, pydantic, aiohttp) wait inside the commands that need them: --help answers at once.

DESCRIPTION = """\
Keep Jelou external-support integrations as a manifest says, and rotate their credentials.

  jelou-rotation plan customers.yaml      show what would change, write nothing
  jelou-rotation rotate customers.yaml    do it, verify each project, write a report
"""

EPILOG = """\
Settings come from the environment, a .env file or a secrets directory; JELOU_API_KEY is the one you must set.
They are listed in the README.

exit codes:
  0  every project is as wanted
  1  the run finished and some projects are not as wanted: the report says which and what to do
  2  refused before anything was sent: manifest, settings, references or an unreachable Prefect server
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except RefusedInput as refusal:
        print(f"jelou-rotation: refused, nothing was sent.\n{refusal}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("jelou-rotation: interrupted.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of a pipe left; Python would complain once more while closing standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jelou-rotation",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        suggest_on_error=True,
    )
    return parser
