"""Models made ready to run elsewhere: folded for inference, or as files for other runtimes."""
