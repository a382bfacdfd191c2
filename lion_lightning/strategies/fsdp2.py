"""FSDP2 over all ranks, with tensor parallelism if asked for."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.constants import default_pg_timeout
from typing_extensions import override

from lion_lightning.models.checkpoints.folders import is_folder, stored_names
from lion_lightning.modules.trainer.sharding import require_sharded
from lion_lightning.one_lightning import warn_of_other_lightning


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, with the weights split over all ranks.

    The sizes that Lightning chooses by itself mean tensor parallelism within a machine; here it is off unless asked
    for. Any ``AlignmentModule`` trains under this strategy, one process per device, and so does any module whose
    ``configure_model`` shards all that it trains; others are refused.

    Args:
        tensor_parallel_size: Ranks that share each layer's work on the same rows, by the model's plan in transformers
            (:mod:`lion_lightning.models.weights.tensor_parallel`); it divides the number of processes. Between layers
            they wait for each other, so keep them on one machine.
        save_distributed_checkpoint: True if each rank saves its shards: a checkpoint is then a folder, which any
            number of ranks can resume from. Otherwise rank 0 gathers everything into a single file.
        cpu_offload: True if weights, gradients and optimizer state stay in the host's memory, and a layer is on the GPU
            only while it runs. Far slower; for models that fit in no other way.
        process_group_backend: Of the process group; None for the one that suits the devices.
        timeout: How long a rank waits for the others before it gives up.
    """

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = True,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        warn_of_other_lightning(self)
        if tensor_parallel_size < 1:
            raise ValueError(f"FSDP2Strategy.tensor_parallel_size is {tensor_parallel_size}; give at least 1")
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.tensor_parallel_size, self.cpu_offload = tensor_parallel_size, cpu_offload

    @override
    def setup_environment(self) -> None:
        """Start the processes' group, with all of them in one mesh."""
        ranks, group = self.num_nodes * self.num_processes, self.tensor_parallel_size
        if ranks % group:
            raise MisconfigurationException(
                f"FSDP2Strategy.tensor_parallel_size is {group}, which does not divide the number of processes, {ranks}"
            )
        self._data_parallel_size = ranks // group
        super().setup_environment()

    @override
    def setup(self, trainer: Trainer) -> None:
        """Set optimizers up, and refuse to train what is not sharded."""
        if trainer.state.fn == TrainerFn.FITTING:
            require_sharded(self, self.lightning_module)
        super().setup(trainer)

    @override
    def model_to_device(self) -> None:
        """Move unsharded tensors to the device; shards stay where they are."""
        if not self.cpu_offload:
            super().model_to_device()
            return
        assert self.model is not None
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else buffer.to(self.root_device)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, each rank its shards."""
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_file() and not is_folder(path):
            raise ValueError(f"{path}: no such checkpoint; give a .ckpt file or a folder that a sharded run wrote")
        # The tensors in FSDPStrategy's folders have other names: a load would end in a KeyError.
        if path.is_dir() and not any(name.startswith("state_dict.") for name in stored_names(path)):
            raise ValueError(
                f"{path}: written by FSDPStrategy, whose shards fit only that strategy; go on with it, or let it write "
                "a single file (state_dict_type: full)"
            )
        return super().load_checkpoint(checkpoint_path, weights_only is not False)
