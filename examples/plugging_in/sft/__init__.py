"""Fine-tuning: ``start`` is the project as it is; ``throughput``, ``data``, ``packed``, ... add a part each."""
