"""A judge: a class with one method, which imports nothing of the package."""


class KeywordJudge:
    """Scores an answer by the share of the row's keywords that it contains.

    Args:
        column: Column of the prompts' rows that holds the keywords, separated by spaces.
    """

    def __init__(self, column: str = "answer"):
        self.column = column

    def score(self, prompts, answers):
        scores = []
        for prompt, texts in zip(prompts, answers, strict=True):  # several answers to each prompt
            keywords = str(prompt.row[self.column]).lower().split()
            scores.append([sum(word in text.lower() for word in keywords) / len(keywords) for text in texts])
        return scores
