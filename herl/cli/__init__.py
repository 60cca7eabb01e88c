"""The `herl` command: `main.py` parses the command line, `commands.py` has one function per verb."""
