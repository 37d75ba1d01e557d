"""One Trainer set-up: methods, checkpoints, a run's folder, lock and record. Nothing is measured on test data."""
