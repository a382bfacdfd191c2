"""Stages chained into one run: SFT, then DPO from its export, then online DPO from that one's; over several seeds, too.

``lion run pipeline.yaml`` reads a :class:`~lion_lightning.tools.pipeline.plan.Plan`, writes the full config of each
stage into its folder, and runs ``python -m lion_lightning.tools.pipeline FOLDER`` for each, one process each: nothing
of one stage stays in memory for the next, and a stage may start further processes (several GPUs).
"""
