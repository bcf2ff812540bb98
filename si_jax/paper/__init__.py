"""The paper's tables and figures from runs: its numbers as data, ours beside them."""
