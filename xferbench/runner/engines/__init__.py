"""Engines that compute groups of trials: worker processes on this machine."""
