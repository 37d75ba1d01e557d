"""What the commands do: check, run, then report. No measurement and no drawing of their own."""
