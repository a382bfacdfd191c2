"""The on-policy loop's parts.

Prompts: ``prompts``. Answers, scores and pairs: ``rollout``, ``generate``, ``files``.
Finished rounds: ``rounds``, ``metrics``, ``tokens``.
"""
