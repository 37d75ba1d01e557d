"""`python -m localora.cli`, as launchers of several processes call it."""

from localora.cli import app

if __name__ == "__main__":
    app()
