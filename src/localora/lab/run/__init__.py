"""One run, from recipe to record: load, measure, adapt, train, measure again, save, export. Nothing is drawn here."""
