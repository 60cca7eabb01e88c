"""python -m herl"""

from herl.cli import main

main()
