"""First-order estimates of the effects of patching, from gradients instead of one run per patch."""
