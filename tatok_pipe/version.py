"""Which tatok_pipe this is, as files that it writes tell."""

__version__ = "0.1.0"
