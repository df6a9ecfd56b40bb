"""Trainings beside their lazy paths: losses, kernels, predictions, and when a net leaves its linearisation."""
