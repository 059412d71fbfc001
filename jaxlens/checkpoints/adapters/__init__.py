"""LoRA adapters written by peft (Hu et al. 2021, arXiv 2106.09685): adapter_config.json and the adapter's weights."""
