"""Paraphrasing by dynamic blocking (arXiv 2010.12885); read ../NOTICE.md before any use."""

from examples.nonfree.dynamic_blocking.blocking import Blocking
from examples.nonfree.dynamic_blocking.corruption import Corruption
from examples.nonfree.dynamic_blocking.metric import bert_ibleu, rank, self_bleu
from examples.nonfree.dynamic_blocking.sampler import BlockingSampler

__all__ = ["Blocking", "BlockingSampler", "Corruption", "bert_ibleu", "rank", "self_bleu"]
