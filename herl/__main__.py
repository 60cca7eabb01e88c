"""python -m herl"""

from herl.cli.main import main

main()
