"""Runs a function in several processes that communicate over gloo."""

import torch.multiprocessing as mp


def run_on_ranks(work, ranks, folder, *arguments):
    started = start_on_ranks(work, ranks, folder, *arguments)
    while not started.join():
        pass


def start_on_ranks(work, ranks, folder, *arguments):
    """Does not wait for them; `processes` of what it returns may be killed and joined one by one."""
    return mp.spawn(
        _rank, (work, ranks, f"file://{folder}/store-{ranks}", arguments), nprocs=ranks, join=False
    )


def _rank(place, work, ranks, store, arguments):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=store, rank=place, world_size=ranks)
    work(*arguments)
    dist.destroy_process_group()
