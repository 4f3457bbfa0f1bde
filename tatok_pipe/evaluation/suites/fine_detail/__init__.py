"""What filtering costs fine detail: text that is still read, lines that are still there."""
