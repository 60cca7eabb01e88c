from herl.cli.openmp import spin_briefly

spin_briefly()  # before any test imports torch
