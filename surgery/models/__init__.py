"""Networks that the recipes train and that no library has."""
