"""DPO: ``start`` is the project as it is; ``packed``, ``reference``, ... add a part each."""
