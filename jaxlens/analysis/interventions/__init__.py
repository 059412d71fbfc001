"""Patching, ablation and other interventions at many layers and positions, in one compiled sweep."""
