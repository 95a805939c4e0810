"""One module for each command of `megaunigame`: see megaunigame/command_line.py."""
