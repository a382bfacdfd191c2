"""FSDP2 over all ranks, without sizes to work out."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.constants import default_pg_timeout


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, with the weights split over all ranks.

    The sizes that Lightning chooses by itself mean tensor parallelism within a machine, which no module here does. Any
    ``AlignmentModule`` trains under this strategy, one process a device.

    Args:
        save_distributed_checkpoint: Whether each rank saves its own pieces: a checkpoint is then a folder, which any
            number of ranks can resume from. Otherwise rank 0 gathers everything into a single file.
        cpu_offload: Whether weights, gradients and optimizer state stay in the host's memory, and a layer is on the GPU
            only while it runs. Far slower; for models that fit in no other way.
        process_group_backend: Of the process group; None for the one that suits the devices.
        timeout: How long a rank waits for the others before it gives up.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """Start the processes' group, with all of them in one mesh (Lightning calls this)."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
