"""The hands: changes of a model, by name."""
