"""Stages chained into one run: SFT, then DPO from its export, then online DPO from that one's; over several seeds, too.

``lion run pipeline.yaml`` reads a :class:`~lion_lightning.tools.pipeline.plan.Plan`, writes each stage's whole config into
the stage's folder, and runs ``python -m lion_lightning.tools.pipeline FOLDER`` for each: a process a stage, so that nothing
of one stage stays in memory for the next, and a stage may start further processes of its own (several GPUs).
"""
