"""`megaunigame plan` in a clone. Its options: --help."""

import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.command_line import run_command

if __name__ == "__main__":
    run_command("plan", sys.argv[1:])
