"""Images in, classes and label maps out."""
