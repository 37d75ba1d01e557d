"""The ordeal: kills, full disks, second writers and damaged files, and what is left after them."""
