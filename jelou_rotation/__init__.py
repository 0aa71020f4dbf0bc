"""Keep Jelou external-support integrations as a manifest says, and rotate their credentials. Plain Python."""

__version__ = "0.1.0"
