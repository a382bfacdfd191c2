"""Losses of groups, a prompt's answers with their values: listwise DPO and its relatives."""
