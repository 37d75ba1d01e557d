"""Base models and the weight matrices in them that adapters are put on."""
