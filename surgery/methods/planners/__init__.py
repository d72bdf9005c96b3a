"""What methods share: how sites are chosen and what is done at them."""
