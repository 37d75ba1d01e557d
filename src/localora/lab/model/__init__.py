"""Base models, and the weight matrices in them that adapters are put on. Nothing is trained or measured here."""
