"""From a trained model to predictions and measures. Imports torch."""
