"""What surgery would do, where, and what it costs."""
