"""The same tasks in lm-evaluation-harness, and its own tasks on our adapters. Needs the extra `eval`."""
