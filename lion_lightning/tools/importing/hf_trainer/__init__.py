"""Keys of transformers' TrainingArguments, which TRL, alignment-handbook and LLaMA-Factory have."""
