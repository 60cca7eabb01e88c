"""Fully sharded data parallel (FSDP2): every rank holds a shard of each weight, gradient and moment.

`FSDPStrategy` divides the ranks for Lightning, `load` loads the model, and `check_trainer` refuses settings
that do not work together. Each block of layers is gathered just before it computes and dropped right after.

    shards=all            every rank holds one shard of the only copy (ZeRO-3)
    shards=node, or n     n ranks hold a copy between them (HSDP): weights travel within a node, and only the
                          sums of gradients between nodes, once a step

Tested on CPU with gloo over one to eight processes. On GPUs the same calls run over NCCL.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from herl.distributed import gather, rank, together
from herl.errors import ConfigError
from herl.models.checkpoint_file import without_code, write_checksums
from herl.models.malloc import keep_freed_memory
from herl.models.pretrained import PretrainedModel, blocks

SHARDS = "trainer.strategy.shards"


class FSDPStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes of the run.

    Args:
        shards: The ranks that hold one copy of the model between them: `all`, those of a `node`, or a number
            that divides the ranks. Every copy computes the same step.
        reshard_after_forward: Drop a block's weights after its forward pass and gather them again for its
            backward pass (ZeRO-3). False keeps them in between (ZeRO-2): faster, if the whole model fits.
        reduce_gradients_once: Sum gradients over the ranks after the last row of a step instead of after
            each. Every rank then keeps the gradient of the whole model in float32.
        save_distributed_checkpoint: Each rank saves its shard, into a folder that any number of ranks can
            resume from. If False, rank 0 assembles a single file.
        cpu_offload: Keep parameters and moments in host memory and copy them to the GPU block by block.
        timeout_minutes: How long a rank waits for the others, including while they sample and judge.

    Raises:
        ConfigError: `shards` is less than 1.
    """

    def __init__(
        self,
        shards: int | Literal["all", "node"] = "all",
        reshard_after_forward: bool = True,
        reduce_gradients_once: bool = False,
        save_distributed_checkpoint: bool = True,
        cpu_offload: bool = False,
        timeout_minutes: float = 60.0,
    ) -> None:
        if shards not in ("all", "node") and (not isinstance(shards, int) or shards < 1):
            raise ConfigError(f"{SHARDS}: expected all, node or a number of at least 1, got {shards!r}")
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.shards = shards
        self.reshard_after_forward = reshard_after_forward
        self.reduce_gradients_once = reduce_gradients_once
        self.cpu_offload = cpu_offload

    def shard_count(self, ranks: int) -> int:
        """Returns how many of a run's ranks hold one copy of the model between them."""
        named = {"all": ranks, "node": self.num_processes}
        return named[self.shards] if isinstance(self.shards, str) else self.shards

    def setup_environment(self) -> None:
        """Sets the number of data-parallel ranks: Lightning's "auto" would be the number of nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard_mesh(self) -> DeviceMesh:
        """Returns the ranks over which `fully_shard` divides a model: [ranks], or [copies, shards].

        All ranks must call it. Those of a copy follow each other, as the ranks of a node do.
        """
        world = self.num_nodes * self.num_processes
        shards = self.shard_count(world)
        if shards == world:
            return self.device_mesh["data_parallel"]
        names = ("copies", "shards")
        return init_device_mesh(self.root_device.type, (world // shards, shards), mesh_dim_names=names)

    def _get_process_group_backend(self) -> str:
        """Chooses gloo to gather shards on the host, and NCCL for those on the GPU."""
        backend = super()._get_process_group_backend()
        return f"cpu:gloo,cuda:{backend}" if self.cpu_offload and backend == "nccl" else backend

    def model_to_device(self) -> None:
        """Leaves offloaded parameters on the host."""
        assert self.model is not None
        if self.cpu_offload:
            for buffer in self.model.buffers():
                buffer.data = buffer.data.to(self.root_device)
        else:
            super().model_to_device()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Saves, and keeps checksums in a sharded checkpoint."""
        super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        if self.is_global_zero and path.is_dir():
            write_checksums(path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint without running code in it."""
        with without_code():
            return super().load_checkpoint(checkpoint_path, weights_only)


ROUNDS_AWAY = "updates as small as optimizer.lr are rounded away in weights of 8 or 11 bits"
SCALED_TOGETHER = "its layers scale by the largest value in a row, which several answers share"
UNSOUND = {
    "16-mixed": "its scaled gradients would be clipped at the wrong norm",
    "16-true": ROUNDS_AWAY,
    "bf16-true": ROUNDS_AWAY,
    "transformer-engine": SCALED_TOGETHER,
    "transformer-engine-float16": SCALED_TOGETHER,
}
"""Lightning's precisions that would train incorrectly, and why."""


def check_trainer(trainer: L.Trainer, model: PretrainedModel | None = None) -> None:
    """Refuses settings that would otherwise go wrong silently.

    Args:
        trainer: The run's trainer.
        model: The model that is about to be trained, if any.

    Raises:
        ConfigError: names the trainer's or the model's key to change.
    """
    if reason := UNSOUND.get(str(trainer.precision)):
        raise ConfigError(
            f"trainer.precision: expected '32-true' or 'bf16-mixed', got '{trainer.precision}': {reason}"
        )
    if model is not None and trainer.state.fn == TrainerFn.FITTING:
        model.check_trainable()
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDPStrategy):
        raise ConfigError(
            "trainer.strategy: expected one device, 'ddp' or herl.models.fsdp.FSDPStrategy (strategy=fsdp), "
            f"got {type(trainer.strategy).__name__}"
        )
    ranks = trainer.world_size
    if isinstance(trainer.strategy, FSDPStrategy) and model is not None and model.quantization is not None:
        raise ConfigError(
            f"model.quantization: expected null with strategy=fsdp or hsdp, got '{model.quantization}': "
            "quantized weights are not divided among devices; strategy=ddp keeps a copy on each"
        )
    if isinstance(trainer.strategy, FSDPStrategy) and ranks % trainer.strategy.shard_count(ranks):
        raise ConfigError(
            f"{SHARDS}: expected all, node or a number that divides the {ranks} processes of the run, "
            f"got {trainer.strategy.shards}"
        )
    if ranks > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "trainer.use_distributed_sampler: expected False, got True; with several processes, herl itself "
            "distributes the prompts of a batch"
        )


def load(model: PretrainedModel, trainer: L.Trainer, *, learns: bool = True) -> PreTrainedModel:
    """Loads a model as the trainer's strategy requires: whole on each rank, or sharded.

    Args:
        model: The model to load.
        trainer: The run's trainer.
        learns: Whether there are backward passes. They drop the weights that a forward pass has gathered; in
            a model without them, each forward pass must.
    """
    strategy = trainer.strategy
    if strategy.root_device.type == "cpu":
        keep_freed_memory()
    if model.compile is None:
        model = replace(model, compile=strategy.root_device.type == "cuda")
    if not isinstance(strategy, FSDPStrategy):
        return together(partial(model.load, strategy.root_device))
    return load_sharded(
        model,
        strategy.shard_mesh(),
        bf16=trainer.precision == "bf16-mixed",
        cpu_offload=strategy.cpu_offload,
        reshard_after_forward=strategy.reshard_after_forward or not learns,
    )


def synchronize_gradients(trainer: L.Trainer, policy: PreTrainedModel, last: bool) -> None:
    """Sets what the next backward pass exchanges.

    Under DDP, and between the copies of a sharded model, only the last micro-batch of a step exchanges
    gradients. Within a copy, every one does, unless `FSDPStrategy.reduce_gradients_once`.
    """
    strategy = trainer.strategy
    if isinstance(strategy.model, DistributedDataParallel):
        strategy.model.require_backward_grad_sync = last
    elif isinstance(strategy, FSDPStrategy) and isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(last or not strategy.reduce_gradients_once)
        policy.set_requires_all_reduce(last)


def load_sharded(
    model: PretrainedModel,
    mesh: DeviceMesh,
    *,
    bf16: bool = False,
    cpu_offload: bool = False,
    reshard_after_forward: bool = True,
) -> PreTrainedModel:
    """Loads a sharded model. Only rank 0 reads the weights; the other ranks receive their shards from it.

    Args:
        model: The model to load.
        mesh: The ranks to shard it over, [ranks]; or [copies, ranks of a copy].
        bf16: Gather and compute in bfloat16; shards, gradients and moments keep the model's type.
        cpu_offload: Keep the shards in host memory.
        reshard_after_forward: As in `FSDPStrategy`.

    Raises:
        ConfigError: the architecture does not name its blocks of layers.
    """
    policy = together(model.load if rank() == 0 else model.skeleton)
    weights = policy.state_dict() if rank() == 0 else {}
    policy.generation_config = gather(policy.generation_config)[0]
    # The conversions applied while reading: streaming reverts them, identically on all ranks.
    conversions = gather(getattr(policy, "_weight_conversions", None))[0]
    object.__setattr__(policy, "_weight_conversions", conversions)
    offload = OffloadPolicy()
    if cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32 if bf16 else None
    )
    # The root is always resharded: otherwise, after a pass without gradient and a step, the next pass
    # silently uses the old embeddings and head. Many models tie the two, so both belong to the root.
    for module in [*blocks(policy), policy]:
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=reshard_after_forward or module is policy,
            mp_policy=precision,
            offload_policy=offload,
        )
    if mesh.size() > 1:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=cpu_offload)
        set_model_state_dict(policy, weights, options=options)
        for buffer in policy.buffers():
            dist.broadcast(buffer, 0)
    return policy
