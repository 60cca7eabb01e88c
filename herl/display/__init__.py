"""Where a run meets a person: text on the terminal, text in pictures, and reports that may fail.

terminal.py    everything herl prints, logs or fails with passes through here, without control characters
screen.py      the same for tables and other things that rich prints
picture.py     labels of pictures
duration.py    times in words
may_fail.py    no report ends a run
"""
