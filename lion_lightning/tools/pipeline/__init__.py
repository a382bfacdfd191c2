"""Run several stages, each from the export of the previous one: SFT, DPO, online DPO; over several seeds, too.

``lion run pipeline.yaml`` reads a :class:`~lion_lightning.tools.pipeline.plan.Plan`, writes the complete config of
each stage into its folder, and runs ``python -m lion_lightning.tools.pipeline FOLDER`` for each: a separate process, so
that nothing of one stage stays in memory for the next, and a stage may start further processes (several GPUs).
"""
