"""`megaunigame prepare COMMAND`: makes, packs and checks data sets."""

from __future__ import annotations

import sys

from megaunigame.errors import UserError

from .command_line import PROGRAM, parsed


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 (verify found a fault) or 2 (an error the user can fix)."""
    arguments = parsed(sys.argv[1:] if argv is None else argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
