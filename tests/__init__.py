from herl.openmp import wait_asleep

wait_asleep()  # before any test imports torch
