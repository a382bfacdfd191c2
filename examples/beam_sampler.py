"""A sampler that follows the policy: it is opened before each round and closed after it."""


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
        options = {"num_beams": n, "num_return_sequences": n, "max_new_tokens": self.max_new_tokens}
        return [self.policy.generate(prompt, **options) for prompt in prompts]
