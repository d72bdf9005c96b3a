"""All methods at one budget: the same images, the same fine-tuning, the same seeds, and equal controls."""
