"""Is a difference real, and is it large enough to matter? Pure functions of numbers and of right and wrong answers."""
