"""One Trainer set-up, from a recipe to a run record."""
