"""`python -m megaunigame COMMAND`, the same as `megaunigame COMMAND`."""

import sys

from megaunigame.command_line import main
from megaunigame.shipped import PACKAGE

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] != str(PACKAGE.parent):
        # `-m` puts the working folder first, where a recipe of somebody else could name code as its plugin.
        del sys.path[0]
    main()
