"""Hydra configuration groups; the real defaults stand in the dataclasses beside the code."""
