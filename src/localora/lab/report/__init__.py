"""Run records to tables and pictures."""
