"""Where runs take place: processes of this machine, or a Ray cluster."""
