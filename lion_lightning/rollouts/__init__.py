"""The on-policy loop's parts.

Prompts: ``prompt_forms``, ``prompt_pool``, ``plan``. Answers, scores and pairs: ``rollout``, ``generate``, ``files``.
Finished rounds: ``rounds``, ``metrics``, ``tokens``.
"""
