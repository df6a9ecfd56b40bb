"""Tiny models of every family of transformers, and of timm and open_clip, through every verb."""
