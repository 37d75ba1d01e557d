"""Comparisons of methods that nobody can call unfair: equal budgets, tuned learning rates, paired seeds, intervals."""
