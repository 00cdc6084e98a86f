"""Engines that compute groups of trials."""
