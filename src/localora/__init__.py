"""Adapters on the part of a weight matrix that matters."""
