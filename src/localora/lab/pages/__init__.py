"""What every HTML page and its pictures share: one self-contained file, light and dark. No contents."""
