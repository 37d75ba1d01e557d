"""Tasks that need no download: seeded generators whose splits are disjoint by construction."""
