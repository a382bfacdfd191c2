"""A sampler that follows the policy: it is opened before each round and closed after it."""

import torch


class BeamSampler:
    """The ``n`` best answers of a beam search: all of them differ, and no seed is needed.

    Args:
        max_new_tokens: Most tokens of an answer.
    """

    def __init__(self, max_new_tokens: int = 64):
        self.max_new_tokens = max_new_tokens

    def open(self, policy):
        self.policy = policy

    def close(self):
        self.policy = None  # training needs the memory

    def sample(self, prompts, n, seed):
        with self.policy.generating():  # evaluation mode, no gradients, full weights on each rank
            return [self._answers(prompt, n) for prompt in prompts]

    def _answers(self, prompt, n):
        ids = torch.tensor([prompt.input_ids], device=self.policy.device)
        ends = list(self.policy.end_ids)
        beams = self.policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=n,
            num_return_sequences=n,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        return self.policy.tokenizer.batch_decode(beams[:, ids.shape[1] :], skip_special_tokens=True)
