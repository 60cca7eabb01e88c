"""The `herl` command: `main.py` reads the command line, `commands.py` has one function per verb."""
