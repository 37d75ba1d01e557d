"""Plans of many runs: equal budgets, tuned learning rates, paired seeds, verdicts. report/ shows what they say."""
